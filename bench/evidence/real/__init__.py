"""Evidence from real weights on real pictures and texts: what `make real` measures."""
