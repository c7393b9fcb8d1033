"""Attribution maps against their definition, targets by name, and the pictures."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import fxgrad
from fxgrad.commands.explanation import Explanation, explain, map_of, pool_sum, proof
from fxgrad.commands.grid import draw
from fxgrad.demo import __main__ as demo
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import digits_vit, preprocess
from fxgrad.errors import InputError
from fxgrad.methods.classes import class_of
from fxgrad.methods.photo import photo
from fxgrad.module.converted import ConvertedModule
from fxgrad.reading import read_image

NAMES = ["tench, Tinca tinca", "crane", "snow leopard, ounce", "crane"]


def classifier(channels: int = 3) -> nn.Module:
    """A small float64 classifier of 6 x 8 pictures, unbalanced under the plain gradient."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 2, 2), nn.GELU(), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 4)]
    return nn.Sequential(*layers).double().eval()


def converted(x: torch.Tensor) -> list[ConvertedModule]:
    """The classifier under the plain gradient and under libragrad."""
    libra = fxgrad.convert(classifier(), (x,))
    return [libra.under("gradient"), libra]


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    x = torch.rand(1, 3, 6, 8).double()
    return explain(converted(x), x, [2], picture=x[0], class_names=NAMES)[0]


def test_maps_are_input_times_gradient() -> None:
    model, x = classifier(), torch.rand(1, 3, 6, 8).double()
    plain, libra = converted(x)
    (found,) = explain([plain, libra], x, [1], picture=x[0])
    for module, attribution in zip((model, libra), found.found):
        leaf = x.clone().requires_grad_()
        module(leaf)[0, 1].backward()
        assert leaf.grad is not None
        assert torch.equal(map_of(attribution), (x * leaf.grad).sum((0, 1)).float())
    assert found.logit == pytest.approx(model(x)[0, 1].item())


def test_errors_are_of_the_explained_logit() -> None:
    x = torch.rand(1, 3, 6, 8).double()
    modules = converted(x)
    (explanation,) = explain(modules, x, [2], picture=x[0], class_names=NAMES)
    for module, attribution in zip(modules, explanation.found):
        checked = proof(module, x, 2)
        assert checked.output == pytest.approx(explanation.logit)
        assert checked.inputs == pytest.approx(float(map_of(attribution).sum()), rel=1e-5)
        assert checked.completeness_error == pytest.approx(attribution.completeness_error, rel=1e-6, abs=1e-12)
    plain, ours = explanation.found
    assert (plain.rules, ours.rules) == ("gradient", "libragrad")
    assert plain.completeness_error is not None and ours.completeness_error is not None
    assert ours.completeness_error < 1e-12 < 1e-2 < plain.completeness_error
    assert explanation.label == "snow leopard, ounce"


def test_several_targets_methods_and_policies() -> None:
    """Each is what `fxgrad.attribute` gives; what takes no gradient is there once, what has no shares has no error."""
    x = torch.rand(1, 3, 6, 8).double()
    modules = converted(x)
    methods = ("saliency", "smoothgrad", "random")
    options = {"smoothgrad": {"samples": 3}}
    found = explain(modules, x, [None], picture=x[0], methods=methods, options=options, top=2)
    assert [e.target for e in found] == modules[0](x)[0].topk(2).indices.tolist()
    for one in found:
        assert [[a.rules for a in row] for row in one.rows()] == [["gradient", "libragrad"]] * 2 + [["gradient"]]
        for attribution, module in zip(one.rows()[1], modules):
            wanted = fxgrad.attribute(module, (x,), target=one.target, method="smoothgrad", samples=3)
            assert torch.equal(attribution.map, wanted.map)
        assert {a.completeness_error for a in one.found} == {None}


def test_under_another_policy_keeps_rows_dtype_and_gradient() -> None:
    model = classifier()
    twin = fxgrad.convert(model.float(), (torch.rand(1, 3, 6, 8),)).double().under("gradient")
    x = torch.rand(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    ours, theirs = (torch.autograd.grad(m(x).sum(), x)[0] for m in (twin, model.double()))
    assert torch.equal(ours, theirs)


def test_what_cannot_be_explained() -> None:
    model, x = classifier(), torch.rand(2, 3, 6, 8).double()
    libra = fxgrad.convert(model, (x,))
    with pytest.raises(InputError, match=r"one picture, .* this one is \(2, 3, 6, 8\)"):
        explain([libra], x, picture=x[0])
    features = fxgrad.convert(classifier()[:2].eval(), (x,))  # type: ignore[index]
    with pytest.raises(InputError, match=r"logits \(N, K\); for one picture this one gave \(1, 4, 3, 4\)"):
        explain([features], x[:1], picture=x[0])


@pytest.mark.parametrize(
    ("target", "index"), [(None, 3), (0, 0), ("2", 2), (" OUNCE", 2), ("Snow Leopard", 2), ("tench, tinca tinca", 0)]
)
def test_targets(target: int | str | None, index: int) -> None:
    assert class_of(target, torch.arange(4.0)[None], NAMES)[0].tolist() == [index]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (4, "no class 4: the model has 4, numbered 0 to 3"),
        ("-1", "no class -1: the model has 4, numbered 0 to 3"),
        ("tensh", r"no class 'tensh'\. Close to it: tench.* Numbers go from 0 to 3"),
        ("leopard", r"Close to it: snow leopard"),
        ("zzzzqqq", r"no class 'zzzzqqq'\. Close to it: none\. "),
        ("crane", "'crane' names the classes 1, 3"),
    ],
)
def test_targets_that_there_are_not(target: int | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_of(target, torch.zeros(1, 4), NAMES)


def test_names_need_names() -> None:
    with pytest.raises(InputError, match=r"classes have no names\. Give a number from 0 to 3"):
        class_of("tench", torch.zeros(1, 4), None)


def test_read_image_turns_it_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (10, 20)


def test_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(_png((8, 8))[:40])
    for name, message in (("a.png", "cannot identify"), ("cut.png", ""), ("absent.png", "No such file")):
        with pytest.raises(InputError, match=f"Pillow cannot read the image .*{name}.*{message}") as raised:
            read_image(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_pooling_keeps_the_total() -> None:
    attribution = torch.randn(7, 10)
    pooled = pool_sum(attribution, 4)
    assert pooled.shape == (2, 3)
    assert pooled.sum() == pytest.approx(float(attribution.sum()), abs=1e-5)
    assert pooled[1, 2] == pytest.approx(float(attribution[4:, 8:].sum()), abs=1e-6)


@pytest.mark.parametrize(("channels", "pool"), [(1, 1), (3, 4), (4, 5)])
def test_drawing_is_red_for_and_blue_against(explanation: Explanation, channels: int, pool: int) -> None:
    attribution = torch.ones(16, 20)
    attribution[:, 10:] = -1
    plain, ours = explanation.found
    anatomy = replace(ours.anatomy, size=(16, 20))
    painted = replace(ours, map=attribution[None], anatomy=anatomy)
    blank = replace(plain, map=torch.zeros(1, 16, 20), anatomy=anatomy)
    drawn = Explanation(photo(torch.rand(channels, 16, 20)), 2, "a $5 bill", 1.0, (blank, painted))
    file = io.BytesIO()
    draw([drawn, drawn], file, title="two", pool=pool, outlines=[torch.eye(16, 20) > 0, None])
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    right = pixels[:, pixels.shape[1] * 2 // 3 : pixels.shape[1] * 9 // 10]  # the third panel, without its colour bar
    red, blue = (np.nonzero(abs(right - colour).sum(-1) < 9)[1] for colour in ((214, 32, 31), (31, 95, 214)))
    assert len(red) > 10_000 and len(blue) > 10_000
    assert np.median(red) < np.median(blue)


def test_draw_says_why_it_cannot(explanation: Explanation, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written to .*a.nonsense: Format 'nonsense' is not supported"):
        draw(explanation, tmp_path / "a.nonsense")
    with pytest.raises(InputError, match="No such file or directory"):
        draw(explanation, tmp_path / "absent" / "a.png")


def test_shares_follow_their_definition() -> None:
    model = digits_vit(weights=False)
    pictures = [canvas(0), canvas(1)]
    x = preprocess(np.stack([c.image for c in pictures]))
    found = demo.shares(fxgrad.convert(model, (x,)).under("gradient"), pictures)
    leaf = x.clone().requires_grad_()
    model(leaf)[1, pictures[1].labels[0]].backward()
    assert leaf.grad is not None
    positive = (leaf.grad * x)[1, 0].clamp(min=0)
    wanted = positive[torch.from_numpy(pictures[1].masks[1])].sum() / positive.sum()
    assert found.shape == (2, 2, 2)
    assert found[1, 0, 1] == pytest.approx(float(wanted), rel=1e-4)


def test_demo_writes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "untrained.py").write_text(
        "from fxgrad.demo.model import digits_vit\n\ndef build():\n    return digits_vit(weights=False)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "MODEL", "untrained:build")
    monkeypatch.setattr(demo, "LARGE", "timm:test_vit")
    monkeypatch.setattr("fxgrad.data.reach.hub_reachable", lambda: False)
    monkeypatch.setattr(demo, "MEASURED", 2)
    result = CliRunner().invoke(demo.main, ["--out", "a/b"])
    assert result.exit_code == 0, result.output
    assert "passed: forward identical" in result.output and "mean of 2 held-out canvases" in result.output
    assert "timm:test_vit, " in result.output and "converted in" in result.output
    assert read_image(tmp_path / "a/b/digits.png").width == 1600
    assert "data:image/jpeg;base64," in (tmp_path / "a/b/report.html").read_text("utf-8")
    monkeypatch.setattr(demo, "MODEL", "no.such:thing")
    failed = CliRunner().invoke(demo.main, ["--out", "a/b"])
    assert failed.exit_code == 2 and failed.stderr.startswith("error: no.such:thing")


def test_the_input_stays_as_it_is() -> None:
    x = torch.rand(1, 3, 6, 8).double()
    before = x.clone()
    explain(converted(x), x, picture=x[0].float())
    assert torch.equal(x, before) and not x.requires_grad


def _png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(file, "png")
    return file.getvalue()
