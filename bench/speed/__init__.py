"""Time and memory: `make bench` runs `test_speed.py`, and `page.py` makes the page of what that wrote."""
