"""Weights of an ONNX file in fewer bits: kept as float16 or int8, used as float32.

Forward and backward read the same rounded weights, so the attribution is exactly that of the model with these weights:
it is as complete as before, and its distance to the original's is that of the two models.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHTS = ("float32", "float16", "int8")
"""How the weights of a float32 model may be kept."""
LEAST = 1024
"""Smaller tensors stay as they are, and so do those with one axis: biases, norms."""


def compact(model: Any, weights: str) -> None:
    """Keep the large float32 tensors of a model in another form, in place.

    Args:
        model: onnx.ModelProto.
        weights: "float16"; or "int8", with a scale for each index of the first axis, symmetric about 0.

    Example:
        >>> from onnx import helper, numpy_helper, TensorProto
        >>> value = numpy_helper.from_array(np.ones((64, 32), np.float32), "w")
        >>> out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 32])
        >>> graph = helper.make_graph([helper.make_node("Neg", ["w"], ["y"])], "g", [], [out], [value])
        >>> model = helper.make_model(graph)
        >>> compact(model, "int8")
        >>> [node.op_type for node in model.graph.node], [tensor.dims[0] for tensor in model.graph.initializer]
        (['DequantizeLinear', 'Neg'], [64, 64])

    Source: ONNX operator DequantizeLinear; Jacob et al., arXiv:1712.05877, section 2, for the scales.
    """
    from onnx import TensorProto, helper, numpy_helper

    kept, nodes, known = [], [], dict[bytes, str]()
    for tensor in model.graph.initializer:
        large = len(tensor.dims) > 1 and np.prod(tensor.dims) >= LEAST and tensor.data_type == TensorProto.FLOAT
        value = numpy_helper.to_array(tensor) if large else np.empty(0, np.float32)
        if not large or not _fits(value, weights):
            kept.append(tensor)
            continue
        if (turned := known.get(_digest(value.T))) is not None:  # the exporter keeps some weights both ways
            nodes.append(helper.make_node("Transpose", [turned], [tensor.name]))
            continue
        known[_digest(value)] = tensor.name
        stored = f"{tensor.name}.{weights}"
        if weights == "float16":
            kept.append(numpy_helper.from_array(value.astype(np.float16), stored))
            nodes.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
            continue
        rounded, scale = rounded_to_int8(value)
        kept += [numpy_helper.from_array(rounded, stored), numpy_helper.from_array(scale, f"{tensor.name}.scale")]
        nodes.append(helper.make_node("DequantizeLinear", [stored, f"{tensor.name}.scale"], [tensor.name], axis=0))
    others = list(model.graph.node)
    for field, items in ((model.graph.initializer, kept), (model.graph.node, nodes + others)):
        del field[:]
        field.extend(items)


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
