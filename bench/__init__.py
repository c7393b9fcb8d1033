"""What is measured: `bench.speed` (time and memory) and `bench.tables` (all else), both into bench/measured/.

Run the commands from the repository's root, as in `python -m bench.tables.saved bert`, or by `make`.
"""
