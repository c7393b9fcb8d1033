"""Files without trust: .pt2 archives, read and vetted without running anything in them."""
