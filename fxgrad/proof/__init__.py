"""Stage 4: the proof that the forward is the same and the gradient complete, node by node."""
