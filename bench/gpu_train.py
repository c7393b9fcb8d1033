"""The trainings from scratch on a GPU: `python -m bench.gpu_train FOLDER`, every architecture with three seeds.

Trainings are small, so several share the GPU. Run on the device machine, then take FOLDER home: what is there is not
trained again. `--steps 2 --device cpu` tries the command without a GPU.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from fxgrad.demo.independent import INDEPENDENT


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--jobs", default=9, show_default=True, help="Trainings at a time.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--name", "names", multiple=True, type=click.Choice(list(INDEPENDENT)), default=list(INDEPENDENT))
@click.option("--steps", type=click.IntRange(min=1))
@click.option("--device", default="cuda", show_default=True)
def main(folder: Path, jobs: int, seeds: int, names: tuple[str, ...], steps: int | None, device: str) -> None:
    """Train what FOLDER lacks, each training a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = ["--steps", str(steps)] if steps else []

    def one(name: str, seed: int) -> str:
        command = [sys.executable, "-m", "fxgrad.demo.train", name, "--seed", str(seed), "--device", device, *extra]
        start = time.time()
        done = subprocess.run([*command, "--from-scratch", str(folder)], capture_output=True, text=True)
        said = (done.stdout or done.stderr).strip().splitlines() or ["there already"]
        return f"{name}-{seed}, {time.time() - start:.0f} s, {'ok' if not done.returncode else 'FAILED'}: {said[-1]}"

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(one, name, seed) for seed in range(seeds) for name in names]
        lines = []
        for future in waiting:
            lines.append(future.result())
            click.echo(lines[-1])
    if any(", FAILED:" in line for line in lines):
        raise click.ClickException("not every training came to its end")


if __name__ == "__main__":
    main()
