"""How far attributions are from adding up to the logit, at the model's own size, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

import fxgrad
from bench.evidence.real.cells import Store
from bench.evidence.real.photographs import Photograph, central, normalized

CASES = ((224, 1), (518, 10))
"""Side of the picture, and which photographs: every one, or every tenth."""
DTYPES = (torch.float32, torch.bfloat16)
POLICIES = ("gradient", "libragrad")


def measure(store: Store, model_of: Callable[[int], nn.Module], pictures: Sequence[Photograph]) -> None:
    """FullGrad's shares of the predicted class's logit, for the middle square of each photograph.

    Args:
        store: keeps, by size, dtype and policy, the sum of the shares, the logit and the sum of the shares' sizes; and
            whether the forward of the converted model is the model's, bit by bit.
        model_of: side of the picture -> the model, float32.
        pictures: of which to take every one, or some.
    """
    for size, step in CASES:
        for dtype in DTYPES:
            name = f"completeness.{size}.{str(dtype).removeprefix('torch.')}"
            if store.get(name):
                continue
            x = normalized(torch.stack([central(p.whole, size) for p in pictures[::step]])).to(dtype)
            model = model_of(size).to(dtype)
            converted = fxgrad.convert(model, (x[:1],))
            with torch.no_grad():
                logits = torch.cat([model(row) for row in x.split(1)])
                same = [torch.equal(converted(row), logits[i : i + 1]) for i, row in enumerate(x.split(1))]
            columns = {"identical": np.array(same)}
            for policy in POLICIES:
                columns |= shares(converted.under(policy), x, logits.argmax(1), policy)
            store.put(name, columns)
            print(name, flush=True)


def shares(converted: fxgrad.ConvertedModule, x: Tensor, target: Tensor, policy: str) -> dict[str, np.ndarray]:
    """The sum of the shares, the logit, and the sum of the shares' sizes, each (pictures,)."""
    rows = []
    for row, label in zip(x.split(1), target.tolist()):
        found = fxgrad.attribute(converted, (row,), target=label, method="fullgrad")
        assert found.total is not None and found.apart is not None
        sizes = found.tokens.double().abs().sum() + found.apart.double().abs().sum()
        rows.append([float(found.total), float(found.output), float(sizes)])
    return {f"{policy}.{key}": column for key, column in zip(("total", "output", "sizes"), np.array(rows).T)}
