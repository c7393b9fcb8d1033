"""The converted module is a drop-in: state, structure, copies, devices, input checks."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from torch import Tensor, nn

import fxgrad


class Tied(nn.Module):
    """Tied weights, a transient buffer, keyword inputs, structured outputs."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.unused = nn.Parameter(torch.zeros(2))
        self.register_buffer("offset", torch.randn(4), persistent=False)
        self.register_buffer("steps", torch.arange(4))

    def forward(self, x: Tensor, scale: Tensor | None = None, *, flip: bool = False) -> dict[str, object]:
        h = torch.tanh(self.a(x)) + self.offset
        if scale is not None:
            h = h * scale
        if flip:
            h = h.flip(-1)
        return {"out": self.b(h), "pair": (h, self.steps), "none": None}


@pytest.fixture
def model() -> Tied:
    return Tied().double().eval()


def test_state_dict_is_the_originals(model: Tied) -> None:
    libra = fxgrad.convert(model, (torch.randn(2, 4).double(),))
    ours, theirs = libra.state_dict(), model.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert libra.a.weight is libra.b.weight  # type: ignore[union-attr]
    assert [n for n, _ in libra.named_buffers()] == ["offset", "steps"]
    libra.load_state_dict({k: v + 1 for k, v in theirs.items()})


def test_output_structure_and_keywords(model: Tied) -> None:
    x, scale = torch.randn(2, 4).double(), torch.rand(2, 1).double()
    libra = fxgrad.convert(model, (x, scale), {"flip": True})
    x, scale = torch.randn(3, 4).double(), torch.rand(3, 1).double()
    with torch.no_grad():
        theirs = model(x, scale, flip=True)
        for ours in (libra(x, scale, flip=True), libra(x=x, scale=scale, flip=True), libra(x, flip=True, scale=scale)):
            assert list(ours) == list(theirs) and ours["none"] is None
            assert torch.equal(ours["out"], theirs["out"])
            assert isinstance(ours["pair"], tuple) and torch.equal(ours["pair"][1], model.steps)


def test_wrong_calls_say_what_to_do(model: Tied) -> None:
    x = torch.randn(2, 4).double()
    libra = fxgrad.convert(model, (x,), {"flip": False})
    with pytest.raises(
        fxgrad.InputError, match=r"input 'x' has shape \(2, 5\), but the model was captured for \(any, 4\)"
    ):
        libra(torch.randn(2, 5).double(), flip=False)
    with pytest.raises(
        fxgrad.InputError, match=r"input 'x' is torch\.int64, but the model was captured for torch\.float64"
    ):
        libra(torch.ones(2, 4, dtype=torch.long), flip=False)
    with pytest.raises(
        fxgrad.InputError, match=r"input 'flip' was captured as the constant False and cannot become True"
    ):
        libra(x, flip=True)
    with pytest.raises(
        fxgrad.InputError, match=r"captured with the inputs \(x, flip\), these are \(x, scale, flip\)\. Convert"
    ):
        libra(x, x, flip=False)
    with pytest.raises(fxgrad.InputError, match=r"input 'input' must be a tensor of shape \(any, 4\), not list"):
        fxgrad.convert(nn.Linear(4, 2).eval(), (torch.zeros(2, 4),)).classified.captured.inputs[0].check([1.0])


def test_copies_are_independent(model: Tied) -> None:
    x = torch.randn(2, 4).double()
    libra = fxgrad.convert(model, (x,))
    twin = copy.deepcopy(libra)
    with torch.no_grad():
        twin.a.bias += 1  # type: ignore[union-attr,operator]
        assert torch.equal(libra(x)["out"], model(x)["out"])
        assert not torch.equal(twin(x)["out"], model(x)["out"])
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(x)["out"], model(x)["out"])


def test_casting_moves_everything_and_leaves_the_original(model: Tied) -> None:
    x = torch.randn(2, 4)
    libra = fxgrad.convert(model, (x.double(),)).float()
    assert {v.dtype for v in [*libra.parameters(), libra.offset]} == {torch.float32}
    assert model.a.weight.dtype == torch.float64
    with torch.no_grad():
        assert torch.equal(libra(x)["out"], copy.deepcopy(model).float()(x)["out"])
    assert fxgrad.check(libra).passed


def test_meta_device(model: Tied) -> None:
    libra = fxgrad.convert(model, (torch.randn(2, 4).double(),)).to("meta")
    assert libra(torch.empty(3, 4, device="meta").double())["out"].shape == (3, 4)


def test_requires_grad_is_the_originals_and_independent(model: Tied) -> None:
    x = torch.randn(2, 4).double().requires_grad_()
    model.a.bias.requires_grad_(False)
    libra = fxgrad.convert(model, (x,))
    assert [p.requires_grad for p in libra.parameters()] == [p.requires_grad for p in model.parameters()]
    libra(x)["out"].sum().backward()
    assert torch.allclose(libra.b.bias.grad, torch.full((4,), 2.0).double())  # type: ignore[union-attr]
    assert model.b.bias.grad is None


def test_no_graph_is_recorded_for_what_is_held() -> None:
    """The query and key of an attention layer take no part in the backward."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True).eval()
    x = torch.randn(2, 5, 8, requires_grad=True)
    libra = fxgrad.convert(layer, (x,))
    libra.requires_grad_(True)
    libra(x).sum().backward()
    gradient = libra.self_attn.in_proj_weight.grad  # type: ignore[union-attr]
    assert gradient[:16].abs().max() == 0 and gradient[16:].abs().max() > 0


def test_kernels_that_are_picked_by_requires_grad_are_the_same() -> None:
    """A linear layer on a transposed input multiplies in another order when its weight is frozen."""

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 24), nn.Linear(24, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.softmax(self.first(x.transpose(0, 1)), -1) * self.first(x.transpose(0, 1)))

    for frozen in (False, True):
        model, x = Transposed().eval().requires_grad_(not frozen), torch.randn(2, 5, 8)
        libra = fxgrad.convert(model, (x,))
        for batch in (x, torch.randn(3, 5, 8), torch.randn(7, 5, 8)):
            with torch.no_grad():
                assert torch.equal(libra(batch), model(batch))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_to_one_graph() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3), nn.Sigmoid()).double().eval()
    x = torch.randn(2, 4).double().requires_grad_()
    libra = fxgrad.convert(model, (x,))
    compiled = torch.compile(libra, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(x).sum(), x)[0] for f in (libra, compiled))
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


def test_repr_says_what_it_is(model: Tied) -> None:
    text = repr(fxgrad.convert(model, (torch.randn(2, 4).double(),)))
    assert "rules='libragrad'" in text and "attributed inputs: x" in text


class Named(nn.Module):
    """Calls its parts as a converted module calls its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.runner = nn.Linear(3, 4), nn.Linear(4, 2)
        self.state = nn.Parameter(torch.randn(2))
        self.register_buffer("report", torch.randn(2))
        self.register_buffer("program", torch.randn(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.runner(self.embed(x).tanh()) * self.state + self.report + self.program


def test_parts_named_as_a_converted_modules_own() -> None:
    model, x = Named().eval(), torch.randn(5, 3)
    libra = fxgrad.convert(model, (x,))
    assert torch.equal(libra(x), model(x)) and fxgrad.check(libra, (x,), original=model).passed
    assert list(libra.state_dict()) == list(model.state_dict()) and "embed" in dict(libra.named_modules())
    other = Named().eval()
    libra.load_state_dict(other.state_dict())
    model.load_state_dict(other.state_dict())
    assert torch.equal(libra(x), model(x)) and libra.embed(x) == {}
    torch.testing.assert_close(copy.deepcopy(libra).double()(x.double()), model.double()(x.double()))


def test_what_only_the_model_has_is_said_to_be_missing() -> None:
    libra = fxgrad.convert(torch.nn.Linear(2, 3).eval(), (torch.ones(1, 2),))
    assert not hasattr(libra, "generate") and getattr(libra, "config", 3) == 3
    with pytest.raises(
        fxgrad.FxgradError, match=r"no attribute 'generate': of the model, it has what forward computes"
    ):
        libra.generate()
    with pytest.raises(AttributeError):
        libra.generate()


def test_a_failing_program_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """fx would print the code that failed, where this is an operator of Python's."""
    libra = fxgrad.convert(nn.GELU().eval(), (torch.ones(2, 3),))
    graph = torch.fx.Graph()
    graph.output(graph.call_function(operator.getitem, (graph.placeholder("x"), 5)))
    program = torch.fx.GraphModule(nn.Module(), graph)
    with pytest.raises(fxgrad.InputError, match="fails on these inputs"):
        libra.called(program, [torch.ones(2, 3)])
    assert capfd.readouterr().err == ""
