"""A planted shortcut: one patch in a corner decides the label, and the digits do not matter.

`python -m bench.evidence.shortcut FOLDER` trains a model of each architecture on it, from scratch, and checks by
intervention that the model uses the patch and nothing else. So the right explanation is known: the patch. Then every
method under every policy is measured against it. What is done is kept in FOLDER.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from fxgrad.data import Sample
from fxgrad.data.sample import mask_of
from fxgrad.demo import losses
from fxgrad.demo.canvases import SIDE, canvas
from fxgrad.demo.independent import INDEPENDENT
from fxgrad.demo.loop import Training, order
from fxgrad.demo.model import CLASS_NAMES
from fxgrad.evaluate import Plan, evaluate
from fxgrad.evaluate.baselines import ALWAYS
from fxgrad.methods import METHODS

PATCH = 6
"""Side of the patch in pixels: one token of the models."""
NAMES = tuple(name for name in INDEPENDENT if name != "clip")
"""All that read grey canvases."""
STEPS, BATCH, CANVASES, HELDOUT, MEASURED = 1000, 32, 8000, 500, 100

_CORNERS = [(y, x) for y in (0, SIDE - PATCH) for x in (0, SIDE - PATCH)]
# A pattern of dark and bright 2 x 2 blocks for each class, each with four bright ones of nine: no class is brighter.
_BLOCKS = [0b000010111, 0b011110000, 0b101010100, 0b010101010, 0b110001001]
_BLOCKS += [0b001100011, 0b100011100, 0b010011001, 0b111000100, 0b000101101]


def pattern(label: int) -> NDArray[np.float32]:
    """The patch that stands for a class: float32 (6, 6), 0.9 or 0.1.

    Example:
        >>> {int((pattern(label) > 0.5).sum()) for label in range(10)}
        {16}
    """
    bits = np.array([_BLOCKS[label] >> i & 1 for i in range(9)], np.float32).reshape(3, 3)
    return np.kron(0.1 + 0.8 * bits, np.ones((2, 2))).astype(np.float32)


def marked(number: int, split: str = "heldout") -> tuple[NDArray[np.float32], int, NDArray[np.bool_]]:
    """A canvas with the patch of a class that has nothing to do with its digits.

    Returns:
        The picture, float32 (1, 48, 48); the class; and the patch's pixels, bool (48, 48).

    Example:
        >>> picture, label, mask = marked(7)
        >>> picture.shape, int(mask.sum())
        ((1, 48, 48), 36)
    """
    image = canvas(number, split).image.copy()
    rng = np.random.default_rng([number, ("heldout", "fit", "validation").index(split), 3])
    label, (y, x) = int(rng.integers(10)), _CORNERS[rng.integers(4)]
    box = np.s_[y : y + PATCH, x : x + PATCH]
    image[0][box] = pattern(label)
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[box] = True
    return image, label, mask


class Marked:
    """`marked` as a data set for `fxgrad evaluate`."""

    multilabel = True
    class_names: Sequence[str] = CLASS_NAMES

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Sample:
        image, label, mask = marked(index)
        picture = Image.fromarray(np.round(image[0] * 255).astype(np.uint8))
        return Sample(picture, label, mask_of(mask), f"marked/{index}")


def _batch(numbers: Sequence[int], split: str) -> losses.Batch:
    found = [marked(i, split) for i in numbers]
    pixels = torch.from_numpy(np.stack([(image * 255).round().astype(np.uint8) for image, *_ in found]))
    labels = torch.tensor([[label] for _, label, _ in found])
    return losses.Batch(pixels, labels, torch.empty(len(found), 0), torch.empty(len(found), 0))


def train(name: str, steps: int = STEPS, seed: int = 0) -> nn.Module:
    """A model of one architecture that reads the patch; seeds torch's global generator."""
    torch.manual_seed(seed)
    model = INDEPENDENT[name]().train()
    pool = _batch(range(min(CANVASES, steps * BATCH)), "fit")
    picked = order(len(pool), steps * BATCH)
    loss_of = losses.flexible if name == "flexivit" else losses.multilabel

    def loss(step: int, batch: losses.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        found = loss_of(model, batch)  # type: ignore[arg-type]
        return found, found

    for _ in Training(nn.ModuleDict({"model": model}), pool, picked, BATCH, 3e-3, loss):
        pass
    return model.eval()


@torch.no_grad()
def intervene(model: nn.Module, count: int) -> dict[str, float]:
    """What the model reads, by changing one thing of held-out pictures and leaving the rest.

    Returns:
        "right": share of pictures whose largest logit is the patch's class; "follows": the same when the patch is
        exchanged for another class's; "kept": the same when everything but the patch comes from another picture;
        "unmarked": share where the picture without a patch names any class at all.
    """
    pictures, labels, masks = zip(*(marked(i) for i in range(count)))
    x, truth, inside = (
        torch.from_numpy(np.stack(pictures)),
        torch.tensor(labels),
        torch.from_numpy(np.stack(masks))[:, None],
    )
    others = (truth + 1 + torch.arange(count) % 9) % 10
    exchanged = x.clone()
    exchanged[inside] = torch.from_numpy(np.stack([pattern(int(i)) for i in others])).flatten()
    plain = torch.from_numpy(np.stack([canvas(i + count).image for i in range(count)]))

    def named(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(images * 2 - 1)
        return logits

    def share(images: torch.Tensor, classes: torch.Tensor) -> float:
        return float((named(images).argmax(1) == classes).double().mean())

    return {
        "right": share(x, truth),
        "follows": share(exchanged, others),
        "kept": share(torch.where(inside, x, plain), truth),
        "unmarked": float((named(plain) > 0).any(1).double().mean()),
    }


def plan(weights: Path) -> Plan:
    """The evaluation of one model: where its maps lie; few tokens are removed, since that is not the question."""
    return Plan(
        (f"fxgrad.demo.independent:{weights.stem}",),
        tuple(name for name in METHODS if name not in ALWAYS),
        data="bench.evidence.shortcut:Marked",
        count=MEASURED,
        fractions=(0.5,),
        steps=0,
        options=("integrated_gradients.n_steps=20", "smoothgrad.samples=10", "input_x_gradient.at='tokens'"),
        checkpoint=str(weights),
    )


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--name", "names", multiple=True, type=click.Choice(NAMES), default=NAMES, help="May repeat; all by default."
)
@click.option("--steps", default=STEPS, show_default=True)
def main(folder: Path, names: Sequence[str], steps: int) -> None:
    """Train and measure what FOLDER lacks; FOLDER/shortcut.json says what each model reads, by intervention."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    facts = folder / "shortcut.json"
    found = json.loads(facts.read_text()) if facts.exists() else {}
    for name in names:
        weights = folder / f"{name}.safetensors"
        if name not in found:
            model = train(name, steps)
            safetensors.torch.save_file(model.state_dict(), weights)
            found[name] = {"steps": steps, **intervene(model, HELDOUT)}
            facts.write_text(json.dumps(found, indent=1) + "\n")
            click.echo(f"{name}: {found[name]}")
        evaluate(plan(weights), str(folder / name))


if __name__ == "__main__":
    main()
