"""What is measured: `bench.speed` (time and memory), `bench.evidence` (are explanations better?) and `bench.tables`
(all else), into bench/measured/. `bench.gpu` is one command for everything that needs a GPU.

Run the commands from the repository's root, as in `python -m bench.tables.saved bert`, or by `make`.
"""
