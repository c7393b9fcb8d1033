"""One recorded run of a converted program: gradients, sources, many targets."""
