"""Every layer that torch.nn, timm.layers and torchvision.ops publish converts, or is refused for a reason.

The classes come from the lists that those packages publish: one that a new release adds has no recipe in
layer_recipes.py, and fails by name until it gets one. Recurrent and attention layers, and functions that no
layer calls, follow.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
import torchvision.ops
from timm.layers import create_act, create_norm, create_norm_act, get_attn
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import fxgrad
from tests.helpers.layer_recipes import ATTN, TIMM, TORCH, VISION, Called, Recipe, Recipes, Several

FAMILIES = "activation normalization pooling batchnorm instancenorm padding upsampling distance pixelshuffle "
FAMILIES += "channelshuffle fold flatten linear conv rnn sparse transformer dropout"
NO_LAYERS = "loss adaptive container"


def published(families: str) -> list[str]:
    """What these modules of torch.nn.modules list as theirs."""
    modules = [importlib.import_module(f"torch.nn.modules.{family}") for family in families.split()]
    return [name for module in modules for name in module.__all__]


def layers_of(package: Any, names: list[str]) -> dict[str, Any]:
    """The layers among these names, each once."""
    named = {name: getattr(package, name) for name in names}
    layers = {name: c for name, c in named.items() if isinstance(c, type) and issubclass(c, nn.Module)}
    return {name: c for c, name in {c: name for name, c in sorted(layers.items(), reverse=True)}.items()}


TORCH_LAYERS = layers_of(nn, published(FAMILIES))
VISION_LAYERS = layers_of(torchvision.ops, torchvision.ops.__all__)
TIMM_LAYERS = layers_of(timm.layers, list(vars(timm.layers)))
TABLES = [*create_act._ACT_LAYERS, create_norm._NORM_MAP, create_norm_act._NORM_ACT_MAP]
"""Layers by the names that configurations use."""
TIMM_LAYERS |= {c.__name__: c for table in TABLES for c in table.values() if c.__module__.startswith("timm")}
ATTN_LAYERS = {name: get_attn(name) for name in re.findall(r"attn_type == '(\w+)'", inspect.getsource(get_attn))}


def randomized(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with parameters and running statistics that are not the trivial ones."""
    module = module.double().eval().requires_grad_(False)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
            # Numbers that float32 can hold, as weights are: timm resamples position embeddings in that.
            tensor.copy_((tensor + 0.3 * fan_in**-0.5 * torch.randn_like(tensor)).float())
    return module


class Multiplier(nn.Module):
    """x times what a layer makes of it."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def passes(module: nn.Module, inputs: tuple[Any, ...], bound: float = 1e-10, **kwargs: Any) -> None:
    converted = fxgrad.convert(module.eval(), inputs, kwargs)
    report = fxgrad.check(converted, inputs, kwargs, original=module)
    assert report.forward_identical, report
    assert report.passed and report.completeness_error <= bound, report


def built(cls: Any, recipe: Recipe) -> tuple[nn.Module, tuple[Any, ...]]:
    inputs = tuple(torch.randn(i).double() if isinstance(i, tuple) else i for i in recipe.inputs)
    module = recipe.build(cls).double().eval()
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        module(*inputs)  # lazy layers learn their shapes
    return randomized(module), inputs


@dataclass
class Batch:
    """Layers side by side in one graph: a dozen at once is captured in little more time than one."""

    members: list[tuple[Any, Recipe]]

    @functools.cached_property
    def converted(self) -> tuple[nn.Module, list[Any], Any, fxgrad.ConvertedModule | None]:
        torch.manual_seed(0)
        pairs = [built(cls, recipe) for cls, recipe in self.members]
        module = Several([module for module, _ in pairs], [len(inputs) for _, inputs in pairs]).eval()
        inputs = tuple(i for _, inputs in pairs for i in inputs)
        with torch.no_grad(), contextlib.suppress(fxgrad.FxgradError):
            return module, inputs, module(*inputs), fxgrad.convert(module, inputs)
        return module, inputs, None, None

    def passes(self, cls: Any, recipe: Recipe) -> bool:
        """Whether this layer's output, for itself, is complete; False too where any other is at fault."""
        module, inputs, outputs, converted = self.converted
        if converted is None:
            return False
        mine = self.members.index((cls, recipe))
        cotangent = [
            tree_map(
                lambda v, i=i: (
                    torch.randn_like(v) if i == mine and isinstance(v, Tensor) and v.is_floating_point() else None
                ),
                output,
            )
            for i, output in enumerate(outputs)
        ]
        report = fxgrad.check(converted, inputs, original=module, cotangent=cotangent, tolerance=recipe.bound)
        return report.passed


def cases(recipes: Recipes, layers: dict[str, Any]) -> list[Any]:
    """One case per class; a class without a recipe gets a case that fails."""
    found = {name: recipes.get(name) for name in layers}
    plain = [(layers[name], r) for name, r in found.items() if r is not None and not r.skip and not r.error]
    together = [Batch(plain[i : i + 12]) for i in range(0, len(plain), 12)]
    batches = {cls: batch for batch in together for cls, _ in batch.members}
    return [pytest.param(cls, found[name], batches.get(cls), id=name) for name, cls in layers.items()]


def examine(cls: Any, recipe: Recipe | None, batch: Batch | None) -> None:
    assert recipe is not None, f"{cls.__module__}.{cls.__name__} is new: add a recipe for it to layer_recipes.py"
    if recipe.skip:
        pytest.skip(recipe.skip)
    if batch and batch.passes(cls, recipe):
        return
    module, inputs = built(cls, recipe)
    if recipe.error:
        with pytest.raises(recipe.error):
            fxgrad.convert(module, inputs)
        if recipe.multiplies:
            passes(Multiplier(module), inputs, recipe.bound)
    else:
        passes(module, inputs, recipe.bound)


@pytest.mark.parametrize(("cls", "recipe", "batch"), cases(TORCH, TORCH_LAYERS))
def test_torch_nn(cls: Any, recipe: Recipe | None, batch: Batch | None) -> None:
    examine(cls, recipe, batch)


@pytest.mark.parametrize(("cls", "recipe", "batch"), cases(TIMM, TIMM_LAYERS))
def test_timm_layers(cls: Any, recipe: Recipe | None, batch: Batch | None) -> None:
    examine(cls, recipe, batch)


@pytest.mark.parametrize(
    ("cls", "recipe", "batch"), cases(ATTN, {n: c for n, c in ATTN_LAYERS.items() if c not in TIMM_LAYERS.values()})
)
def test_timm_attn(cls: Any, recipe: Recipe | None, batch: Batch | None) -> None:
    examine(cls, recipe, batch)


@pytest.mark.parametrize(("cls", "recipe", "batch"), cases(VISION, VISION_LAYERS))
def test_torchvision_ops(cls: Any, recipe: Recipe | None, batch: Batch | None) -> None:
    examine(cls, recipe, batch)


def test_no_layer_is_left_out() -> None:
    everything = layers_of(nn, [name for name in nn.modules.__all__ if name != "Module"])
    assert everything.keys() <= {*published(FAMILIES), *published(NO_LAYERS)}, "a new family of layers in torch.nn"
    tabled = {c for table in TABLES for c in table.values()}
    assert tabled <= {*TORCH_LAYERS.values(), *TIMM_LAYERS.values(), *VISION_LAYERS.values()}
    assert len(ATTN_LAYERS) > 15


class Attend(nn.Module):
    """What MultiheadAttention makes of its inputs, without the weights that it may return beside."""

    def __init__(self, options: dict[str, Any], call: dict[str, Any]) -> None:
        super().__init__()
        self.attention, self.call = nn.MultiheadAttention(8, 2, **options), call

    def forward(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        return self.attention(q, q if k is None else k, q if v is None else v, **self.call)[0]


# The options of MultiheadAttention, and of its call. Three steps, two sequences.
NO_WEIGHTS = {"need_weights": False}
LOOK = torch.tensor([[True, False, False], [False, True, False], [False, False, False]])
LATER = torch.ones(3, 3).triu(1).bool()
SCORES = torch.linspace(-1, 1, 9).reshape(3, 3).double()
ATTENTIONS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "weights": [({}, {}), ({}, NO_WEIGHTS), ({}, {"average_attn_weights": False}), ({"batch_first": True}, NO_WEIGHTS)],
    "biases": [
        ({"bias": False}, {}),
        ({"add_bias_kv": True}, NO_WEIGHTS),
        ({"add_zero_attn": True}, NO_WEIGHTS),
        ({"add_zero_attn": True, "add_bias_kv": True}, {}),
    ],
    "masks": [
        ({}, {"attn_mask": LOOK, **NO_WEIGHTS}),
        ({}, {"attn_mask": SCORES, **NO_WEIGHTS}),
        ({}, {"attn_mask": SCORES}),
        ({}, {"attn_mask": LATER, "is_causal": True, **NO_WEIGHTS}),
        ({}, {"key_padding_mask": LOOK[:2], **NO_WEIGHTS}),
        ({"batch_first": True}, {"key_padding_mask": LOOK[:2], "attn_mask": LOOK}),
    ],
    "other keys and values": [({"kdim": 6, "vdim": 5}, NO_WEIGHTS), ({"kdim": 6, "vdim": 5, "batch_first": True}, {})],
}


@pytest.fixture
def no_fastpath() -> Iterator[None]:
    """Layers as they are written: without the fused kernel that PyTorch puts in their place for inference."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.usefixtures("no_fastpath")
@pytest.mark.parametrize("name", ATTENTIONS)
def test_multihead_attention(name: str) -> None:
    inputs: list[Tensor] = []
    counts = []
    for options, _ in ATTENTIONS[name]:
        widths = [8, options["kdim"], options["vdim"]] if "kdim" in options else [8]
        axes = (2, 3) if options.get("batch_first") else (3, 2)
        inputs += [torch.randn(*axes, width).double() for width in widths]
        counts.append(len(widths))
    module = Several([Attend(*options) for options in ATTENTIONS[name]], counts)
    passes(randomized(module), tuple(inputs))


def test_attention_weights_as_an_output_are_refused() -> None:
    """Beside them, the attended values are balanced."""
    attention = nn.MultiheadAttention(8, 2).double().eval()
    inputs = tuple(torch.randn(3, 2, 8).double().requires_grad_() for _ in range(3))
    converted = fxgrad.convert(attention, inputs)
    report = fxgrad.check(converted, inputs, original=attention)
    assert report.passed and report.completeness_error < 1e-13 and report.left_out == ("output[1]",)
    with pytest.raises(fxgrad.NotBalanceableError, match=r"aten\.softmax\.int"):
        converted(*inputs)[1].sum().backward()


SMALL = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "batch_first": True}
PADDED = torch.tensor([[False, False, False, True], [False, False, False, False]])
TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "TransformerEncoder, TransformerEncoderLayer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**SMALL), 1, nn.LayerNorm(8)),
        ((2, 4, 8),),
        {"src_key_padding_mask": PADDED},
    ),
    "TransformerDecoder, TransformerDecoderLayer": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**SMALL, norm_first=True, activation="gelu"), 1),
        ((2, 3, 8), (2, 4, 8)),
        {"tgt_mask": LATER, "tgt_is_causal": True, "memory_key_padding_mask": PADDED},
    ),
    "Transformer": (
        lambda: nn.Transformer(**SMALL, num_encoder_layers=1, num_decoder_layers=1),
        ((2, 4, 8), (2, 3, 8)),
        {"tgt_mask": LATER, "tgt_is_causal": True},
    ),
}


@pytest.mark.usefixtures("no_fastpath")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer(name: str) -> None:
    build, shapes, call = TRANSFORMERS[name]
    passes(randomized(build()), tuple(torch.randn(shape).double() for shape in shapes), **call)


def test_every_transformer_is_tested() -> None:
    assert set(published("transformer")) == set(", ".join(TRANSFORMERS).split(", "))


def test_the_fast_path_computes_the_same() -> None:
    """PyTorch's fused kernel for whole encoder layers rounds otherwise than the layers as they are written."""
    module, x = nn.TransformerEncoderLayer(**SMALL).double().eval(), torch.randn(2, 4, 8).double()
    with torch.no_grad():
        torch.testing.assert_close(fxgrad.convert(module, (x,))(x), module(x), rtol=1e-12, atol=1e-12)


def test_a_layer_of_packed_sequences() -> None:
    """torch.export takes their lengths for data that the control flow depends on; here they are the example's."""

    class Packed(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            packed = nn.utils.rnn.PackedSequence(x, torch.tensor([2, 2, 2, 1, 1]))
            return super().forward(packed)[0].data

    passes(Packed(3, 4).double(), (torch.randn(8, 3).double(),), 1e-12)


def spectrum(x: Tensor) -> Tensor:
    return torch.stft(x.flatten(1), 8, 4, window=torch.hann_window(8).to(x), return_complex=True)


FUNCTIONS: dict[str, list[Callable[[Tensor], Any]]] = {
    # Of (2, 4, 6). The first is FNet's mixing of tokens.
    "fourier": [
        lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real,
        lambda x: torch.view_as_real(torch.fft.fft2(x)),
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.linspace(0, 1, 4).double()),
        lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(x.flip(-1)), n=6),
        lambda x: torch.fft.ifft(torch.fft.fft(x)[..., :3], n=6).abs(),
        lambda x: torch.view_as_real(spectrum(x)),
        lambda x: torch.istft(spectrum(x), 8, 4, window=torch.hann_window(8).to(x)),
    ],
    "complex": [
        lambda x: torch.polar(x.abs(), x).real,
        lambda x: torch.complex(x, 2 * x).conj().abs() + torch.complex(x, 2 * x).imag,
        # Rotary embedding.
        lambda x: torch.view_as_real(
            torch.view_as_complex(x.unflatten(-1, (3, 2)))
            * torch.polar(torch.ones(3), torch.arange(3.0)).to(x.dtype.to_complex())
        ),
    ],
    "products": [
        lambda x: torch.tensordot(x, x, dims=([1, 2], [1, 2])),
        lambda x: torch.inner(x, x),
        lambda x: torch.outer(x[:, 0, 0], x[:, 1, 1]),
        lambda x: torch.kron(x, x[:, :1]),
        lambda x: torch.linalg.multi_dot([x[0], x[0].mT, x[1]]),
        lambda x: torch.linalg.vecdot(x, x.flip(-1)),
        lambda x: torch.trace(x[0]),
        lambda x: torch.true_divide(x, 3) + torch.divide(x, x.square() + 1),
    ],
    "statistics": [
        lambda x: (x - torch.std_mean(x, -1, keepdim=True)[1]) / torch.std_mean(x, -1, keepdim=True)[0],
        lambda x: (x - torch.var_mean(x, -1, keepdim=True)[1]) * torch.var_mean(x, -1, keepdim=True)[0].rsqrt(),
        lambda x: F.normalize(x, dim=-1, p=1) + F.normalize(x, dim=1),
        lambda x: x.nanmean(-1),
        lambda x: torch.trapezoid(x, dim=-1) + torch.cumulative_trapezoid(x, dim=1).sum((1, 2))[:, None],
        lambda x: torch.zeros_like(x).scatter_reduce(1, torch.zeros_like(x).long(), x, "mean", include_self=False),
    ],
    "distances": [
        lambda x: torch.exp(-torch.cdist(x, x)) @ x,
        # Vector quantization: the nearest code is a constant, the way to it is not.
        lambda x: x + torch.eye(6).to(x)[torch.cdist(x, torch.eye(6).to(x)).argmin(-1)],
    ],
    "steps": [
        lambda x: x.sign() * x.abs().sqrt(),
        lambda x: x * torch.heaviside(x, torch.full_like(x, 0.5)) + x * (x // 0.75) + (x - x.round()),
        lambda x: x.masked_fill(x > 0.5, 0.25).nan_to_num(),
    ],
    "other names": [
        lambda x: torch.concat([x.negative().absolute().clip(0.1, 2), x.multiply(x).subtract(1)]),
        lambda x: torch.swapaxes(x, 1, 2).moveaxis(1, 2).fliplr().flipud().ravel(),
        lambda x: torch.hstack([*x.hsplit(2), x[:, :2] - x.dsplit(2)[0].sum()]),
        lambda x: torch.dstack([torch.vstack([x, x]), torch.column_stack([x, x])[:, :4].repeat(2, 1, 1)]),
        lambda x: torch.cartesian_prod(x[0, 0], x[1, 0]),
        lambda x: sum(torch.meshgrid(x[0, 0], x[1, 0], indexing="ij")),
        lambda x: torch.broadcast_tensors(x, x[:1])[1] + torch.diff(x, dim=-1).sum(),
    ],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    passes(Called(lambda x: [function(x) for function in FUNCTIONS[name]]), (torch.randn(2, 4, 6).double(),))


def test_quantile() -> None:
    """PyTorch 2.11 cannot export one: then the model is refused."""
    model, x = Called(lambda x: torch.quantile(x, 0.3, dim=-1)).eval(), torch.randn(2, 4, 6).double()
    try:
        torch.export.export(model, (x,))
    except RuntimeError:
        with pytest.raises(fxgrad.CaptureError, match=r"torch\.export cannot trace the model at .*test_layers\.py"):
            fxgrad.convert(model, (x,))
    else:
        passes(model, (x,))


class SpatialTransformer(nn.Module):
    """Reads its input where a layer on that input tells it to."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.where(x.mean((2, 3))).unflatten(-1, (2, 3))
        grid = F.affine_grid(theta, [x.shape[0], 4, 8, 8], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class Deformable(nn.Module):
    """Deformable convolution, version 1 or, with a mask, 2."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.offset, self.mask = nn.Conv2d(4, 18, 3, padding=1), nn.Conv2d(4, 9, 3, padding=1) if masked else None
        self.conv = torchvision.ops.DeformConv2d(4, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.offset(x), self.mask(x).sigmoid() if self.mask else None)


def test_where_to_read_is_held() -> None:
    module = Several([SpatialTransformer(), Deformable(False), Deformable(True)], [1, 1, 1])
    passes(randomized(module), tuple(torch.randn(2, 4, 8, 8).double() for _ in range(3)))
