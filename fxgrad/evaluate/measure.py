"""All metrics of some attributions of the same pictures, measured together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxgrad.data import Batch
from fxgrad.evaluate.methods import Attribution
from fxgrad.metrics import (
    Removal,
    answer,
    average_precision,
    completeness,
    deletion_insertion,
    faithfulness,
    iou,
    pointing_game,
    removal_curve,
)


@dataclass(frozen=True, eq=False)
class Ruler:
    """How pictures are measured: the same for all attributions of a model.

    Attributes:
        tokens: removes tokens.
        pixels: removes pixels; None leaves deletion and insertion out.
        fractions, steps: as in `Plan`.
        multilabel: as in `Data`.
        batch: pictures per forward.
    """

    tokens: Removal
    pixels: Removal | None
    fractions: Sequence[float]
    steps: int
    multilabel: bool
    batch: int = 128

    def measure(
        self, pictures: Batch, x: Tensor, target: Tensor, logits: Tensor, attributions: Mapping[str, Attribution]
    ) -> dict[str, dict[str, list[float]]]:
        """Measure several attributions at once, so that their masked pictures share forwards.

        Args:
            pictures: the masks, bool (batch, H, W).
            x: what the model saw, (batch, C, H, W).
            target: class indices, int64 (batch,).
            logits: the model's for x, (batch, classes).
            attributions: by the name of their method.

        Returns:
            Method -> metric -> one value per picture; segmentation is left out where no picture has a mask.
        """
        found: dict[str, Tensor] = {}
        names = list(attributions)
        maps = torch.stack([attributions[name].pixels.cpu().float() for name in names])
        patches = torch.stack([attributions[name].patches.cpu().float() for name in names]).flatten(2)
        options = {"multilabel": self.multilabel, "batch": self.batch}
        most, least = (
            removal_curve(
                self.tokens,
                x,
                patches,
                target,
                most_first=first,
                fractions=self.fractions,
                **options,  # type: ignore[arg-type]
            )
            for first in (True, False)
        )
        whole = answer(logits.cpu(), target.cpu(), multilabel=self.multilabel)
        found |= faithfulness(whole, most, least, self.fractions)
        if self.pixels is not None:
            found |= deletion_insertion(self.pixels, x, maps.flatten(2), target, steps=self.steps, **options)  # type: ignore[arg-type]
        if pictures.masks.any():
            for metric in (average_precision, pointing_game, iou):
                found[metric.__name__] = metric(maps, pictures.masks)
        measured = {name: {metric: v[i].tolist() for metric, v in found.items()} for i, name in enumerate(names)}
        for name in names:
            total, output = attributions[name].total, attributions[name].output
            if total is not None:
                measured[name] |= {m: v.tolist() for m, v in completeness(total.cpu(), output.cpu()).items()}
        return measured
