"""How long the command line takes to answer `--help`: the best of several runs, each in a process of its own.

python -m bench.speed.startup
python -m bench.speed.startup --runs 9 --out bench/measured/startup.md
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from bench.speed.script import main
from fxgrad.report import markdown

LIMIT = 0.5
"""Seconds that `fxgrad --help` may take."""


def seconds(arguments: Sequence[str], runs: int) -> float:
    """The shortest time that `fxgrad` takes with these arguments."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fxgrad", *arguments], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return min(once() for _ in range(runs))


def page(runs: int) -> tuple[str, bool]:
    """The table of all commands, and whether `fxgrad --help` keeps the limit."""
    from fxgrad.commands.cli import COMMANDS

    calls = [["--help"], *([name, "--help"] for name in COMMANDS)]
    found = {" ".join(["fxgrad", *call]): seconds(call, runs) for call in calls}
    rows = [[f"`{call}`", f"{taken:.2f}"] for call, taken in found.items()]
    text = [f"Best of {runs} runs; `fxgrad --help` may take {LIMIT} s.", "", *markdown(["command", "seconds"], rows)]
    return "\n".join(text) + "\n", found["fxgrad --help"] < LIMIT


if __name__ == "__main__":
    main(page, __doc__, {"--runs": {"type": int, "default": 5}})
