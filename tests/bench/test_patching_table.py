"""The page of patching: the pairs are what it says they are, and a row has a number for every policy."""

from __future__ import annotations

from itertools import islice

import torch

from bench.tables import patching


def test_pairs() -> None:
    for clean, corrupt, digit in islice(patching.other_pictures(colours=False), 3):
        assert clean.shape == corrupt.shape == (1, 1, 48, 48) and 0 <= digit < 10 and not torch.equal(clean, corrupt)
    (first, noise, _), (second, other, _) = islice(patching.noise(colours=True), 2)
    assert first.shape == noise.shape == (1, 3, 48, 48) and noise.abs().max() <= 1
    assert not torch.equal(first, second) and not torch.equal(noise, other)


def test_a_row() -> None:
    found = patching.measured(patching.CASES["random GPT-2"], 2)
    assert {(run, kind) for run, kind in found} == {(run, kind) for run in patching.RUNS for kind in patching.KINDS}
    for key, table in found.items():
        assert table.shape == (2, 3, 2) and abs(table).max() <= 1 + 1e-12, key
        cells = patching._row("GPT-2", table)
        assert len(cells) == 8 and cells[1] == f"{table[:, 0, 0].mean():.2f} ± {table[:, 0, 0].std(ddof=1):.2f}"


def test_every_model_of_the_demo_is_there() -> None:
    assert len(patching.CASES) == 2 * 8 + 3
