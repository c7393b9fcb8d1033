"""Everything about a GPU, in six minutes on an H100: `python -m bench.gpu`, or `make gpu`.

The roads of attention's backward, forward and gradient over plain (eager, as CUDA graphs, compiled), memory, forward
identity and completeness in four precisions, other toolkits, a Llama of 1.2 billion parameters. The most valuable comes
first, each measurement in a worker process of its own with a limit, and what does not fit into the time is left out and
said to be. The results so far are on the disk after every measurement.

    python -m bench.gpu --out bench/measured                 writes gpu.json and gpu.md there
    python -m bench.gpu --smoke --out build/gpu-smoke        small models on the CPU, for the script itself
    python -m bench.gpu --page bench/measured/gpu.json       the page again; rows of further files join the first's

On the device machine, which has PyTorch, timm and transformers, but neither zennit nor lxt. Here, once:

    echo /.whl/ >> .git/info/exclude; python3 -m pip wheel --no-deps -w .whl zennit==0.5.1 lxt==2.1

then there, with `.whl` in `carry`, 480 s for `timeout_s`, and $OUT copied to bench/measured afterwards:

    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl \
      && export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 || exit; python3 -m bench.gpu --seconds 350 --out $OUT

A machine that lacks timm or networkx takes them as wheels, too.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from bench.speed.gpu_cases import cases, stages
from bench.speed.gpu_page import page
from bench.speed.workers import Stage, supervise

PACKAGES = ("torch", "triton", "timm", "transformers", "zennit", "lxt")


def machine(smoke: bool) -> dict[str, Any]:
    """What is measured on; asks the driver, so that this process makes no context on the GPU."""
    found = {
        "processor": platform.machine(),
        "cores": __import__("os").cpu_count(),
        "python": platform.python_version(),
    }
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not there"
    if not smoke:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        found["cuda"] = str(torch.version.cuda)
    return {**found, "versions": versions}


def run(out: Path, seconds: float, smoke: bool, chosen: list[Stage]) -> dict[str, Any]:
    """Measure, and write gpu.json and gpu.md after every row.

    Args:
        out: the folder, made if it is not there.
        seconds: the budget.
        smoke: small models on the CPU.
        chosen: the jobs.

    Returns:
        What is in gpu.json: "machine", "when", "smoke", "seconds", and "rows" by name.
    """
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    found: dict[str, Any] = {"machine": machine(smoke), "when": when, "smoke": smoke, "seconds": 0, "rows": {}}

    def put(name: str, row: dict[str, Any]) -> None:
        found["rows"][name] = row
        found["seconds"] = round(time.monotonic() - start, 1)
        (out / "gpu.json").write_text(json.dumps(_rounded(found), indent=1) + "\n", "utf-8")
        note = row.get("error") or row.get("skipped") or f"{row.get('took', 0):.1f} s"
        click.echo(f"{found['seconds']:6.1f} s  {name}: {note}")

    supervise(chosen, partial(cases, "cpu" if smoke else "cuda", smoke), seconds, put)
    write_page(out / "gpu.json")
    return found


def write_page(path: Path, *others: Path) -> None:
    """The page beside a JSON file.

    Args:
        path: the file.
        others: of further runs; their rows join the file's, or take their places.
    """
    found = json.loads(path.read_text("utf-8"))
    for other in others:
        newer = json.loads(other.read_text("utf-8"))
        found["rows"].update(newer["rows"])
        found["seconds"] += newer["seconds"]
    if others:
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(page(found), "utf-8")


def _rounded(value: Any) -> Any:
    """Numbers to five digits."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.option("--out", default="bench/measured", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--seconds", default=350.0, show_default=True, help="The budget for all.")
@click.option("--smoke", is_flag=True, help="Small models on the CPU.")
@click.option("--only", multiple=True, help="Jobs whose name begins so.")
@click.option("--page", "files", multiple=True, type=click.Path(exists=True, path_type=Path), help="Only the page.")
def main(out: Path, seconds: float, smoke: bool, only: tuple[str, ...], files: tuple[Path, ...]) -> None:
    if files:
        write_page(*files)
        return
    if not smoke and not torch.cuda.is_available():
        raise click.ClickException("there is no GPU that PyTorch sees; --smoke tries the script on the CPU.")
    chosen = [
        Stage([job for job in stage.jobs if not only or job.name.startswith(only)], stage.workers)
        for stage in stages(smoke)
    ]
    if not any(stage.jobs for stage in chosen):
        names = ", ".join(job.name for stage in stages(smoke) for job in stage.jobs)
        raise click.ClickException(f"no job begins with {' or '.join(only)}; there are {names}.")
    run(out, seconds, smoke, [stage for stage in chosen if stage.jobs])
    click.echo(f"wrote {out / 'gpu.json'} and {out / 'gpu.md'}")


if __name__ == "__main__":
    main()
