"""Serve an explainer: a picture goes in, its class and the map of that class come out.

    pip install fastapi uvicorn python-multipart numpy onnxruntime pillow
    EXPLAINER=vit.onnx uvicorn --factory app:create_app
    curl -F picture=@cat.jpg -F target="tabby cat" localhost:8000/explain
    curl -F picture=@cat.jpg localhost:8000/explain.png -o cat.png

Neither torch nor fxgrad is needed. `fxgrad export` wrote the preprocessing and the class names into the file.
"""

from __future__ import annotations

import difflib
import io
import json
import math
import os
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, File, Form, HTTPException, Response, UploadFile
from PIL import Image, ImageOps, UnidentifiedImageError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
DEEP = ("I", "F")  # first letters of Pillow's modes of more than 8 bits a channel


@dataclass
class Explainer:
    """An explainer's file in onnxruntime; runs in several threads at once."""

    session: onnxruntime.InferenceSession
    about: dict[str, Any]

    def run(self, x: np.ndarray, target: int) -> dict[str, np.ndarray]:
        given = {self.session.get_inputs()[0].name: x, "target": np.array([target])}
        return dict(zip((output.name for output in self.session.get_outputs()), self.session.run(None, given)))

    def input(self, picture: Image.Image) -> np.ndarray:
        """The picture as the model takes it, float32 (1, channels, height, width)."""
        how = self.about["preprocessing"]
        channels, height, width = how["size"]
        pixels = np.asarray(fitted(picture.convert(MODES[channels]), how), np.float32) / 255
        mean, std = (np.asarray(how[key], np.float32)[:, None, None] for key in ("mean", "std"))
        return ((pixels.reshape(height, width, channels).transpose(2, 0, 1) - mean) / std)[None]

    def index(self, target: str) -> int:
        """The number of a class, given as a number or as one of the names that commas separate."""
        names = self.about["class_names"]
        if target.isdecimal() and int(target) < len(names):
            return int(target)
        for number, name in enumerate(names):
            if target.lower() in [name.lower(), *(part.strip().lower() for part in name.split(","))]:
                return number
        close = difflib.get_close_matches(target, names, 3)
        raise HTTPException(
            404, f"no class {target!r}; {'close to it: ' + '; '.join(close) if close else 'see /classes'}"
        )


def create_app() -> FastAPI:
    """The service, for the file that the environment variable EXPLAINER names."""
    explainer = load(os.environ["EXPLAINER"])
    app = FastAPI(title=f"fxgrad: {explainer.about.get('model', 'an explainer')}")

    @app.get("/classes")
    def classes() -> list[str]:
        return explainer.about["class_names"]

    @app.post("/explain")
    def explain(picture: Annotated[UploadFile, File()], target: Annotated[str | None, Form()] = None) -> dict[str, Any]:
        return explained(explainer, read(picture), target)[0]

    @app.post("/explain.png")
    def draw(picture: Annotated[UploadFile, File()], target: Annotated[str | None, Form()] = None) -> Response:
        found, x = explained(explainer, read(picture), target)
        return Response(drawn(np.asarray(found["map"]), x, explainer.about["preprocessing"]), media_type="image/png")

    return app


def load(path: str) -> Explainer:
    """Load an explainer of pictures."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = {key: parsed(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    if not {"method", "preprocessing", "class_names"} <= set(about):
        raise SystemExit(f"{path} is no explainer of pictures with class names, as fxgrad export writes one.")
    return Explainer(session, about)


def parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def read(upload: UploadFile) -> Image.Image:
    """The picture of an upload, upright."""
    try:
        picture = ImageOps.exif_transpose(Image.open(upload.file))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise HTTPException(415, f"{upload.filename} is no picture that Pillow can read: {error}") from error
    if picture.mode.startswith(DEEP):
        raise HTTPException(415, f"{upload.filename} has more than 8 bits a channel: its white is unknown.")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:  # what is transparent is laid on white
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture


def fitted(picture: Image.Image, how: dict[str, Any]) -> Image.Image:
    """The picture, resized and cropped in the middle to the model's size."""
    _, height, width = how["size"]
    method = Image.Resampling[how["interpolation"].upper()]
    if how["crop"] is None:
        return picture.resize((width, height), method)
    wide, high = (math.floor(side / how["crop"]) for side in (width, height))
    if wide * picture.height >= high * picture.width:
        picture = picture.resize((wide, int(wide * picture.height / picture.width)), method)
    else:
        picture = picture.resize((int(high * picture.width / picture.height), high), method)
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def explained(explainer: Explainer, picture: Image.Image, target: str | None) -> tuple[dict[str, Any], np.ndarray]:
    """What the service answers, and the model's input."""
    x = explainer.input(picture)
    index = 0 if target is None else explainer.index(target)
    found = explainer.run(x, index)
    best = int(found["logits"][0].argmax())
    if target is None and best:
        index, found = best, explainer.run(x, best)
    maps, errors = ([v for k, v in found.items() if k.startswith(start)] for start in ("attribution", "completeness"))
    answer = {
        "target": index,
        "name": explainer.about["class_names"][index],
        "logit": float(found["logits"][0, index]),
        "completeness_error": float(errors[0][0]) if errors else None,
        "method": explainer.about["method"],
        "policy": explainer.about["policy"],
        "map": maps[0][0].tolist(),
    }
    return answer, x


def drawn(map: np.ndarray, x: np.ndarray, how: dict[str, Any]) -> bytes:
    """A PNG: red speaks for the class, blue against it, over the grey picture."""
    pixels = (x[0].transpose(1, 2, 0) * np.asarray(how["std"]) + np.asarray(how["mean"])).clip(0, 1)
    limit = float(np.quantile(np.abs(map), 0.99)) or 1.0
    large = Image.fromarray((map / limit).clip(-1, 1).astype(np.float32)).resize(
        pixels.shape[1::-1], Image.Resampling.BOX
    )
    strength = np.asarray(large)[..., None]
    colour = np.where(strength > 0, [0.70, 0.09, 0.17], [0.13, 0.40, 0.67])
    paper = 0.6 + 0.4 * pixels.mean(2, keepdims=True)
    found = paper * (1 - np.abs(strength)) + colour * np.abs(strength)
    file = io.BytesIO()
    Image.fromarray((found * 255).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
