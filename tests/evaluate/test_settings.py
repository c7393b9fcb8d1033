"""Settings of a plan: which pictures, which target and value, how maps and areas are made, which head the model has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad
from fxgrad import metrics
from fxgrad.data import Sample, collate
from fxgrad.data.heads import TwoClasses
from fxgrad.data.models import load_model
from fxgrad.errors import InputError
from fxgrad.evaluate import Plan, Results, evaluate
from fxgrad.evaluate.bench import Bench
from fxgrad.evaluate.measure import all_metrics
from fxgrad.evaluate.methods import attributes
from tests.helpers import evaluated

HERE = "tests.evaluate.test_settings"
PLAN = Plan(
    (f"{HERE}:net",),
    ("input_x_gradient", "gradcam_plus"),
    ("gradient", "libragrad"),
    data=f"{HERE}:squares",
    count=4,
    chunk=2,
    steps=0,
    input_size=(1, 48, 48),
)


class Exclusive(evaluated.Squares):
    """The same squares, each of exactly one class; every third picture is in colour."""

    multilabel = False

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, image=sample.image.convert("RGB")) if index % 3 == 0 else sample


def squares() -> Exclusive:
    return Exclusive()


def net() -> nn.Module:
    return evaluated.model()


class One(nn.Module):
    """The same model with one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.model = evaluated.model()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, :1]  # type: ignore[no-any-return]


class TwoLabels(Exclusive):
    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, label=sample.label % 2)


def two_labels() -> TwoLabels:
    return TwoLabels()


class Texts(nn.Module):
    """The same model, its first logits being of texts."""

    def __init__(self, texts: tuple[str, ...] = ("",) * 10) -> None:
        super().__init__()
        self.model, self.count = evaluated.model(), len(texts)

    def prompted(self, *texts: str) -> Texts:
        return Texts(texts)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, : self.count]  # type: ignore[no-any-return]


def bench_of(plan: Plan, data: Any = None, order: tuple[int, ...] = (0, 1, 2, 3)) -> Bench:
    known = attributes(plan.methods, plan.options, value=plan.value, maps=plan.maps)
    return Bench(plan, data or squares(), order, known, all_metrics([]), plan.models[0])


def images(results: Results) -> list[str]:
    column = results.values[PLAN.models[0], "libragrad", "input_x_gradient"]["average_precision"]
    return list(column)


def test_pictures_are_taken_by_list_by_mode_and_by_shuffle(tmp_path: Path) -> None:
    plan = replace(PLAN, methods=("input_x_gradient",), count=2)
    (tmp_path / "ids.txt").write_text("31\n7\n8\n")
    listed = evaluate(replace(plan, ids=str(tmp_path / "ids.txt")), str(tmp_path / "listed"))
    assert sorted(images(listed)) == ["31", "7"]
    coloured = evaluate(replace(plan, shuffle="none", mode="RGB"), str(tmp_path / "coloured"))
    assert sorted(images(coloured)) == ["0", "3"]
    assert coloured.facts["settings"]["mode"] == "RGB" and "mode" not in PLAN.settings


@pytest.mark.parametrize("target", ["label", "predicted", "second"])
def test_the_target_is_the_label_the_first_or_the_second_class(target: str) -> None:
    bench = bench_of(replace(PLAN, target=target))
    pictures, _, classes, logits = bench.batch(0, 2)
    ranked = logits.sort(1, descending=True).indices
    assert (
        classes.tolist()
        == {
            "label": pictures.labels.tolist(),
            "predicted": ranked[:, 0].tolist(),
            "second": ranked[:, 1].tolist(),
        }[target]
    )


def gradient_of(value: Any, model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(value(model(x)).sum(), x)[0]


def test_the_value_is_the_logit_or_the_probability() -> None:
    bench = bench_of(PLAN)
    _, x, classes, _ = bench.batch(0, 2)
    values: dict[str, Any] = {
        "logit": lambda y: y.gather(1, classes[:, None])[:, 0],
        "probability": lambda y: y.softmax(1).gather(1, classes[:, None])[:, 0],
    }
    for value, of in values.items():
        own = attributes(["input_x_gradient"], value=value)["input_x_gradient"]
        found = own(bench.under("gradient"), x, classes, (4, 4), 0)
        wanted = (x * gradient_of(of, net().eval(), x)).sum(1)
        assert torch.allclose(found.pixels, wanted, rtol=1e-4, atol=1e-6)
        assert torch.allclose(found.output, of(net().eval()(x)).detach(), atol=1e-5)


def test_a_head_of_one_logit_is_one_of_two_classes(tmp_path: Path) -> None:
    plan = replace(PLAN, models=(f"{HERE}:One",), data=f"{HERE}:two_labels", value="margin")
    bench = bench_of(plan, two_labels())
    pictures, x, classes, logits = bench.batch(0, 4)
    z = One().eval()(x).detach()
    assert torch.equal(logits, torch.cat([torch.zeros_like(z), z], 1))
    assert torch.allclose(logits.softmax(1)[:, 1], z[:, 0].sigmoid())
    sign = 2.0 * pictures.labels - 1
    found = bench.methods["input_x_gradient"](bench.under("gradient"), x, classes, (4, 4), 0)
    assert torch.allclose(found.output, sign * z[:, 0])
    wanted = x[:, 0] * gradient_of(lambda y: sign * y[:, 0], One().eval(), x)[:, 0]
    assert torch.allclose(found.pixels, wanted, rtol=1e-4, atol=1e-6)
    assert TwoClasses(One()).num_classes == 2
    results = evaluate(plan, str(tmp_path))
    assert set(results.values[f"{HERE}:One", "libragrad", "input_x_gradient"]) > {"srg_aopc", "completeness"}


def test_prompts_are_the_classes(tmp_path: Path) -> None:
    plan = replace(PLAN, models=(f"{HERE}:Texts",), data=f"{HERE}:two_labels", prompts=("a dark one", "a bright one"))
    assert bench_of(plan, two_labels()).batch(0, 2)[3].shape == (2, 2)
    results = evaluate(replace(plan, methods=("input_x_gradient",), count=2), str(tmp_path))
    assert results.facts["settings"]["prompts"] == ["a dark one", "a bright one"]


def test_maps_are_enlarged_by_cubic_interpolation() -> None:
    bench = bench_of(replace(PLAN, maps="cubic"))
    _, x, classes, _ = bench.batch(0, 2)
    found = bench.methods["gradcam_plus"](bench.under("libragrad"), x, classes, (4, 4), 0)
    wanted = F.interpolate(found.patches[:, None], (48, 48), mode="bicubic")[:, 0]
    assert torch.equal(found.pixels, wanted)
    plain = fxgrad.attribute(bench.under("libragrad"), (x,), target=classes, method="gradcam_plus", grid=(4, 4))
    assert torch.equal(plain.enlarged("cubic"), wanted) and not torch.equal(plain.pixels, wanted)
    with pytest.raises(InputError, match="a map with 2 axes is enlarged by 'linear' or 'cubic', not 'nearest'"):
        plain.enlarged("nearest")


def test_the_area_may_have_the_unmasked_picture(tmp_path: Path) -> None:
    fractions = (0.0, 0.5)
    results = evaluate(replace(PLAN, fractions=fractions, count=2), str(tmp_path))
    loaded, data = load_model(PLAN.models[0], input_size=(1, 48, 48)), squares()
    column = results.values[PLAN.models[0], "libragrad", "input_x_gradient"]["mif_aopc"]
    batch = collate([data[int(name)] for name in column], loaded.preprocess)
    libra = fxgrad.convert(loaded.model, (batch.x,))
    found = fxgrad.attribute(libra, (batch.x,), target=batch.labels, grid=(4, 4))
    dropping, whole = metrics.Dropping(libra, (4, 4)), metrics.answer(libra(batch.x).detach(), batch.labels)
    half = metrics.removal_curve(dropping, batch.x, found.tokens, batch.labels, fractions=(0.5,)).probability[:, 0]
    trapezoid = (0 + whole.probability - half) / 2  # the unmasked picture loses nothing
    assert list(column.values()) == pytest.approx(trapezoid.tolist(), rel=1e-3, abs=1e-6)


def test_small_masks_count_as_none() -> None:
    share = (16 / 48) ** 2
    for least, kept in ((share - 0.01, True), (share + 0.01, False)):
        masks = bench_of(replace(PLAN, least_area=least)).batch(0, 2)[0].masks
        assert bool(masks.any()) == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "third"}, "target is one of label, predicted, second, not 'third'"),
        ({"value": "odds"}, "value is one of logit, probability, margin, not 'odds'"),
        ({"maps": "nearest"}, "maps is one of linear, cubic, not 'nearest'"),
        ({"shuffle": "python"}, "shuffle is one of torch, numpy, none, not 'python'"),
        (
            {"fractions": (0.5, 0.5)},
            r"fractions ascend between 0 and 1, 0 included, such as 0.1, 0.5, 0.9; not \(0.5, 0.5\)",
        ),
        ({"least_area": 5}, "least_area is a share of the picture, such as 0.05, not 5"),
        ({"prompts": ("a cat",)}, "one prompt is no choice: give one for each label, at least two"),
    ],
)
def test_what_a_plan_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(PLAN, **options)


def test_what_a_model_or_data_set_cannot(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a margin is of two classes, and .* has 10. Use --value logit"):
        evaluate(replace(PLAN, value="margin"), str(tmp_path / "a"))
    many = replace(PLAN, value="probability", data=evaluated.DATA)
    with pytest.raises(
        InputError, match=r"the classes of .*squares are independent: use --value logit, not probability"
    ):
        evaluate(many, str(tmp_path / "b"))
