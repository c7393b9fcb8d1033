"""Run an explainer in onnxruntime: from a picture to its heat map. PyTorch need not be installed.

Preprocessing and class names come from the file's own metadata, as `fxgrad export` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fxgrad.errors import ExportError, one_line
from fxgrad.explainer.files import refuse_other
from fxgrad.methods.words import method_in_words, policy_in_words
from fxgrad.reading import Window, fitted, window_of, with_channels

Array = NDArray[Any]
_DTYPES: dict[str, Any] = {"tensor(float16)": np.float16, "tensor(double)": np.float64}


@dataclass(frozen=True, eq=False)
class HeatMap:
    """The explanation of one target for one picture.

    Attributes:
        logits: (classes,).
        target: index of the explained class.
        attribution: (height, width), in pixels or blocks of pixels; positive values speak for the target.
        completeness_error: None if the explainer does not compute it.
        picture: the model's input before normalization, in [0, 1], (height, width, channels).
        window: where the model's input lies in the picture that was given, in its pixels.
        method, policy: by what it was made.
        pool: side of the blocks that it is summed over, in pixels of the model's input; 1 for a map of patches.
    """

    logits: Array
    target: int
    attribution: Array
    completeness_error: float | None
    picture: Array
    window: Window | None = None
    method: str = ""
    policy: str = ""
    pool: int = 1


class OnnxExplainer:
    """An explainer's .onnx file, loaded into onnxruntime.

    Args:
        path: path of the file.
        threads: number of threads; by default onnxruntime's choice.

    Raises:
        ExportError: onnxruntime is missing, or the file is no explainer that it can load.

    Example:
        >>> import fxgrad, tempfile, torch
        >>> from fxgrad.explainer import export_explainer
        >>> model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval(), torch.zeros(2, 3, 2, 2)
        >>> file = tempfile.mkdtemp() + "/explainer.onnx"
        >>> _ = export_explainer(fxgrad.convert(model, (x,)), (x,), file)
        >>> explainer = OnnxExplainer(file)
        >>> found = explainer(np.ones((5, 3, 2, 2), np.float32), target=np.array([0, 1, 0, 1, 1]))
        >>> found["attribution"].shape, explainer.metadata["method"]
        ((5, 2, 2), 'input_x_gradient')
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError(f'this needs onnxruntime ({error}): pip install "fxgrad[onnx]"') from error
        refuse_other(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(
                f"{path} is no ONNX file that onnxruntime can load: it is damaged, ends too early, or has ops that "
                f"this onnxruntime lacks. Copy or export it again. ({one_line(error)})"
            ) from error
        found = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {key: _parsed(value) for key, value in found.items()}
        if "method" not in found or "inputs" not in found:
            takes, gives = (
                ", ".join(value.name for value in values)
                for values in (self.session.get_inputs(), self.session.get_outputs())
            )
            raise ExportError(
                f"{path} is an ordinary ONNX model, from {takes} to {gives}, without an attribution. Explainers are "
                "made from the PyTorch model: fxgrad export MODEL -o explainer.onnx."
            )
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    @property
    def class_names(self) -> Sequence[str] | None:
        """The name of each class; None if the file has no class names."""
        names: Sequence[str] | None = self.metadata.get("class_names")
        return names

    def __call__(self, *args: Array, **kwargs: Array) -> dict[str, Array]:
        """Run the explainer.

        Args:
            *args, **kwargs: the inputs, in order or by name, as numpy arrays.

        Returns:
            Output name -> value.

        Raises:
            ExportError: onnxruntime refuses the inputs, such as a target out of range.
        """
        given = dict(zip(self.inputs, args)) | kwargs
        try:
            values = self.session.run(None, given)
        except Exception as error:
            if "GatherElements" in str(error):
                raise ExportError(
                    f"there is no such target: {_listed(given.get('target'))}. It holds indices into the logits, from "
                    "0 on."
                ) from error
            raise ExportError(f"onnxruntime cannot run the explainer: {one_line(error)}") from error
        return dict(zip(self.outputs, values))

    def preprocess(self, image: Image.Image) -> Array:
        """A picture of any mode as the model's input, (1, channels, height, width), in the model's dtype.

        Raises:
            ExportError: the file has no preprocessing.
            InputError: the picture's pixels have no known white.
        """
        how = self.metadata.get("preprocessing")
        if not isinstance(how, dict):
            raise ExportError("this explainer does not say how to preprocess a picture: write it with fxgrad export.")
        if how.get("letterbox"):
            raise ExportError("this explainer's model pads its pictures, which is not done here: pass a tensor.")
        channels, height, width = how["size"]
        plain = with_channels(image, channels)
        resized, (left, top) = fitted(*plain.size, how["size"], how["crop"])
        plain = plain.resize(resized, Image.Resampling[how["interpolation"].upper()])
        pixels = np.asarray(plain.crop((left, top, left + width, top + height)), np.float32) / 255
        mean, std = (np.asarray(how[key], np.float32)[:, None, None] for key in ("mean", "std"))
        x: Array = (pixels.reshape(height, width, channels).transpose(2, 0, 1) - mean) / std
        return x[None].astype(_DTYPES.get(self.session.get_inputs()[0].type, np.float32))

    @property
    def policies(self) -> list[str]:
        """The names of the policies in the file, as in the names of its outputs; one if it says no more."""
        return list(self.metadata.get("policies", [self.metadata["policy"]]))

    def explain(self, image: Image.Image, target: int | None = None, policy: str | None = None) -> HeatMap:
        """The heat map of a picture.

        Args:
            image: any picture.
            target: index of the class; by default the one with the largest logit.
            policy: one of `policies`; by default the first.

        Raises:
            ExportError: the explainer does not take pictures and single targets, or there is no such class.
        """
        x = self.preprocess(image)
        if len(self.inputs) != 2 or "targets" in self.metadata:
            raise ExportError(
                f"this explainer takes ({', '.join(self.inputs)}); a picture and one target are not enough."
            )
        found = self(x, np.array([target or 0]))
        top = int(found["logits"][0].argmax())
        if target is None and top:
            target, found = top, self(x, np.array([top]))
        how = self.metadata["preprocessing"]
        picture = (x[0].transpose(1, 2, 0) * np.asarray(how["std"]) + np.asarray(how["mean"])).clip(0, 1)
        policy = policy or self.policies[0]
        if policy not in self.policies:
            raise ExportError(f"the file has no policy {policy!r}; it has {', '.join(self.policies)}.")
        end = f"_{policy}" if "policies" in self.metadata else ""
        method = self.metadata["method"]
        error = found.get(f"completeness_error{end}")
        return HeatMap(
            found["logits"][0],
            target or 0,
            found[f"attribution{end}"][0],
            None if error is None else float(error[0]),
            picture,
            window_of(*image.size, how["size"], how["crop"]),
            method,
            policy,
            int(self.metadata.get("pool", 1)),
        )


def _listed(target: Array | None) -> str:
    return "the target is missing" if target is None else f"target is {target.tolist()!s:.100}"


def _parsed(value: str) -> Any:
    """The parsed value if it is JSON, else the text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def draw(
    found: HeatMap | Sequence[HeatMap], path: str | Path, title: str = "", *, picture: Image.Image | None = None
) -> None:
    """Draw the picture, and beside it the heat map over a faint copy; red speaks for the target, blue against it.

    Args:
        found: one, or one per policy.
        path: of the file to write; its suffix is the format (.png, .pdf, .svg).
        title: above.
        picture: the whole picture that was given; by default the part of it that the model sees.

    Raises:
        InputError: the file cannot be written.
    """
    from fxgrad.methods import drawing
    from fxgrad.methods.photo import photo

    maps = [found] if isinstance(found, HeatMap) else list(found)
    first, size = maps[0], maps[0].picture.shape[:2]
    pixels = first.picture.transpose(2, 0, 1)
    shown = photo(pixels, size) if picture is None else photo(picture, size, first.window)
    wide = 2.8 * (1 + len(maps)) + 0.7 * len(maps) + 0.2
    figure = drawing.Drawing(figsize=(wide, 2.8 * shown.height / shown.width + 0.95), dpi=160, layout="constrained")
    left, *panels = figure.subplots(1, 1 + len(maps))
    drawing.photograph(left, shown)
    for axes, one in zip(panels, maps):
        cell = (one.pool, one.pool) if one.pool > 1 else None
        drawing.panel(axes, one.attribution, size, picture=shown, cell=cell, colorbar=True)
        words = ", ".join(filter(None, (method_in_words(one.method), policy_in_words(one.policy))))
        axes.set_title(words, loc="left", fontsize=10, parse_math=False)
        if one.completeness_error is not None:
            axes.set_xlabel(f"completeness error {one.completeness_error:#.2g}", loc="left", fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", parse_math=False)
    drawing.write(figure, path)
