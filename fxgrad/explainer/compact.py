"""Weights of an ONNX file in fewer bits: kept as float16 or int8, used as float32.

Forward and backward read the same rounded weights, so the attribution is exactly that of the model with these weights:
it is as complete as before, and its distance to the original's is that of the two models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHTS = ("float32", "float16", "int8")
"""How the weights of a float32 model may be kept."""
LEAST = 1024
"""Smaller tensors stay as they are, and so do those with one axis: biases, norms."""


def compact(model: Any, weights: str, originals: Iterable[NDArray[Any]] = ()) -> None:
    """Keep the large float32 tensors of a model in another form, in place.

    Args:
        model: onnx.ModelProto.
        weights: "float16"; or "int8", with a scale for each index of the first axis, symmetric about 0.
        originals: the PyTorch model's weights. The exporter may have transposed some of them, or kept them both ways;
            each is kept once, as in PyTorch, where the first axis has the output channels.

    Example:
        >>> from onnx import helper, numpy_helper, TensorProto
        >>> value = numpy_helper.from_array(np.ones((64, 32), np.float32), "w")
        >>> out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 32])
        >>> graph = helper.make_graph([helper.make_node("Neg", ["w"], ["y"])], "g", [], [out], [value])
        >>> model = helper.make_model(graph)
        >>> compact(model, "int8")
        >>> [node.op_type for node in model.graph.node], [tensor.dims[0] for tensor in model.graph.initializer]
        (['DequantizeLinear', 'Identity', 'Neg'], [64, 64])

    Source: ONNX operator DequantizeLinear; Jacob et al., arXiv:1712.05877, section 2, for the scales.
    """
    from onnx import TensorProto, helper, numpy_helper

    known, done = {_digest(value) for value in originals}, dict[bytes, str]()
    kept, nodes = [], []
    for tensor in model.graph.initializer:
        large = len(tensor.dims) > 1 and np.prod(tensor.dims) >= LEAST and tensor.data_type == TensorProto.FLOAT
        value = numpy_helper.to_array(tensor) if large else np.empty(0, np.float32)
        if not large or not _fits(value, weights):
            kept.append(tensor)
            continue
        turned = value.ndim == 2 and _digest(value) not in known and _digest(value.T) in known
        value = value.T if turned else value
        name = done.get(_digest(value))
        if name is None:
            name = done[_digest(value)] = f"{tensor.name}.used"
            stored, made = _stored(value, name, weights)
            kept += stored
            nodes.append(made)
        nodes.append(helper.make_node("Transpose" if turned else "Identity", [name], [tensor.name]))
    others = list(model.graph.node)
    for field, items in ((model.graph.initializer, kept), (model.graph.node, nodes + others)):
        del field[:]
        field.extend(items)


def _stored(value: NDArray[Any], name: str, weights: str) -> tuple[list[Any], Any]:
    """(the tensors that keep a value, the node that makes float32 of them)."""
    from onnx import TensorProto, helper, numpy_helper

    if weights == "float16":
        tensor = numpy_helper.from_array(value.astype(np.float16), f"{name}.float16")
        return [tensor], helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)
    rounded, scale = rounded_to_int8(value)
    tensors = [numpy_helper.from_array(rounded, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
    return tensors, helper.make_node("DequantizeLinear", [tensor.name for tensor in tensors], [name], axis=0)


def rounded_to_int8(value: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(int8, scale of each index of the first axis): their product is the value, within half a scale.

    Example:
        >>> rounded, scale = rounded_to_int8(np.array([[254.0, 1.0], [0.0, 0.0]], np.float32))
        >>> rounded.tolist(), scale.tolist()
        ([[127, 0], [0, 0]], [2.0, 1.0])
    """
    most = np.abs(value).reshape(len(value), -1).max(1)
    scale = np.where(most > 0, most / 127, 1).astype(np.float32)
    rounded = np.rint(value / scale.reshape(-1, *[1] * (value.ndim - 1)))
    return rounded.astype(np.int8), scale


def _digest(value: NDArray[Any]) -> bytes:
    return hashlib.sha256(str(value.shape).encode() + value.tobytes()).digest()


def _fits(value: NDArray[Any], weights: str) -> bool:
    """Whether the form has these values: no infinity, and in float16 none above 65504."""
    return bool(np.isfinite(value).all() and (weights != "float16" or np.abs(value).max() <= np.finfo(np.float16).max))
