"""Attention on a GPU, without one: its choices, the mathematics of its roads, and what PyTorch's kernels take.

The CPU's fused kernel stands for a GPU's, plain PyTorch for the memory-efficient one, Triton's interpreter for its
compiler; and on fake tensors PyTorch checks shapes and arguments of the GPU's own kernels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend

import fxgrad
from fxgrad.ops import fused, fused_triton
from fxgrad.ops.attention import value_only
from fxgrad.ops.fused import ALL, attention, chosen
from fxgrad.ops.kernels import EFFICIENT, KERNELS, Kept, Kernel, Settings
from fxgrad.ops.swapped import SDPA
from tests.helpers import balanced_vit

WIDTH = 8
NONE = torch.empty(0)
FLASH, CUDNN = KERNELS[SDPBackend.FLASH_ATTENTION.value], KERNELS[SDPBackend.CUDNN_ATTENTION.value]
OF_CPU = Kernel(
    "flash_attention_for_cpu",
    "query key value dropout_p is_causal attn_mask scale",
    lambda op, q, k, v, s: (*op(q, k, v, 0.0, s.causal, scale=s.given), NONE, NONE),
    "grad_out query key value out logsumexp dropout_p is_causal attn_mask scale",
    lambda op, kept, g, v, y, s: op(g, *kept[:2], v, y, kept.lse, 0.0, s.causal, scale=s.given)[2],
    groups=True,
)


def textbook(q: Tensor, k: Tensor, g: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """(P^T g summed over the heads that share a key head, the log-sum-exps), in float64."""
    groups = q.shape[1] // k.shape[1]
    scores = scale * q.double() @ k.double().repeat_interleave(groups, 1).mT
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    products = torch.softmax(scores, -1).mT @ g.double()
    return products.unflatten(1, (k.shape[1], groups)).sum(2), scores.logsumexp(-1)


def plain_efficient(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lse: bool, dropout: float, causal: bool, *, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the memory-efficient kernel returns, and what it refuses."""
    assert bias is not None and bias.dtype == q.dtype == v.dtype and bias.stride(-1) == 1 and lse and not dropout
    assert all(stride % 8 == 0 for stride in bias.stride()[:-1]) and bias.shape == (*q.shape[:3], k.shape[2])
    scores = scale * q.float() @ k.float().mT + bias.float()
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    y = (torch.softmax(scores, -1) @ v.float()).to(v.dtype)
    return y, torch.nn.functional.pad(scores.logsumexp(-1), (0, -q.shape[2] % 32)), NONE, NONE


def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        pytest.skip("the interpreter of an older Triton does not run with NumPy 2.4")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(fused_triton, "KERNEL", triton.jit(fused_triton._body))


@pytest.fixture
def _plain_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Kernel.operator
    plain: Callable[..., Any] = lambda kernel, backward=False: (  # noqa: E731
        plain_efficient if kernel is EFFICIENT else operator(kernel, backward)
    )
    monkeypatch.setattr(Kernel, "operator", plain)


CASES = {
    "plain": (2, 1, 37, 37, False),
    "fewer columns": (1, 1, 70, 20, False),
    "causal": (2, 1, 37, 37, True),
    "more columns": (1, 1, 20, 70, False),
    "groups": (1, 3, 20, 37, False),
    "causal groups": (1, 2, 20, 20, True),
    "causal, more columns": (1, 1, 20, 37, True),
}
"""Heads of keys, query heads for each, rows, columns, causal."""


@pytest.mark.usefixtures("_plain_operator")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("road", ALL)
def test_a_road_is_the_gradient_of_the_value(
    road: str, dtype: torch.dtype, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, groups, rows, columns, causal = CASES[case]
    if road == "triton":
        interpreted(monkeypatch)
    if road == "full" and (groups > 1 or (causal and rows != columns)):
        return  # the CPU's kernel takes no groups, and no causal attention of unequal lengths
    if road == "triton" and dtype == torch.bfloat16:
        return  # Triton's interpreter multiplies the bits of bfloat16
    q, k = 2 * torch.randn(2, heads * groups, rows, WIDTH), torch.randn(2, heads, columns, WIDTH)
    q, k = q.to(dtype), k.to(dtype)
    g = torch.randn(2, rows, heads * groups, WIDTH).to(dtype).transpose(1, 2)
    settings = Settings(causal, 0.4, 0.4, groups > 1)
    if not fused.takes(road, OF_CPU, q, k, k, settings):
        assert road == "swapped" and causal and (groups > 1 or rows != columns)
        return
    wanted, lse = textbook(q, k, g, causal, 0.4)
    padded = torch.nn.functional.pad(lse.float(), (0, 0 if road == "full" else 3))
    found = ALL[road](OF_CPU, Kept(q, k, padded, NONE, NONE), g, settings)
    assert found.dtype == dtype and found.shape == k.shape
    error = ((found - wanted).norm() / wanted.norm()).item()
    assert error < (2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps)


@pytest.mark.usefixtures("_plain_operator")
def test_a_bias_in_half_precision_costs_no_digits() -> None:
    """Log-sum-exps near 100, where bfloat16 has steps of a half."""
    q, k = torch.randn(2, 1, 1, 40, WIDTH).bfloat16()
    q[..., 0], k[..., 0] = 40.0, 7.0
    g = torch.randn(1, 1, 40, WIDTH).bfloat16()
    wanted, lse = textbook(q, k, g, False, 0.375)
    assert lse.min() > 100
    found = fused.swapped(EFFICIENT, Kept(q, k, lse.float(), NONE, NONE), g, Settings(False, 0.375, 0.375, False))
    assert (found - wanted).norm() < torch.finfo(torch.bfloat16).eps * wanted.norm()


def test_the_kernel_compiles_for_hopper(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cut = fused_triton.tiles(torch.bfloat16, 64)
    fixed = {"KEYS": cut.keys, "ROWS": cut.rows, "WIDTH": 64, "VALUES": 64, "CAUSAL": True, "PRECISION": "ieee"}
    names = fused_triton.KERNEL.arg_names
    fixed.update({name: 1 for name in names if name.endswith("_w")})
    known = {**dict.fromkeys(("g", "q", "k", "dv"), "*bf16"), "lse": "*fp32", "scale": "fp32"}
    signature = {name: "constexpr" if name in fixed else known.get(name, "i32") for name in names}
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
    source = ASTSource(fused_triton.KERNEL, signature, fixed)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma" in compiled.asm["ptx"] and compiled.metadata.shared < 100_000


# What PyTorch's own kernels take, and give.


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda kernel: kernel.name)
def test_pytorch_has_the_kernels(kernel: Kernel) -> None:
    """Without these arguments attention takes PyTorch's own backward: right, but it keeps more."""
    assert kernel.operator() is not None
    assert kernel.backward is None or kernel.operator(backward=True) is not None
    assert fused.CHOICE is not None and Kernel("flash_attention", "query key", kernel.forward).operator() is None


@pytest.mark.parametrize("grouped", [False, True], ids=["", "grouped"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda kernel: kernel.name)
def test_the_kernels_take_what_the_roads_give(kernel: Kernel, grouped: bool) -> None:
    if grouped and not kernel.groups:
        return
    with FakeTensorMode():
        q = torch.empty(2, 4, 300, 64, device="cuda", dtype=torch.float16)
        k = torch.empty(2, 2 if grouped else 4, 300, 64, device="cuda", dtype=torch.float16)
        settings = Settings(False, None, 0.125, grouped)
        y, *rest = kernel.forward(kernel.operator(), q, k, k, settings)
        kept = Kept(q, k, *rest)
        assert y.shape == q.shape and kept.rows().shape == q.shape[:3] and kept.lse.dtype == torch.float32
        for road in ("full", "swapped"):
            if fused.takes(road, kernel, q, k, k, settings):
                dv = ALL[road](kernel, kept, torch.empty_like(q), settings)
                assert dv.shape == k.shape and dv.dtype == q.dtype
        assert fused.takes("full", kernel, q, k, k, settings) == (kernel is not CUDNN)


# The choice.


def on_meta(monkeypatch: pytest.MonkeyPatch, backend: SDPBackend | int, small: int = 0) -> tuple[Tensor, Settings]:
    monkeypatch.setattr(fused, "CHOICE", lambda *args, **kwargs: getattr(backend, "value", backend))
    monkeypatch.setattr(fused, "SMALL", small)
    return torch.empty(1, 2, 16, 8, device="meta", dtype=torch.float16), Settings(False, None, 8**-0.5, False)


@pytest.mark.parametrize(
    ("backend", "road", "kernel"),
    [
        (SDPBackend.FLASH_ATTENTION, "full", FLASH),
        (SDPBackend.EFFICIENT_ATTENTION, "full", EFFICIENT),
        (SDPBackend.CUDNN_ATTENTION, "own", None),
        (SDPBackend.OVERRIDEABLE, "own", None),
        (99, "own", None),
        (SDPBackend.MATH, "blockwise", None),
    ],
)
def test_the_road_follows_the_kernel(
    backend: SDPBackend | int, road: str, kernel: Kernel | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, settings = on_meta(monkeypatch, backend)
    assert chosen(q, q, q, None, settings) == (road, kernel)


def test_another_road_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")
    q, settings = on_meta(monkeypatch, SDPBackend.CUDNN_ATTENTION)
    for road in ("triton", "swapped"):
        monkeypatch.setitem(fused.ROADS, "cudnn_attention", road)
        assert chosen(q, q, q, None, settings) == (road, CUDNN)
    assert chosen(q.double(), q.double(), q.double(), None, settings) == ("swapped", CUDNN)
    monkeypatch.setitem(fused.ROADS, "cudnn_attention", "triton")
    assert chosen(q.double(), q.double(), q.double(), None, settings)[0] == "own"


def test_what_stays_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    q, settings = on_meta(monkeypatch, SDPBackend.FLASH_ATTENTION)
    narrow, few = q[..., :7], q[:, :1]
    mask = torch.empty(16, 16, device="meta")
    assert chosen(q, q, q, mask, settings)[0] == "own"
    assert chosen(narrow, narrow, narrow, None, settings)[0] == "own"  # attention pads it before it calls the kernel
    assert chosen(q, q, few, None, settings)[0] == "own"  # key and value heads in different numbers
    assert chosen(q, few, few, None, settings)[0] == "full"
    monkeypatch.setattr(fused, "CHOICE", lambda *args, **kwargs: SDPBackend.EFFICIENT_ATTENTION.value)
    assert chosen(q, q, q, None, settings)[0] == "full"
    assert chosen(q, few, few, None, settings)[0] == "own"  # attention repeats the keys before it calls the kernel
    learned = torch.nn.Parameter(mask)
    assert chosen(q, q, q, learned, settings)[0] == "blockwise"  # PyTorch's backward would give it a gradient
    monkeypatch.setattr(fused, "SMALL", q.numel() * 16 + 1)
    assert chosen(q, q, q, None, settings)[0] == "own"
    monkeypatch.setattr(fused, "SMALL", q.numel() * 16)
    assert chosen(q, q, q, None, settings)[0] == "full"
    monkeypatch.setattr(fused, "CHOICE", None)
    assert chosen(q, q, q, None, settings)[0] == "own"


def test_a_kernel_whose_arguments_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    q, settings = on_meta(monkeypatch, SDPBackend.FLASH_ATTENTION)
    changed = Kernel("flash_attention", FLASH.ahead, FLASH.forward, "grad_out q k v", FLASH.backward)
    monkeypatch.setattr(fused, "KERNELS", {SDPBackend.FLASH_ATTENTION.value: changed})
    assert chosen(q, q, q, None, settings)[0] == "own"


def test_attention_under_vmap_goes_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: Any, **kwargs: Any) -> int:
        raise RuntimeError("no batching rule")

    q, settings = on_meta(monkeypatch, SDPBackend.FLASH_ATTENTION)
    monkeypatch.setattr(fused, "CHOICE", refuses)
    assert chosen(q, q, q, None, settings)[0] == "blockwise"


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH])
def test_value_only_away_from_a_cpu(backend: SDPBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta tensors PyTorch runs the shapes of its kernels, forward and backward."""
    q, _ = on_meta(monkeypatch, backend)
    k, v = torch.empty_like(q).requires_grad_(), torch.empty_like(q).requires_grad_()
    y = value_only(SDPA, q, k, v)
    gradients = torch.autograd.grad(y, (k, v), torch.empty_like(y), allow_unused=True)
    assert gradients[0] is None and gradients[1].shape == v.shape
    assert (y.grad_fn.name() == "_AttentionBackward") == (backend is SDPBackend.FLASH_ATTENTION)


def compiled_graphs(
    monkeypatch: pytest.MonkeyPatch, road: str, allowed: bool = True, dynamic: bool = False
) -> list[str]:
    """The code of the forward's and the backward's graph that torch.compile makes of attention on meta tensors."""
    q, _ = on_meta(monkeypatch, SDPBackend.FLASH_ATTENTION)
    monkeypatch.setitem(fused.ROADS, "flash_attention", road)
    monkeypatch.setattr(fused, "ALLOWED", allowed)
    if allowed:
        torch.compiler.allow_in_graph(fused.traced)
    torch.compiler.reset()
    made: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        made.append(graph.code)
        return make_boxed_func(graph.forward)

    @torch.compile(backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True, dynamic=dynamic)
    def attended(q: Tensor, v: Tensor) -> Tensor:
        return value_only(SDPA, q, q, v)

    v = torch.empty_like(q).requires_grad_()
    y = attended(q, v)
    assert torch.autograd.grad(y, v, torch.empty_like(y))[0].shape == v.shape
    return made


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_compiled_program_takes_the_road(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is chosen while the graph is made; neither values nor outputs are kept for its backward."""
    forward, backward = compiled_graphs(monkeypatch, "full", dynamic=dynamic)
    assert "_scaled_dot_product_flash_attention.default" in forward
    kept = forward.rpartition("return ")[2]
    call = re.search(r"flash_attention_backward\.default\((\w+), (\w+), (\w+), (\w+), (\w+), ", backward)
    values = re.search(r"_flash_attention\.default\(\w+, \w+, (\w+)", forward)
    assert call and call[1] == call[5] and call[3] == call[4] and values and values[1] not in re.split(r"\W+", kept)


def test_a_compiled_call_without_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo was not told of the choice: PyTorch's own backward, and still one graph."""
    monkeypatch.setattr(fused, "chosen", None)
    assert len(compiled_graphs(monkeypatch, "full", allowed=False)) == 2


def test_a_compiled_program_has_the_triton_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")
    _, backward = compiled_graphs(monkeypatch, "triton")
    assert "triton_kernel_wrapper" in backward and "flash_attention_backward" not in backward


# The function around the roads, with the CPU's kernel.


def function(kernel: Kernel = OF_CPU, road: str = "full") -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: attention(kernel, road, Settings(False, None, WIDTH**-0.5, False), q, k, v)


def test_the_function_is_attention_whose_weights_are_held() -> None:
    q, k, v = torch.randn(3, 2, 3, 11, WIDTH).double()
    g = torch.randn(2, 3, 11, WIDTH).double()
    v.requires_grad_()
    y = function()(q, k, v)
    assert torch.equal(y.detach(), SDPA(q, k, v.detach()))
    wanted, _ = textbook(q, k, g, False, WIDTH**-0.5)
    torch.testing.assert_close(torch.autograd.grad(y, v, g)[0], wanted, rtol=1e-12, atol=1e-13)


def test_neither_values_nor_outputs_are_kept() -> None:
    qkv = torch.randn(2, 11, 3, 3, WIDTH)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    v = v.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = function()(q.detach(), k.detach(), v)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t.numel()}
    assert sum(storages.values()) == 4 * (q.numel() + k.numel() + q.numel() // WIDTH)
    assert {y.untyped_storage().data_ptr(), qkv.untyped_storage().data_ptr()}.isdisjoint(storages)


def test_what_is_no_view_is_not_copied() -> None:
    q, k, v = (torch.randn(2, 11, 3, WIDTH).transpose(1, 2) for _ in range(3))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function()(q, k, v.requires_grad_())
    assert {q.data_ptr(), k.data_ptr()} <= {t.data_ptr() for t in kept} and v.data_ptr() not in {
        t.data_ptr() for t in kept
    }


@pytest.mark.parametrize("road", ["full", "triton"])
def test_many_cotangents_at_once(road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.func's vmap joins them with the batch; the vmap of is_grads_batched has a way of its own."""
    if road == "triton":
        interpreted(monkeypatch)
    q, k, v = torch.randn(3, 2, 3, 11, WIDTH)
    v.requires_grad_()
    y = function(road=road)(q, k, v)
    many = torch.randn(4, *y.shape)
    singly = torch.stack([torch.autograd.grad(y, v, g, retain_graph=True)[0] for g in many])
    (batched,) = torch.autograd.grad(y, v, many, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, singly, rtol=1e-5, atol=1e-6)
    sizes: list[int] = []
    run = ALL[road]
    counted: Callable[..., Tensor] = lambda kernel, kept, g, s: sizes.append(len(g)) or run(kernel, kept, g, s)  # type: ignore[func-returns-value]  # noqa: E731
    monkeypatch.setattr(fused, "ALL", {road: counted})
    found = torch.func.vmap(lambda g: torch.autograd.grad(y, v, g, retain_graph=True)[0])(many)
    torch.testing.assert_close(found, singly, rtol=1e-5, atol=1e-6)
    assert sizes == [8]


def test_functional_transformations() -> None:
    q, k, v = torch.randn(3, 2, 3, 11, WIDTH).double()
    g = torch.randn(2, 3, 11, WIDTH).double()
    wanted, _ = textbook(q, k, g, False, WIDTH**-0.5)
    found = torch.func.grad(lambda v: (function()(q, k, v) * g).sum())(v)
    torch.testing.assert_close(found, wanted)
    _, pull = torch.func.vjp(lambda v: function()(q, k, v), v)
    many = torch.stack([g, 2 * g])
    torch.testing.assert_close(torch.func.vmap(pull)(many)[0], torch.stack([wanted, 2 * wanted]))


def test_no_second_derivative() -> None:
    q, k, v = torch.randn(3, 2, 3, 11, WIDTH)
    g = torch.randn(2, 3, 11, WIDTH).requires_grad_()
    v.requires_grad_()
    (dv,) = torch.autograd.grad(function()(q, k, v), v, g, create_graph=True)
    with pytest.raises(NotImplementedError, match="attention with held weights has no second derivative"):
        dv.sum().backward()


def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the CPU's kernel be a GPU's; returns the batches for which the road is taken."""
    monkeypatch.setattr(fused, "serves", lambda q: True)
    monkeypatch.setattr(fused, "KERNELS", {SDPBackend.FLASH_ATTENTION.value: OF_CPU})
    monkeypatch.setattr(fused, "CHOICE", lambda *args, **kwargs: SDPBackend.FLASH_ATTENTION.value)
    monkeypatch.setattr(fused, "SMALL", 0)
    monkeypatch.setitem(fused.ROADS, OF_CPU.name, "full")
    taken: list[int] = []

    def counted(kernel: Kernel, kept: Kept, g: Tensor, settings: Settings) -> Tensor:
        taken.append(len(g))
        return fused.full(kernel, kept, g, settings)

    monkeypatch.setattr(fused, "ALL", {"full": counted})
    return taken


def test_a_whole_model_takes_the_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the same outputs, a complete gradient, many targets, blocks that run again in the backward."""
    monkeypatch.setattr(balanced_vit, "HEADS", 1)
    taken = on_a_cpu(monkeypatch)
    model, x = balanced_vit.vit()
    libra = fxgrad.convert(model, (x,))
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-12 and taken and set(taken) == {2}
    targets = torch.eye(3, balanced_vit.CLASSES).double()[:, None].expand(3, 2, -1)
    (gradients,) = fxgrad.vjp(libra, (x,), targets, chunk=3).gradients.values()
    leaf = x.clone().requires_grad_()
    for run in (libra, libra.checkpointed()):
        (wanted,) = torch.autograd.grad(run(leaf)[:, 1].sum(), leaf)
        torch.testing.assert_close(gradients[1], wanted, rtol=1e-10, atol=1e-12)
    found = torch.func.grad(lambda x: libra(x)[:, 1].sum())(x)
    torch.testing.assert_close(gradients[1], found, rtol=1e-10, atol=1e-12)


def test_a_compiled_block_takes_the_road(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balanced_vit, "HEADS", 1)
    taken = on_a_cpu(monkeypatch)
    x = torch.randn(2, 6, balanced_vit.WIDTH)
    libra = fxgrad.convert(balanced_vit.Block().eval(), (x,))
    leaf, g = x.clone().requires_grad_(), torch.randn_like(x)
    (wanted,) = torch.autograd.grad(libra(leaf), leaf, g)
    taken.clear()
    torch.compiler.reset()
    compiled = torch.compile(libra, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf, g)[0], wanted)
    assert taken == [2]  # while the graph was made
