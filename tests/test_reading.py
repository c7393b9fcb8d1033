"""Reading pictures: every mode that Pillow has, against values worked out here; where a model's input lies in them."""

from __future__ import annotations

import colorsys
import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from fxgrad.data.models import load_model
from fxgrad.data.pictures import Preprocessing, preprocessing_of
from fxgrad.errors import InputError
from fxgrad.reading import in_8_bits, open_image, pictures_in, read_image, with_channels

RAMP = np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4)  # 0, 17, ..., 255: exact in 16 bits and as sixteenths
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], -1)
ALPHA = np.where(np.eye(4, dtype=bool), 0, 255).astype(np.uint8)
ON_WHITE = np.where(np.eye(4, dtype=bool)[..., None], 255, COLOURS)
GREY_ON_WHITE = np.where(np.eye(4, dtype=bool), 255, RAMP)
CLEAR = np.dstack([COLOURS, ALPHA])


def luma(colours: np.ndarray) -> np.ndarray:
    """ITU-R BT.601."""
    return colours @ np.array([0.299, 0.587, 0.114])


def lab_of(r: int, g: int, b: int) -> tuple[int, ...]:
    srgb, lab = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    transform = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    return ImageCms.applyTransform(Image.new("RGB", (1, 1), (r, g, b)), transform).getpixel((0, 0))  # type: ignore


def hsv() -> Image.Image:
    pixels = [[[round(255 * v) for v in colorsys.rgb_to_hsv(*(p / 255))] for p in row] for row in COLOURS]
    return Image.frombytes("HSV", (4, 4), np.array(pixels, np.uint8).tobytes())


def paletted(alpha: bool) -> Image.Image:
    """One palette entry for each pixel; with alpha, those on the diagonal are transparent."""
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    image.putdata(range(16))
    image.putpalette(COLOURS.tobytes())
    if alpha:
        image.info["transparency"] = bytes(ALPHA.ravel())
    return image


def of(mode: str, values: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (4, 4), values.tobytes())


CASES: dict[str, tuple[Image.Image, np.ndarray, float]] = {
    "1": (of("L", np.where(RAMP > 99, 255, 0).astype(np.uint8)).convert("1"), np.where(RAMP > 99, 255, 0), 0),
    "L": (of("L", RAMP), RAMP, 0),
    "LA": (of("LA", np.dstack([RAMP, ALPHA])), GREY_ON_WHITE, 0),
    "La": (of("La", np.dstack([RAMP * (ALPHA > 0), ALPHA])), GREY_ON_WHITE, 0),
    "P": (paletted(False), COLOURS, 0),
    "P with transparency": (paletted(True), ON_WHITE, 0),
    "PA": (paletted(True).convert("PA"), ON_WHITE, 0),
    "RGB": (of("RGB", COLOURS), COLOURS, 0),
    "RGBA": (of("RGBA", CLEAR), ON_WHITE, 0),
    "RGBa": (of("RGBa", CLEAR * (ALPHA[..., None] > 0)), ON_WHITE, 0),
    "RGBX": (of("RGBX", np.dstack([COLOURS, RAMP])), COLOURS, 0),
    "CMYK": (of("CMYK", np.dstack([255 - COLOURS, np.zeros((4, 4), np.uint8)])), COLOURS, 0),
    "YCbCr": (of("YCbCr", np.dstack([RAMP, np.full((4, 4, 2), 128, np.uint8)])), np.dstack([RAMP] * 3), 0),
    "LAB": (Image.new("LAB", (4, 4), lab_of(200, 100, 50)), np.tile([200, 100, 50], (4, 4, 1)), 6),
    "HSV": (hsv(), COLOURS, 3),
    "I": (Image.fromarray(RAMP.astype(np.int32) * 257), RAMP, 0),
    "I;16": (of("I;16", RAMP.astype("<u2") * 257), RAMP, 0),
    "I;16L": (of("I;16L", RAMP.astype("<u2") * 257), RAMP, 0),
    "I;16B": (of("I;16B", (RAMP.astype(">u2") * 257).astype(">u2")), RAMP, 0),
    "I;16N": (of("I;16N", RAMP.astype("=u2") * 257), RAMP, 0),
    "F": (Image.fromarray(RAMP.astype(np.float32) / 255), RAMP, 0),
}


def test_all_modes_are_here() -> None:
    assert set(Image.MODES) <= set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_every_mode(case: str) -> None:
    image, wanted, tolerance = CASES[case]
    assert image.mode == case.split()[0]
    colour = np.asarray(with_channels(image, 3)).astype(int)
    expected = wanted if wanted.ndim == 3 else np.dstack([wanted] * 3)
    assert abs(colour - expected).max() <= tolerance
    grey = np.asarray(with_channels(image, 1))
    assert grey.ndim == 2 and abs(grey - luma(expected)).max() <= tolerance + 1
    four = np.asarray(with_channels(image, 4))
    transparent = "A" in case.replace("LAB", "") or "a" in case or "transparency" in case
    assert four.shape == (4, 4, 4)
    assert np.array_equal(four[..., 3], ALPHA if transparent and "YCb" not in case else np.full((4, 4), 255))
    assert in_8_bits(image).mode in ("L", "RGB", "RGBA")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((f"a.{ending}", "RGB") for ending in ("png", "bmp", "tiff", "webp", "ppm", "tga")),
        *((f"a.{ending}", "RGBA") for ending in ("png", "tiff", "webp")),
        *((f"a.{ending}", "P with transparency") for ending in ("png", "gif")),
        *((f"a.{ending}", "P") for ending in ("png", "gif", "tiff", "bmp")),
        *((f"a.{ending}", "1") for ending in ("png", "tiff", "bmp")),
        *(("a.png", case) for case in ("L", "LA", "I;16")),
        *(("a.tiff", case) for case in ("L", "LA", "CMYK", "I;16", "I;16B", "I", "F", "LAB", "RGBX")),
    ],
)
def test_files(tmp_path: Path, name: str, case: str) -> None:
    """What is written to a file and read again is what the mode's own conversion gives."""
    image, _, tolerance = CASES[case]
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    if name.endswith("gif") and "transparency" in case:  # which has one transparent entry
        image = paletted(False)
        image.info["transparency"] = 0
    image.save(tmp_path / name, **options)
    read = np.asarray(with_channels(read_image(tmp_path / name), 3)).astype(int)
    assert abs(read - np.asarray(with_channels(image, 3))).max() <= tolerance


@pytest.mark.parametrize(("mode", "key"), [("L", 0), ("RGB", (0, 0, 255)), ("I;16", 0), ("1", 0)])
def test_a_colour_key_is_transparent(tmp_path: Path, mode: str, key: Any) -> None:
    try:
        CASES[mode][0].save(tmp_path / "a.png", transparency=key)
    except OSError as error:
        pytest.skip(f"this Pillow cannot write it: {error}")
    alpha = np.asarray(read_image(tmp_path / "a.png"))[..., 3]
    wanted = np.full((4, 4), 255)
    wanted[0, : 6 if mode == "1" else 1] = 0
    if mode == "1":
        wanted[:] = np.where(RAMP > 99, 255, 0)
    assert np.array_equal(alpha, wanted)


@pytest.mark.parametrize("case", ["16-bit RGB", "16-bit RGBA"])
def test_sixteen_bits_of_colour(tmp_path: Path, case: str) -> None:
    cv2 = pytest.importorskip("cv2", reason="writes PNGs of 16-bit colour")
    pixels = (COLOURS if case.endswith("RGB") else CLEAR).astype(np.uint16) * 257
    order = [2, 1, 0, 3][: pixels.shape[2]]
    assert cv2.imwrite(str(tmp_path / "a.png"), pixels[..., order])
    assert np.array_equal(
        np.asarray(with_channels(read_image(tmp_path / "a.png"), 3)), ON_WHITE if case.endswith("A") else COLOURS
    )


def test_a_jpeg_in_cmyk(tmp_path: Path) -> None:
    """Adobe's are inverted; a flat colour comes back."""
    for colour in ((200, 30, 90), (255, 255, 255), (0, 0, 0)):
        Image.new("RGB", (16, 16), colour).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
        with Image.open(tmp_path / "a.jpg") as stored:
            assert stored.mode == "CMYK"
        read = read_image(tmp_path / "a.jpg")
        assert read.mode == "RGB" and abs(np.asarray(read).astype(int) - colour).max() <= 3


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores of an upright picture under an orientation: the EXIF standard's table, backwards."""
    return {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: np.rot90(p, -1),
    }[orientation](pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "webp"])
def test_orientations(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = np.kron(np.array([[0, 90, 255], [255, 30, 120]], np.uint8), np.ones((16, 16), np.uint8))
    stored = Image.fromarray(np.ascontiguousarray(_turned(upright, orientation)))
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{ending}", exif=exif)
    read = np.asarray(read_image(tmp_path / f"a.{ending}").convert("L")).astype(int)
    assert read.shape == upright.shape and abs(read - upright).mean() < 4
    assert np.array_equal(np.asarray(open_image(tmp_path / f"a.{ending}").convert("L")), read)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.full((2, 2), 300.0, np.float32), r"float pixels go from 300 to 300, .* black at 0 and white at 1: "),
        (np.array([[-1.0, 1.0]], np.float32), "float pixels go from -1 to 1"),
        (np.array([[0.0, 0.001]], np.float32), "float pixels go from 0 to 0.001"),
        (np.array([[0, 4000]], np.uint16), "16-bit pixels go from 0 to 4000, .* white at 65535: that does not fit"),
        (np.array([[0, 255]], np.int32), "32-bit pixels go from 0 to 255"),
        (np.array([[-5, 70000]], np.int32), "32-bit pixels go from -5 to 70000"),
        (np.array([[0.0, np.nan]], np.float32), "not all finite numbers. Replace NaN"),
        (np.array([[0.0, np.inf]], np.float32), "not all finite numbers"),
    ],
)
def test_pixels_without_a_known_white(tmp_path: Path, pixels: np.ndarray, says: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=f"a.tiff: its {says}|a.tiff: its pixels are {says}") as raised:
        read_image(tmp_path / "a.tiff")
    assert "\n" not in str(raised.value)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.tiff")), pixels, equal_nan=True)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_black_is_a_picture(dtype: type) -> None:
    assert np.asarray(in_8_bits(Image.fromarray(np.zeros((2, 2), dtype)))).max() == 0


def test_twelve_megapixels(tmp_path: Path) -> None:
    """A phone's photograph, upright in its EXIF; explained without a copy in floats."""
    stored = Image.linear_gradient("L").resize((4032, 3024)).convert("RGB")
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(tmp_path / "a.jpg", exif=exif, quality=50)
    start = time.process_time()
    read = read_image(tmp_path / "a.jpg")
    assert read.size == (3024, 4032) and time.process_time() - start < 3
    x = load_model("timm:test_vit").preprocess(read)
    assert x.shape == (1, 3, 160, 160)
    assert x[0, 0].mean(0)[0] > x[0, 0].mean(0)[-1]  # dark is at the top of what is stored, at the right when upright


def test_bits_of_ordinary_pictures_stay(tmp_path: Path) -> None:
    """Pictures of 8 bits without alpha are read as Pillow's own conversion reads them."""
    for case in ("RGB", "L", "1", "P", "CMYK", "YCbCr"):
        image = CASES[case][0]
        assert np.array_equal(np.asarray(with_channels(image, 3)), np.asarray(image.convert("RGB")))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files(tmp_path: Path) -> None:
    """Whatever is cut or flipped in a file, it is read or refused with one line."""
    generator = np.random.default_rng(0)
    for kind, options in (("png", {}), ("jpeg", {}), ("tiff", {}), ("gif", {}), ("webp", {}), ("bmp", {})):
        file = io.BytesIO()
        image = Image.fromarray(np.kron(COLOURS, np.ones((8, 8, 1), np.uint8)))
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(file, kind, exif=exif, **options) if kind in ("png", "jpeg", "webp") else image.save(file, kind)
        whole = file.getvalue()
        for trial in range(40):
            data = bytearray(whole)
            if trial % 2:
                data = data[: generator.integers(len(data))]
            for at in generator.integers(0, max(len(data), 1), 6):
                data[at : at + 1] = bytes([generator.integers(256)])
            (tmp_path / "a").write_bytes(data)
            try:
                read_image(tmp_path / "a")
            except InputError as error:
                assert "\n" not in str(error)


def test_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPEG", "c.txt", "inner/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = pictures_in([tmp_path, tmp_path / "c.txt"])
    assert [path.name for path in found] == ["a.JPEG", "b.png", "c.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder .*empty has no pictures: no file in it ends in \.jpg"):
        pictures_in([tmp_path / "empty"])
    with pytest.raises(InputError, match=r"cannot read the image .*absent.png: No such file"):
        pictures_in([tmp_path / "absent.png"])


def _seen(preprocess: Preprocessing, width: int, height: int) -> tuple[float, ...]:
    """Where the model's input lies in a picture, read off ramps that went through the transform itself."""
    edges = []
    for axis, length in ((1, width), (0, height)):
        ramp = np.linspace(0, 255, length)
        pixels = np.broadcast_to(ramp if axis else ramp[:, None], (height, width)).round().astype(np.uint8)
        out = preprocess.invert(preprocess(Image.fromarray(pixels))).mean(0).double() * 255
        out = out[len(out) // 2] if axis else out[:, out.shape[1] // 2]  # the middle line is nowhere padded
        steps = out.diff(prepend=out[:1]).abs()
        inside = (out > 32) & (out < 224) & (steps > 0) & (steps < 3 * steps[steps > 0].median())  # nothing padded
        index = torch.arange(len(out)).double()[inside]
        slope, offset = np.polyfit(index.numpy(), out[inside].numpy() / 255 * (length - 1) + 0.5, 1)
        edges.append((offset - slope / 2, offset + slope * (len(out) - 0.5)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _timm(**config: Any) -> Preprocessing:
    cfg = {"input_size": (3, 96, 96), "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic", **config}
    return preprocessing_of("a", torch.nn.Identity(), cfg, None)


PREPROCESSINGS = {
    "timm, cropped": _timm(crop_pct=0.875),
    "timm, whole side": _timm(crop_pct=1.0),
    "timm, squashed": _timm(crop_pct=1.0, crop_mode="squash"),
    "timm, padded": _timm(crop_pct=1.0, crop_mode="border"),
    "timm, no square": _timm(crop_pct=0.9, input_size=(3, 64, 128)),
    "no config": preprocessing_of("a", torch.nn.Identity(), {}, (3, 64, 96)),
}


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (333, 333), (1001, 210)])
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_windows(name: str, size: tuple[int, int]) -> None:
    preprocess = PREPROCESSINGS[name]
    seen, said = _seen(preprocess, *size), preprocess.window(*size)
    pixel = max((said[2] - said[0]) / preprocess.size[2], (said[3] - said[1]) / preprocess.size[1])
    assert np.abs(np.subtract(seen, said)).max() < 1.0 * pixel + 1


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_windows_of_open_clip(mode: str) -> None:
    pytest.importorskip("open_clip", reason="the preprocessing is its own")
    from fxgrad.data.open_clip_models import _preprocessing

    config = {"size": 96, "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    visual = SimpleNamespace(preprocess_cfg={**config, "resize_mode": mode, "fill_color": 0})
    preprocess = _preprocessing(cast(Any, SimpleNamespace(clip=SimpleNamespace(visual=visual))))
    assert np.abs(np.subtract(_seen(preprocess, 640, 480), preprocess.window(640, 480))).max() < 6


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "swin_t", "efficientnet_b0"])
def test_windows_of_torchvision(model: str) -> None:
    torchvision = pytest.importorskip("torchvision", reason="the preprocessing is its own")
    from fxgrad.data import torchvision_models

    weights = torchvision.models.get_model_weights(model).DEFAULT
    preprocess = torchvision_models._preprocessing(cast(Any, SimpleNamespace(input_size=None)), weights)
    assert np.abs(np.subtract(_seen(preprocess, 640, 480), preprocess.window(640, 480))).max() < 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViTImageProcessor", {"size": {"height": 96, "width": 96}}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}}),
        ("BitImageProcessor", {"size": {"shortest_edge": 110}, "crop_size": {"height": 96, "width": 96}}),
        ("SiglipImageProcessor", {"size": {"height": 96, "width": 96}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ],
)
def test_windows_of_transformers(name: str, options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="the preprocessing is its own")
    from fxgrad.data.hf_pictures import processed

    preprocess = processed(getattr(transformers, name)(**options), None, 3)
    assert np.abs(np.subtract(_seen(preprocess, 640, 480), preprocess.window(640, 480))).max() < 6
