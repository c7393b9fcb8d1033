"""The linear map of a converted model: plain Jacobians, plain autograd, and matrices made by hand are the witnesses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from helpers import language_models
from torch import Tensor, nn

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.flows.linear import LinearMap
from fxgrad.run.recording import Recorder


class Recurrent(nn.Module):
    """An LSTM in both directions, and a head that reads its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def picture(model: nn.Module, side: int = 16) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    randomize(model)
    return model.double().eval().requires_grad_(False), (torch.randn(1, 3, side, side).double(),), {}


def text(name: str) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    kwargs = {"input_ids": torch.tensor([[5, 9, 33, 7]]), "use_cache": False}
    return (
        language_models.model(name),
        (),
        kwargs | ({"decoder_input_ids": torch.tensor([[0, 4]])} if name == "t5" else {}),
    )


def last(output: Any) -> Tensor:
    return output.logits[0, -1]


SMALL = {"img_size": 16, "patch_size": 4, "num_classes": 6}
MODELS: dict[str, Callable[[], Any]] = {
    "vit": lambda: picture(timm.models.VisionTransformer(**SMALL, embed_dim=12, depth=2, num_heads=2)),
    "swin": lambda: picture(
        timm.models.SwinTransformer(
            **{**SMALL, "patch_size": 2}, window_size=4, embed_dim=8, depths=(2, 1), num_heads=(2, 2)
        )
    ),
    "convnext": lambda: picture(timm.models.ConvNeXt(num_classes=6, depths=(1, 1, 1, 1), dims=(4, 6, 8, 8)), 32),
    "mixer": lambda: picture(timm.models.MlpMixer(**SMALL, num_blocks=2, embed_dim=12)),
    "llama": lambda: text("llama"),
    "gpt2": lambda: text("gpt2"),
    "t5": lambda: text("t5"),
    "mamba": lambda: text("mamba"),
    "lstm": lambda: (Recurrent().double().eval(), (torch.randn(1, 6, 5).double(),), {}),
}


def mapped(name: str, **options: Any) -> tuple[fxgrad.ConvertedModule, LinearMap, Any]:
    torch.manual_seed(0)
    model, args, kwargs = MODELS[name]()
    converted = fxgrad.convert(model, args, kwargs)
    outputs = last if kwargs else None
    return converted, fxgrad.linear_map(converted, args, kwargs, outputs=outputs, **options), (args, kwargs, outputs)


def by_autograd(converted: fxgrad.ConvertedModule, call: Any) -> Tensor:
    """The matrix by plain autograd on the rewritten module, one output at a time."""
    args, kwargs, outputs = call
    entries = converted.entries(args, kwargs)
    leaves = [e.detach().requires_grad_() if e.is_floating_point() else e for e in entries if isinstance(e, Tensor)]
    values = iter(leaves)
    found = converted.run([next(values) if isinstance(e, Tensor) else e for e in entries])
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    lines = found.flatten() if outputs is None else outputs(found)
    rows = [torch.autograd.grad(y, wanted, retain_graph=True) for y in lines]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@pytest.mark.parametrize("name", MODELS)
def test_every_product_is_that_of_the_matrix_by_plain_autograd(name: str) -> None:
    converted, W, call = mapped(name)
    wanted = by_autograd(converted, call)
    rounding = 1e-6 if name in language_models.IN_FLOAT32 else 1e-12  # norms that are computed in float32
    near = {"rtol": rounding, "atol": rounding * float(wanted.abs().max())}
    assert W.shape == wanted.shape and W.residual <= rounding
    torch.testing.assert_close(W.dense(), wanted, **near)
    x, g = torch.randn(W.shape[1], 3).double(), torch.randn(W.shape[0], 2).double()
    for found, other in ((W @ x, wanted @ x), (W @ x[:, 0], wanted @ x[:, 0]), (W.T @ g, wanted.T @ g)):
        torch.testing.assert_close(found.double(), other, rtol=0, atol=10 * rounding * float(other.abs().max()))
    torch.testing.assert_close(W.column(-1).double(), wanted[:, -1], **near)
    torch.testing.assert_close(W.rows([2, 0]), wanted[[2, 0]], **near)
    torch.testing.assert_close(W.b.double(), W.value - wanted @ W.x, rtol=0, atol=rounding * float(W.value.abs().max()))
    assert W._passes._tape is not None  # products came from two backward passes, and not from the rows


PLAIN: dict[str, Any] = {
    "mlp": (nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 9), nn.LeakyReLU(), nn.Linear(9, 4)), (1, 5)),
    "convnet": (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten()),
        (1, 2, 8, 8),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_of_a_piecewise_linear_model_it_is_the_plain_jacobian(name: str) -> None:
    model, shape = PLAIN[name]
    model, x = model.double().eval(), torch.randn(shape).double()
    W = fxgrad.linear_map(fxgrad.convert(model, (x,)), (x,))
    wanted = torch.autograd.functional.jacobian(model, x).reshape(W.shape)
    torch.testing.assert_close(W.dense(), wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(W @ x.flatten() + W.b, model(x).flatten(), rtol=1e-12, atol=1e-14)


def test_biases_have_the_names_and_the_values_of_the_parameters() -> None:
    """Of a linear model, by hand."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double().eval()
    W = fxgrad.linear_map(fxgrad.convert(model, torch.ones(1, 3).double()), torch.ones(1, 3).double())
    assert list(W.biases) == ["0.bias", "1.bias"]
    torch.testing.assert_close(W.biases["0.bias"], model[1].weight @ model[0].bias)
    torch.testing.assert_close(W.biases["1.bias"], model[1].bias.detach())


PLACES = ["patch_embed", "blocks.0", "blocks.0.attn", "blocks.1.mlp.act", "blocks.1", "norm"]


@pytest.mark.parametrize("place", PLACES)
def test_from_a_place_on(place: str) -> None:
    """By plain autograd at a leaf that stands in the place; what passes by adds up, too."""
    converted, W, (args, *_) = mapped("vit", wrt=place)
    (name,) = W.parts(W.x)
    leaf = W.x.reshape(W.parts(W.x)[name].shape).clone().requires_grad_()
    run = Recorder(converted.program, (), {name: leaf})
    (y,) = converted.called(run.run, converted.entries(args, None))
    wanted = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in y[0]])
    torch.testing.assert_close(W.dense(), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(W @ torch.ones_like(W.x), wanted.sum(1), rtol=1e-12, atol=1e-12)
    assert W.residual < 1e-12
    assert ("x" in W.biases) == (place in ("blocks.0.attn", "blocks.1.mlp.act"))  # the residual stream goes past these


def test_several_outputs_and_inputs() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, n: int, b: Tensor) -> dict[str, Any]:
            return {"count": n, "ids": torch.ones(1, dtype=torch.int64), "sum": a.tanh() + b, "product": a * b}

    a, b = torch.randn(1, 3).double(), torch.randn(1, 3).double()
    converted = fxgrad.convert(Two().eval(), (a, 2, b))
    W = fxgrad.linear_map(converted, (a, 2, b))
    assert {k: v.shape for k, v in W.parts(W.x).items()} == {"a": (1, 3), "b": (1, 3)}
    torch.testing.assert_close(W.dense(), torch.cat([torch.diag((a.tanh() / a)[0]), torch.eye(3).double()], 1))
    product = fxgrad.linear_map(
        converted, (a, 2, b), outputs=lambda out: out["product"][0, :1] - 2 * out["sum"][0, 1:2]
    )
    wanted = torch.tensor([[b[0, 0] / 2, -2 * a[0, 1].tanh() / a[0, 1], 0, a[0, 0] / 2, -2, 0]])
    torch.testing.assert_close(product.dense(), wanted)
    torch.testing.assert_close(product.row(0), wanted[0])


@pytest.mark.parametrize("name", ["vit", "gpt2", "lstm"])
@pytest.mark.parametrize("dense", [False, True])
def test_singular_vectors_are_those_of_the_matrix(name: str, dense: bool) -> None:
    _, W, _ = mapped(name)
    rank = 2 if name == "lstm" else 5
    U, S, Vh = W.svd(rank, dense=dense)
    wanted = torch.linalg.svd(W.dense(), full_matrices=False)
    torch.testing.assert_close(S, wanted.S[:rank], rtol=1e-10, atol=0)
    torch.testing.assert_close(U * S @ Vh, (wanted.U * wanted.S)[:, :rank] @ wanted.Vh[:rank], rtol=1e-8, atol=1e-9)
    assert (U.gather(0, U.abs().argmax(0)[None]) > 0).all()


def test_singular_vectors_in_float32_are_those_in_float64() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(40, 80), nn.GELU(), nn.Linear(80, 70)).eval(), torch.randn(1, 40)
    found = fxgrad.linear_map(fxgrad.convert(model, (x,)), (x,)).svd(3)
    wanted = fxgrad.linear_map(fxgrad.convert(model.double(), (x.double(),)), (x.double(),)).svd(3)
    torch.testing.assert_close(found.S, wanted.S, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.Vh, wanted.Vh, rtol=0, atol=1e-4)


def test_more_singular_vectors_than_there_are() -> None:
    _, W, _ = mapped("lstm")
    assert W.svd(3).U.shape == (3, 3)
    with pytest.raises(fxgrad.InputError, match=r"a map of shape \(3, 30\) has 1 to 3 singular vectors, not 4"):
        W.svd(4)


class Double(torch.autograd.Function):
    """Doubles; of its backward, `share` can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float | None) -> Tensor:
        ctx.share = share
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return 2 * g.detach() + (0 if ctx.share is None else ctx.share * 2 * (g - g.detach())), None


@pytest.mark.parametrize("share", [None, 0.0, 0.9, 1.0])
def test_by_rows_where_a_backward_cannot_be_differentiated(share: float | None) -> None:
    """Of many inputs, of which random ones hide in <g, W v> what is lost."""
    model, x = (
        nn.Sequential(nn.Linear(4000, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval(),
        torch.randn(1, 4000).double(),
    )
    W = fxgrad.linear_map(fxgrad.convert(model, (x,)), (x,))
    own = W._passes._runs.recorded()
    own._outputs = [Double.apply(v, share) for v in own._outputs]
    v = torch.randn(4000, 2).double()
    torch.testing.assert_close(W @ v, W.dense() @ v, rtol=1e-12, atol=1e-14)
    assert (W._passes._tape is None) == (share != 1)


def test_refusals() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).eval(), torch.randn(2, 4)
    converted = fxgrad.convert(model, (x,))
    with pytest.raises(fxgrad.InputError, match="that of one example, and the inputs have 2"):
        fxgrad.linear_map(converted, (x,))
    for outputs in (lambda y: y.softmax(-1)[0], lambda y: y[0] + 1, lambda y: y[0].square()):
        with pytest.raises(fxgrad.InputError, match="no linear function"):
            fxgrad.linear_map(converted, (x[:1],), outputs=outputs)
    for outputs in (lambda y: y, lambda y: 3, lambda y: torch.ones(2)):
        with pytest.raises(fxgrad.InputError, match=r"returns a tensor \(k,\)"):
            fxgrad.linear_map(converted, (x[:1],), outputs=outputs)
    with pytest.raises(fxgrad.InputError, match=r"no layer 'head'"):
        fxgrad.linear_map(converted, (x[:1],), wrt="head")
    W = fxgrad.linear_map(converted, (x[:1],))
    for wrong in (torch.ones(3), torch.ones(1, 4), 2.0):
        with pytest.raises(fxgrad.InputError, match=r"the map takes \(4,\) or \(4, m\)"):
            W @ wrong  # type: ignore[operator]
    with pytest.raises(fxgrad.InputError, match="there is no output 3: the map has 3"):
        W.row(3)
    with pytest.raises(fxgrad.InputError, match="there is no element of the input -5"):
        W.column(-5)
    assert W.rows([]).shape == (0, 4) and (W @ torch.ones(4, 0)).shape == (3, 0)


def test_an_output_that_cannot_be_balanced_is_refused_once_it_is_asked_for() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.softmax(-1), 2 * x

    x = torch.randn(1, 3)
    converted = fxgrad.convert(Both().eval(), (x,))
    assert fxgrad.linear_map(converted, (x,), outputs=lambda y: y[1][0]).residual < 1e-6
    with pytest.raises(fxgrad.NotBalanceableError):
        fxgrad.linear_map(converted, (x,)).row(0)
