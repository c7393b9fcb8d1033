"""What any stage may ask of a graph and its nodes; nothing here knows a rule."""
