"""Questions about a graph and its nodes that any stage may ask; nothing here knows a rule."""
