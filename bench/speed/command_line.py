"""What the command line adds to a script that captures a model and attributes once: the best of several processes each.

python -m bench.speed.command_line
python -m bench.speed.command_line --model timm:vit_tiny_patch16_224 --runs 5

Seconds are of the processor, by one thread, so that what else runs on the machine counts little. `fxgrad explain`
attributes twice, under the plain gradient and under libragrad, reads the picture, draws, and takes the weights' digest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fxgrad.report import markdown

LIMIT = 1.5
"""How many times the script's time the command may take."""
MODEL = "timm:vit_base_patch16_224"
SCRIPT = """
import json, sys, time
import timm, torch
import fxgrad

model = timm.create_model(sys.argv[1]).eval()
x = torch.rand(1, *model.default_cfg["input_size"])
start = time.process_time()
libra = fxgrad.convert(model, (x,))
captured = time.process_time()
fxgrad.attribute(libra, (x,), target=None)
print(json.dumps([captured - start, time.process_time() - captured]))
"""


def processor(command: Sequence[str]) -> tuple[float, str]:
    """(seconds of the processor that a command takes, what it prints)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def measured(model: str, runs: int) -> dict[str, float]:
    """Seconds, each the best of its runs."""
    found: dict[str, list[float]] = {"script": [], "capture": [], "attribution": [], "command": []}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "picture.png")
        Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(picture)
        explain = [sys.executable, "-m", "fxgrad", "explain", model, str(picture), "-o", str(Path(folder, "a.png"))]
        for _ in range(runs):
            seconds, printed = processor([sys.executable, "-c", SCRIPT, model.partition(":")[2]])
            found["script"].append(seconds)
            for name, part in zip(("capture", "attribution"), json.loads(printed)):
                found[name].append(part)
            found["command"].append(processor(explain)[0])
    return {name: min(values) for name, values in found.items()}


def page(model: str, found: dict[str, float]) -> str:
    rows = [
        ["capture", f"{found['capture']:.2f}"],
        ["one attribution", f"{found['attribution']:.2f}"],
        ["the script: imports, random weights, capture, one attribution", f"{found['script']:.2f}"],
        ["the command: the same, a second attribution, the picture read and drawn", f"{found['command']:.2f}"],
        ["the command / the script", f"{found['command'] / found['script']:.2f}"],
        ["the command / (capture + one attribution)", f"{found['command'] / bare(found):.2f}"],
    ]
    return "\n".join([f"`fxgrad explain {model}`", "", *markdown(["", "seconds of the processor"], rows)])


def bare(found: dict[str, float]) -> float:
    """Capture and one attribution, without the imports and the weights."""
    return found["capture"] + found["attribution"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="of timm")
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    found = measured(chosen.model, chosen.runs)
    print(page(chosen.model, found))
    sys.exit(found["command"] > LIMIT * found["script"])


if __name__ == "__main__":
    main()
