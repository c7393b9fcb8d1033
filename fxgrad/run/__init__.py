"""One recorded run of a converted program, and all that is read off it: gradients, sources, many targets."""
