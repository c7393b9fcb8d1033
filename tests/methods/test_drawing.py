"""Pictures of attributions: what lies where, in which colour, on which scale; files; what is refused."""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import fxgrad
from fxgrad.methods import METHODS, Attribution, drawing, words
from fxgrad.methods.photo import LARGEST, photo
from fxgrad.table.loading import presets

SIZE = (24, 32)
WHITE = np.ones(3)
DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""How linear RGB looks without one kind of cone. Source: Machado, Oliveira, Fernandes, TVCG 15(6), 2009, severity 1.0."""


@pytest.fixture(scope="module")
def found() -> Attribution:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(192, 5)).eval()
    x = torch.rand(2, 3, *SIZE)
    return fxgrad.attribute(fxgrad.convert(model, (x,)), (x,), target=3)


def halves(found: Attribution) -> Attribution:
    """For the target on the left, against it on the right."""
    map = torch.ones(2, *SIZE)
    map[:, :, 16:] = -1
    return replace(found, map=map)


def rendered(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    drawing.write(figure, file)
    return np.asarray(Image.open(file).convert("RGB")).astype(float) / 255


def linear(colour: np.ndarray) -> np.ndarray:
    """sRGB to linear light: IEC 61966-2-1."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def lab(colour: np.ndarray) -> np.ndarray:
    """sRGB to CIE L*a*b* under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear(colour) @ to_xyz.T / to_xyz.sum(1)
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def seen_as(deficiency: str, colour: np.ndarray) -> np.ndarray:
    """A colour as someone sees it who lacks one kind of cone."""
    light = (linear(colour) @ np.array(DEFICIENCIES[deficiency]).T).clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("ground", ["white", "black", "photograph", "none"])
def test_for_and_against_differ_for_the_colour_blind(found: Attribution, deficiency: str, ground: str) -> None:
    """Of what is really drawn: 2.3 is the least difference that is seen, 40 is that of blue and green."""
    picture = {"white": torch.ones(3, *SIZE), "black": torch.zeros(1, *SIZE), "photograph": torch.rand(3, *SIZE)}
    map = torch.zeros(2, *SIZE)
    map[:, :, :11], map[:, :, 21:] = 1, -1
    figure = replace(found, map=map).plot(picture=picture.get(ground), colorbar=False)
    pixels = rendered(figure)
    box = figure.axes[0].get_window_extent()
    row = pixels[int(len(pixels) - (box.y0 + box.y1) / 2)]
    at = [box.x0 + share * box.width for share in (0.15, 0.5, 0.85)]
    speaks, nothing, against = (row[int(x) - 12 : int(x) + 12] for x in at)
    colours = [lab(seen_as(deficiency, part)) for part in (speaks, nothing, against)]
    for a, b, least in ((0, 2, 50), (0, 1, 35), (2, 1, 35)):
        apart = np.linalg.norm(colours[a][:, None] - colours[b][None], axis=-1)
        assert apart.min() > least, (a, b, apart.min())


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_half_strength_differs_for_the_colour_blind(deficiency: str) -> None:
    ends = [lab(seen_as(deficiency, np.array(drawing.named(None)(at)[:3]))) for at in (0.25, 0.5, 0.75)]
    assert min(np.linalg.norm(ends[i] - ends[j]) for i, j in ((0, 1), (1, 2), (0, 2))) > 20


def test_the_map_lies_on_the_part_that_the_model_sees(found: Attribution) -> None:
    """In a picture of 100 x 60 pixels the model sees 64 x 48 at (20, 6): half of it red, half blue, nothing outside."""
    figure = halves(found).plot(picture=Image.new("RGB", (100, 60), "white"), window=(20, 6, 84, 54), colorbar=False)
    axes = figure.axes[0]
    assert axes.get_xlim() == (-0.5, 99.5) and axes.get_ylim() == (59.5, -0.5)
    pixels = rendered(figure)
    red, blue = (abs(pixels - np.array(c) / 255).sum(-1) < 0.02 for c in ((214, 32, 31), (31, 95, 214)))
    ys, xs = np.nonzero(red | blue)
    corners = axes.transData.transform([(19.5, 5.5), (83.5, 53.5)])
    (left, top), (right, bottom) = corners
    assert abs(xs.min() - left) < 4 and abs(xs.max() - right) < 4  # the dashed outline covers a pixel or two
    assert abs(ys.min() - (len(pixels) - top)) < 4 and abs(ys.max() - (len(pixels) - bottom)) < 4
    assert np.nonzero(red)[1].max() <= np.nonzero(blue)[1].min() + 1
    assert abs(np.nonzero(red)[1].max() - (left + right) / 2) < 3


def test_the_photograph_keeps_its_colours(found: Attribution) -> None:
    flat = replace(found, map=torch.zeros(2, *SIZE))
    pixels = rendered(flat.plot(picture=Image.new("RGB", (32, 24), (0, 160, 0)), colorbar=False))
    middle = pixels[len(pixels) // 2, pixels.shape[1] // 2]
    assert np.allclose(middle, 1 - drawing.FAINT * (1 - np.array([0, 160, 0]) / 255), atol=0.01)


def test_any_picture_of_pillow(found: Attribution) -> None:
    """16 bits and alpha are read like everywhere."""
    grey = photo(Image.fromarray(np.full((24, 32), 257 * 100, np.uint16)), SIZE)
    clear = photo(Image.new("RGBA", (32, 24), (0, 0, 0, 0)), SIZE)
    assert (grey.pixels == 100).all() and (clear.pixels == 255).all()
    assert (photo(torch.zeros(4, *SIZE), SIZE).pixels == 255).all()
    large = photo(Image.new("L", (4032, 3024)), (24, 32))
    assert large.pixels.shape == (LARGEST * 3 // 4, LARGEST, 3) and (large.width, large.height) == (4032, 3024)
    assert found.plot(picture=Image.new("1", (64, 48))).axes


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (torch.rand(24, 32, 3), r"this one is \(24, 32, 3\). Pass for example picture.permute\(2, 0, 1\)"),
        (torch.rand(2, 3, 24, 32), r"this one is \(2, 3, 24, 32\). Pass picture\[0\]"),
        (torch.rand(2, 24, 32), r"1, 3 or 4 channels; this one is \(2, 24, 32\)"),
        (torch.rand(3, 24, 32) * 255, r"pixels go from .* to 25\d, and must be floats in \[0, 1\]. Pass picture / 255"),
        (torch.ones(3, 24, 32, dtype=torch.uint8), r"floats in \[0, 1\]. Pass picture / 255"),
        (torch.randn(3, 24, 32), r"Pass picture \* std \+ mean, which undoes the normalization, or the PIL image"),
        (torch.full((3, 24, 32), torch.nan), "picture has NaN or infinities"),
        (np.zeros((24, 32, 3)), r"this one is \(24, 32, 3\). Pass for example picture.transpose\(2, 0, 1\)"),
        ("cat.jpg", r"picture is a tensor or an array \(C, H, W\) in \[0, 1\] or a PIL image, not str"),
        (
            Image.new("RGB", (40, 24)),
            r"is 40 x 24 pixels, the model's input 32 x 24, another shape. Pass window=\(left",
        ),
    ],
)
def test_what_is_no_picture(found: Attribution, picture: Any, says: str) -> None:
    with pytest.raises(fxgrad.InputError, match=says):
        found.plot(picture=picture)


def test_what_the_messages_say_works(found: Attribution) -> None:
    colours = torch.rand(24, 32, 3)
    for picture in (colours.permute(2, 0, 1), (colours.permute(2, 0, 1) * 255) / 255, torch.rand(2, 3, 24, 32)[0]):
        found.plot(picture=picture)
    found.plot(picture=Image.new("RGB", (40, 24)), window=(0, 0, 40, 24))
    with pytest.raises(
        fxgrad.InputError, match=r"window is \(left, top, right, bottom\) in a picture of 40 x 24 pixels"
    ):
        found.plot(picture=Image.new("RGB", (40, 24)), window=(40, 0, 50, 24))


def test_colormaps_and_their_numbers(found: Attribution) -> None:
    """The colour of a pixel is the colormap's at the place of its value on the scale."""
    map = torch.linspace(-1, 3, 24 * 32).reshape(1, *SIZE)
    figure = replace(found, map=map, output=found.output[:1], maps={}).plot(cmap="viridis", clip=None)
    axes, bar = figure.axes[0], figure.axes[0].child_axes[0]
    shown = axes.images[-1]
    wanted = matplotlib.colormaps["viridis"]((map[0].numpy() + 3) / 6)
    assert np.allclose(shown.cmap(shown.norm(shown.get_array())), wanted, atol=0.01)
    assert [label.get_text() for label in bar.get_yticklabels()] == ["3", "0", "-3"]
    positive = replace(found, map=map.abs() + 0.5).plot(scale=2.0)
    bar = positive.axes[0].child_axes[0]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["≥ 2", "0"] and bar.get_ylim() == (0, 2)
    with pytest.raises(fxgrad.InputError, match=r"no colormap 'rainbows'. It has RdBu_r, PuOr"):
        found.plot(cmap="rainbows")


def test_one_scale_for_what_is_compared(found: Attribution) -> None:
    maps = [found.map[0], 3 * found.map[0]]
    scale = drawing.full_at(maps, None)
    assert scale == pytest.approx(3 * float(found.map[0].abs().max()))
    weaker, stronger = (replace(found, map=m[None]).plot(scale=scale).axes[0].images[-1].get_alpha() for m in maps)
    assert np.allclose(3 * weaker, stronger, atol=1e-6) and stronger.max() == pytest.approx(1)


def test_on_axes_of_ones_own(found: Attribution, tmp_path: Path) -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert found.plot(ax=left, title="mine") is left and found.plot(ax=right, colorbar=False) is right
    assert left.get_title(loc="left") == "mine" and left.images and right.images
    assert left.child_axes and not right.child_axes
    assert found.plot(size=8).get_size_inches()[0] == 8


def test_text_stays_text(found: Attribution, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.pdf", "b.pdf", "a.png", "b.png"):
        found.plot(tmp_path / name, title="a $5 bill")
    svg = (tmp_path / "a.svg").read_text("utf-8")
    assert re.search(r"<text[^>]*>a \$5 bill</text>", svg) and "completeness error" in svg
    pdf = (tmp_path / "a.pdf").read_bytes()
    streams = [zlib.decompress(s) for s in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S) if s[:1] == b"x"]
    whole = pdf + b"".join(streams)
    assert b"/FontFile2" in whole and b"/CIDFontType2" in whole and b"/Type3" not in whole
    for ending in ("svg", "pdf", "png"):  # the same figure gives the same file
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_settings_of_matplotlib_stay(found: Attribution, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    found.plot(tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


def test_everything_has_its_name_in_words() -> None:
    assert set(words.METHODS) == set(METHODS) and set(words.POLICIES) == set(presets())
    assert words.method_in_words("fullgrad_plus") == "FullGrad+" and words.method_in_words("tokentm") == "TokenTM"
    assert words.method_in_words("my_own") == "my own" and words.policy_in_words("mine") == "mine"


def test_notebooks_show_the_picture(found: Attribution) -> None:
    bundle = found._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG") and bundle["text/plain"] == repr(found)
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    ids = torch.tensor([[1, 5, 2]])
    text = fxgrad.attribute(fxgrad.convert(tokens, (ids,)), (ids,), target=1)._repr_mimebundle_()
    assert text["text/html"].count("<span") == 3 and "image/png" not in text


def test_a_figure_shows_once(found: Attribution) -> None:
    """Without pyplot, by its own picture; with it, it is none of the figures that pyplot shows at a cell's end."""
    figure = found.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    from matplotlib import pyplot

    assert not pyplot.get_fignums()
    found.plot()
    assert not pyplot.get_fignums()
