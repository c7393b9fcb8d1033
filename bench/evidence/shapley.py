"""Attributions against exact Shapley and Banzhaf values: `python -m bench.evidence.shapley STORE MODEL...`

A picture's 64 patches are 16 players of 2 x 2 patches. Each of their 65,536 coalitions is run, the other tokens dropped
(blurred, where a model cannot run on fewer). Then every method under every policy is compared with the values: the
correlation over the players, and that of their ranks. MODEL is module.path:factory, or module.path:factory=CHECKPOINT.
What is computed is kept in STORE, so a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from bench.evidence.trainings import by_policy, opened
from fxgrad.data import collate, open_data
from fxgrad.data.models import LoadedModel
from fxgrad.evaluate.bench import removal
from fxgrad.evaluate.methods import Attribute, attributes, grid_of
from fxgrad.evaluate.plan import POLICIES
from fxgrad.evaluate.store import Store, read
from fxgrad.methods import METHODS
from fxgrad.metrics import Game, coalitions, spearman
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert

SIDE = 4
"""Players per side of a picture."""
METRICS = {f"{value}{kind}": "higher" for value in ("shapley", "banzhaf") for kind in ("", "_rank")}


def owners(grid: tuple[int, int]) -> Tensor:
    """The player of each patch: int64 (patches,), 4 x 4 players of neighbouring patches.

    Example:
        >>> owners((8, 8)).view(8, 8)[3:5, 3:5].tolist()
        [[5, 6], [9, 10]]
    """
    rows, columns = (torch.arange(n) * SIDE // n for n in grid)
    return (rows[:, None] * SIDE + columns).flatten()


def correlations(scores: Tensor, game: Game, players: Tensor) -> dict[str, list[float]]:
    """Correlations over players of a method's scores with a game's values.

    Args:
        scores: the influence of each patch, (batch, patches).
        game: of the same pictures.
        players: as from `owners`.

    Returns:
        "shapley" and "banzhaf", Pearson's, and "shapley_rank" and "banzhaf_rank", Spearman's: one number per picture.
        NaN where a map is constant.
    """
    sums = torch.zeros(len(scores), game.players, dtype=torch.float64)
    sums.index_add_(1, players, scores.double())
    found = {}
    for name, values in (("shapley", game.shapley()), ("banzhaf", game.banzhaf())):
        found[name] = _correlation(sums, values)
        found[f"{name}_rank"] = spearman(sums, values).tolist()
    return found


def _correlation(a: Tensor, b: Tensor) -> list[float]:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    found: list[float] = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).tolist()
    return found


def game_of(plain: ConvertedModule, x: Tensor, labels: Tensor, files: Sequence[Path]) -> Game:
    """The games of some pictures; each is run once, and read from its file afterwards."""
    grid = grid_of(plain)
    how = removal(plain, grid)
    for i, file in enumerate(files):
        if not file.exists():
            game = coalitions(how, x[i : i + 1], labels[i : i + 1], players=owners(grid), empty=0.0)
            beside = file.with_suffix(".part.npy")
            np.save(beside, game.values[0].float().numpy())
            beside.rename(file)
    return Game(torch.from_numpy(np.stack([np.load(file) for file in files])).double())


def measure(loaded: LoadedModel, store: Store, name: str, data: str, numbers: Sequence[int]) -> None:
    """Measure every method under every policy on some pictures of one model."""
    pictures = open_data(data)
    batch = collate([pictures[i] for i in numbers], loaded.preprocess)
    plain = convert(loaded.model, (batch.x,), rules="gradient").requires_grad_(False)
    (Path(store.folder) / "games").mkdir(exist_ok=True)
    files = [Path(store.folder) / "games" / f"{name}-{data.replace(':', '-')}-{i}.npy" for i in numbers]
    game = game_of(plain, batch.x, batch.labels, files)
    grid, options = grid_of(plain), ["integrated_gradients.n_steps=20", "smoothgrad.samples=10"]

    def compared(attribute: Attribute, converted: ConvertedModule) -> dict[str, list[float]]:
        attributed = attribute(converted, batch.x, batch.labels, grid, 0)
        return correlations(attributed.patches.flatten(1), game, owners(grid))

    methods = {name: partial(compared, attribute) for name, attribute in attributes(list(METHODS), options).items()}
    by_policy(store, name, plain, batch, numbers[0], POLICIES, methods)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--count", default=10, show_default=True, help="Pictures of each model.")
def main(folder: str, models: Sequence[str], count: int) -> None:
    """Compare attributions of MODELs with exact Shapley and Banzhaf values, into the store FOLDER."""
    torch.set_num_threads(1)
    store = Store(folder)
    store.note("settings", {"metrics": METRICS})
    done = {(model, start) for model, _, _, start, _ in read(folder).done}
    units = [(*one, i) for one in map(opened, models) for i in range(count)]
    for name, loaded, data, i in track(units, "coalitions"):
        if (name, i) not in done:
            measure(loaded, store, name, data, [i])


if __name__ == "__main__":
    main()
