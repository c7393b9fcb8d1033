"""Free sizes: the model's own outputs, bit for bit, at every size that the checks let through; else one clear error."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import fxgrad
from fxgrad.capture import alone, capture
from fxgrad.capture.checks import Check, NotSupportedError
from fxgrad.errors import InputError

AUTO = Dim.AUTO
OLD = torch.__version__ < (
    2,
    12,
)  # its adaptive pooling wants sizes with the same remainders; it tells no line for a bound


class Of(nn.Module):
    """A function with a linear layer 4 -> 4, a table of 16 positions, and a convolution."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.f = function
        self.linear, self.conv = nn.Linear(4, 4), nn.Conv2d(3, 4, 3, 2)
        self.table = nn.Parameter(torch.randn(16, 4))
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, *x: Tensor) -> Tensor:
        return self.f(self, *x)


def by_length(m: Of, x: Tensor) -> Tensor:
    return m.linear(x).reshape(len(x), 2, 2)


def by_number(m: Of, x: Tensor) -> Tensor:
    return x * int(x.shape[1])


def whole_table(m: Of, x: Tensor) -> Tensor:
    return x + m.table


def start_of_table(m: Of, x: Tensor) -> Tensor:
    return m.linear(x + m.table[: x.shape[1]])


def tied(m: Of, x: Tensor, y: Tensor) -> Tensor:
    return x * 2 + y


def untied(m: Of, x: Tensor, y: Tensor) -> Tensor:
    return m.linear(x).mean(1) * m.linear(y).mean(1)


def in_pairs(m: Of, x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, 2).sum(-1)


def odd_padded(m: Of, x: Tensor) -> Tensor:
    if x.shape[1] % 2 == 1:
        x = F.pad(x, (0, 1))
    return x * 2


def short_or_long(m: Of, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] < 10 else x * 3


def square_or_not(m: Of, x: Tensor) -> Tensor:
    return x * 2 if x.shape[2] == x.shape[3] else x.flip(2)


def first_four(m: Of, x: Tensor) -> Tensor:
    part = x[:, :4]
    return part.sum(1) / part.shape[1]


def convolved(m: Of, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(F.max_pool2d(m.conv(x), 3, 2, 1), (2, 2)).flatten(1)


def windows(m: Of, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = F.pad(x, (0, -w % 4, 0, -h % 4))
    return x.view(b, c, x.shape[2] // 4, 4, x.shape[3] // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c) * 2


def strided(m: Of, x: Tensor) -> Tensor:
    b, n, c = x.shape
    return x.as_strided((b, n - 2, 3, c), (x.stride(0), x.stride(1), x.stride(1), x.stride(2))) * 2


def viewed(m: Of, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1).contiguous().view(b, h * w, c).transpose(1, 2)
    return y.reshape(b, c, h, w).flatten(2) * 2 + x.view(b, c, -1)


def resized(m: Of, x: Tensor) -> Tensor:
    grid = F.interpolate(m.table.reshape(1, 4, 4, 4), size=x.shape[-2:], mode="bicubic", antialias=True)
    return grid.mean(1, keepdim=True) * F.interpolate(x, scale_factor=1.0, mode="nearest")


def alone_or_not(m: Of, x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] == 1 else x * 3


def expanded_or_not(m: Of, x: Tensor) -> Tensor:
    positions = m.table[None, :2]
    if x.shape[0] != positions.shape[0]:
        positions = positions.expand(x.shape[0], -1, -1)
    return m.linear(positions).mean((1, 2))[:, None] * x


def root(m: Of, x: Tensor) -> Tensor:
    n = int(x.shape[1] ** 0.5)
    return x.reshape(x.shape[0], n, n, -1).mean(-1)


def tokens_first(m: Of, x: Tensor) -> Tensor:
    return x + m.attention(x, x, x, need_weights=False)[0]


def one_token_or_not(m: Of, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] == 1 else x * 3


def one_or_few_or_many(m: Of, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] > 3 or x.shape[1] == 1 else x * 3


def shaped(*shape: int) -> Tensor:
    return torch.randn(shape)


RIGHT: list[tuple[Callable[..., Tensor], list[tuple[int, ...]], list[list[tuple[int, ...]]]]] = [
    (start_of_table, [(2, 6, 4)], [[(1, 6, 4)], [(3, 16, 4)], [(3, 1, 4)]]),
    (tied, [(2, 3), (2, 3)], [[(5, 7), (5, 7)], [(1, 2), (1, 2)]]),
    (untied, [(2, 6, 4), (2, 6, 4)], [[(3, 7, 4), (3, 5, 4)], [(1, 2, 4), (1, 9, 4)]]),
    (in_pairs, [(3, 8)], [[(1, 10)], [(2, 2)]]),
    (odd_padded, [(3, 9)], [[(2, 11)]]),
    (short_or_long, [(3, 8)], [[(1, 9)], [(3, 2)]]),
    (square_or_not, [(2, 3, 6, 6)], [[(3, 3, 8, 8)], [(1, 4, 3, 3)]]),
    (square_or_not, [(2, 3, 6, 5)], [[(3, 3, 8, 9)]]),
    (first_four, [(2, 6, 3)], [[(3, 4, 5)], [(1, 9, 3)], [(2, 3, 3)]]),
    (convolved, [(1, 3, 32, 32)], [[(2, 3, 40, 72)]] if OLD else [[(2, 3, 33, 70)], [(3, 3, 5, 5)]]),
    (windows, [(2, 3, 8, 8)], [[(1, 3, 12, 8)], [(2, 5, 9, 7)]]),
    (strided, [(2, 6, 4)], [[(3, 9, 4)], [(1, 4, 5)]]),
    (viewed, [(2, 3, 6, 6)], [[(3, 3, 5, 9)], [(1, 4, 5, 9)]]),
    (resized, [(2, 1, 6, 6)], [[(3, 1, 8, 11)]]),
    (expanded_or_not, [(2, 3)], [[(1, 3)], [(5, 3)]]),
    (expanded_or_not, [(1, 3)], [[(1, 3)], [(5, 3)]]),
    (alone_or_not, [(2, 3)], [[(5, 3)]]),
    (alone_or_not, [(1, 3)], [[(1, 3)]]),
    (root, [(2, 9, 4)], [[(3, 9, 2)]]),
    (tokens_first, [(5, 3, 4)], [[(5, 1, 4)], [(1, 3, 4)], [(1, 1, 4)], [(7, 2, 4)]]),
]


@pytest.mark.parametrize(("function", "example", "others"), RIGHT)
def test_other_sizes_give_the_model_s_bits(function: Any, example: Any, others: Any) -> None:
    model = Of(function).eval()
    libra = fxgrad.convert(model, tuple(shaped(*s) for s in example))
    for shapes in [example, *others]:
        x = [shaped(*s) for s in shapes]
        with torch.no_grad():
            assert torch.equal(libra(*x), model(*x)), shapes


FIXED: list[tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], int, str]] = [
    (by_length, (2, 4), (3, 4), 0, "return m.linear(x).reshape(len(x), 2, 2)"),
    (by_number, (2, 5), (2, 6), 1, "return x * int(x.shape[1])"),
    (whole_table, (2, 16, 4), (2, 8, 4), 1, "return x + m.table"),
    (start_of_table, (2, 8, 4), (2, 8, 5), 2, "return m.linear(x + m.table[: x.shape[1]])"),
    (start_of_table, (2, 1, 4), (2, 3, 4), 1, "the example, whose size of 1 torch.export takes for a constant"),
    (alone_or_not, (1, 3), (2, 3), 0, "the example, whose size of 1 torch.export takes for a constant"),
]


@pytest.mark.parametrize(("function", "example", "other", "axis", "what"), FIXED)
def test_the_line_that_fixed_a_size_is_named(function: Any, example: Any, other: Any, axis: int, what: str) -> None:
    libra = fxgrad.convert(Of(function).eval(), (shaped(*example),))
    (name,) = (i.name for i in libra.classified.captured.inputs)
    with pytest.raises(fxgrad.InputError) as caught:
        libra(shaped(*other))
    said = str(caught.value)
    assert said.startswith(f"input {name!r} has shape {other}, but the model was captured for (")
    assert f"Axis {axis} is fixed at {example[axis]} by " in said and what in said
    assert said.endswith("Convert it again with an example of that shape, if the model takes it.")
    assert "test_sizes.py:" in said or "the example" in what
    assert f"Axis {axis} is fixed at {example[axis]} by " in str(libra.report) and what in str(libra.report)
    assert what in libra.report.details()


REFUSED: list[tuple[Callable[..., Tensor], list[tuple[int, ...]], list[tuple[int, ...]], str, str]] = [
    (start_of_table, [(2, 6, 4)], [(2, 17, 4)], "x.shape[1] <= 16", "x + m.table["),
    (tied, [(2, 3), (2, 3)], [(5, 7), (5, 6)], "args[1].shape[1] == x.shape[1]", "return x * 2 + y"),
    (tied, [(2, 3), (2, 3)], [(5, 7), (1, 7)], "args[1].shape[0] == x.shape[0]", "return x * 2 + y"),
    (odd_padded, [(3, 9)], [(3, 10)], "x.shape[1] % 2 == 1", "if x.shape[1] % 2 == 1:"),
    (short_or_long, [(3, 8)], [(3, 10)], "x.shape[1] < 10", "x * 2 if x.shape[1] < 10 else x * 3"),
    (square_or_not, [(2, 3, 6, 6)], [(2, 3, 6, 5)], "x.shape[3] == x.shape[2]", "x.flip(2)"),
    (square_or_not, [(2, 3, 6, 5)], [(2, 3, 6, 6)], "x.shape[2] != x.shape[3]", "x.flip(2)"),
    (alone_or_not, [(2, 3)], [(1, 3)], "x.shape[0] != 1", "x * 2 if x.shape[0] == 1 else x * 3"),
    (one_token_or_not, [(2, 5)], [(2, 1)], "x.shape[1] != 1", "x * 2 if x.shape[1] == 1 else x * 3"),
    (one_or_few_or_many, [(2, 5)], [(2, 2)], "x.shape[1] > 3", "x * 2 if x.shape[1] > 3"),
    (root, [(2, 9, 4)], [(2, 16, 4)], "trunc(x.shape[1] ** 0.5) == 3", "n = int(x.shape[1] ** 0.5)"),
    (in_pairs, [(3, 8)], [(3, 9)], "% (2 * x.shape[0]) == 0", "x.reshape(x.shape[0], -1, 2)"),
    (convolved, [(1, 3, 32, 32)], [(1, 3, 2, 32)], "x.shape[2] >= 3", "m.conv(x)"),
]


@pytest.mark.parametrize(("function", "example", "other", "holds", "because"), REFUSED)
def test_sizes_for_which_the_program_is_wrong(
    function: Any, example: Any, other: Any, holds: str, because: str, tmp_path: Path
) -> None:
    libra = fxgrad.convert(Of(function).eval(), tuple(shaped(*s) for s in example))
    fxgrad.save(libra, tmp_path / "libra.pt2")
    for one in (libra, fxgrad.load(tmp_path / "libra.pt2")):
        with pytest.raises(fxgrad.InputError) as caught:
            one(*(shaped(*s) for s in other))
        said = str(caught.value)
        assert said.startswith("the captured program holds only where ") and holds in said
        told = "because of " in said and because in said and "test_sizes.py:" in said
        assert told is not (OLD and function is start_of_table)
        assert said.endswith("Convert the model again with an example of these sizes, if it takes them.")
    assert holds in str(libra.report)


def test_copies_keep_the_checks() -> None:
    libra = fxgrad.convert(Of(odd_padded).eval(), (shaped(3, 9),))
    for one in (copy.copy(libra), copy.deepcopy(libra), pickle.loads(pickle.dumps(libra)), libra.double()):
        with pytest.raises(fxgrad.InputError, match=r"holds only where x.shape\[1\] % 2 == 1"):
            one(shaped(3, 10).to(torch.float64 if one is libra else torch.float32))


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 4), nn.Linear(4, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["mask"][..., None]
        return self.head((self.words(batch["ids"]) * mask).sum(1) / mask.sum(1))


def test_inputs_in_a_dictionary() -> None:
    def batch(n: int, length: int, other: int | None = None) -> dict[str, Tensor]:
        return {"ids": torch.randint(20, (n, length)), "mask": torch.ones(n, other or length)}

    model = Texts().eval()
    libra = fxgrad.convert(model, (batch(2, 6),))
    for given in (batch(3, 9), batch(1, 1)):
        assert torch.equal(libra(given), model(given))
    with pytest.raises(
        fxgrad.InputError, match=r"batch\['mask'\].shape\[1\] == batch\['ids'\].shape\[1\], because of "
    ):
        libra(batch(3, 5, 6))


def test_shapes_that_the_user_gives_stay() -> None:
    model = Of(start_of_table).eval()
    bounded = Dim("length", min=4, max=12)
    libra = fxgrad.convert(model, (shaped(2, 6, 4),), dynamic_shapes=(({1: bounded},),))
    assert libra.classified.captured.inputs[0].shape == (2, None, 4)
    assert torch.equal(libra(x := shaped(2, 12, 4)), model(x))
    for length, bound in ((13, "<= 12"), (3, ">= 4")):
        with pytest.raises(fxgrad.InputError, match=rf"holds only where x.shape\[1\] {bound}"):
            libra(shaped(2, length, 4))
    with pytest.raises(fxgrad.InputError, match="with an example of that shape, or pass dynamic_shapes to"):
        libra(shaped(3, 6, 4))


def test_shapes_that_the_model_does_not_leave_free_are_refused() -> None:
    shapes = ({0: Dim("batch"), 1: Dim("length")},)
    with pytest.raises(fxgrad.CaptureError) as caught:
        fxgrad.convert(nn.Sequential(nn.Linear(4, 2)).eval(), (shaped(3, 4),), dynamic_shapes=shapes)
    said = str(caught.value)
    assert said.startswith("dynamic_shapes does not fit the model or the example: You marked length as dynamic but")
    assert "constant (4). Pass torch.export.Dim.AUTO for these, or no dynamic_shapes" in said
    shapes = ({0: Dim("batch", max=2)},)
    with pytest.raises(fxgrad.CaptureError, match=r"dynamic_shapes does not fit .*: 3 not in range \[.*2\]\. Pass"):
        fxgrad.convert(nn.Linear(4, 2).eval(), (shaped(3, 4),), dynamic_shapes=shapes)


def test_an_exported_program_keeps_its_guards() -> None:
    model = Of(odd_padded).eval()
    program = torch.export.export(model, (shaped(3, 9),), dynamic_shapes=(({0: AUTO, 1: AUTO},),))
    libra = fxgrad.convert(program)
    assert torch.equal(libra(x := shaped(2, 11)), model(x))
    with pytest.raises(fxgrad.InputError, match=r"shape\[1\] % 2 == 1"):
        libra(shaped(2, 10))


class Counted(nn.Module):
    """Takes nothing but a number for the size of an axis, as a C function of torch's may."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis, self.linear = axis, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * number(x.shape[self.axis])


def number(size: Any) -> int:
    if not isinstance(size, int):
        raise TypeError("a number, please")
    return size


def test_only_some_axes_can_be_free() -> None:
    model = Counted().eval()
    libra = fxgrad.convert(model, (shaped(2, 5, 4),))
    assert torch.equal(libra(x := shaped(3, 5, 4)), model(x))
    with pytest.raises(
        fxgrad.InputError, match=r"Axis 1 is fixed at 5 by torch.export, which cannot leave it free \(T"
    ):
        libra(shaped(3, 6, 4))
    with pytest.raises(fxgrad.InputError, match=r"Axis 2 is fixed at 4 by .*: return self.linear\(x\)"):
        libra(shaped(3, 5, 3))  # it has a reason of its own


@pytest.mark.parametrize("shapes", [({0: AUTO, 1: AUTO},), {"x": [AUTO, AUTO, 4]}, {"x": {0: Dim.DYNAMIC, 1: AUTO}}])
def test_the_user_s_auto_is_free_where_it_can_be(shapes: Any) -> None:
    model = Counted().eval()
    libra = fxgrad.convert(model, (shaped(2, 5, 4),), dynamic_shapes=shapes)
    assert libra.classified.captured.inputs[0].shape == (None, 5, 4)
    assert torch.equal(libra(x := shaped(3, 5, 4)), model(x))
    with pytest.raises(fxgrad.InputError) as caught:
        libra(shaped(3, 6, 4))
    assert "Axis 1 is fixed at 5 by torch.export, which cannot leave it free (TypeError: a num" in str(caught.value)
    with pytest.raises(fxgrad.InputError) as caught:
        libra(shaped(3, 5, 3))
    assert "or pass dynamic_shapes" in str(caught.value) and "Axis 2" not in str(caught.value)  # nobody tried
    assert "Axis 1 is" in str(libra.report) and "Axis 2 is" not in str(libra.report)


def test_the_user_s_auto_may_have_to_be_fixed_throughout() -> None:
    model = Counted(axis=0).eval()
    libra = fxgrad.convert(model, (shaped(2, 5, 4),), dynamic_shapes=({0: AUTO, 1: AUTO},))
    assert libra.classified.captured.inputs[0].shape == (2, 5, 4)
    assert torch.equal(libra(x := shaped(2, 5, 4)), model(x))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (({0: Dim.DYNAMIC, 1: AUTO},), "a number, please"),
        (({0: Dim("batch"), 1: AUTO},), "a number, please"),
        (({0: AUTO}, {0: AUTO}), "structure of `inputs` and `dynamic_shapes`"),
        ({"x": AUTO}, "Unexpected input tensor shape"),
    ],
)
def test_what_the_user_wants_free_is_never_fixed_and_mistakes_are_not_hidden(shapes: Any, said: str) -> None:
    with pytest.raises(fxgrad.CaptureError, match=said):
        fxgrad.convert(Counted(axis=0).eval(), (shaped(2, 5, 4),), dynamic_shapes=shapes)


@pytest.mark.parametrize(
    "text", ["s0 ** 9 == 1", "s1 == 1", "__import__('os')", "s0.real", "s0 == 'a'", "s0 <", "(" * 500, "s0" * 2000]
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(NotSupportedError):
        Check(text, {"s0": (0, 0)})


def test_a_file_with_other_conditions_is_refused(tmp_path: Path) -> None:
    from fxgrad.capture.shapes import Sizes

    check = {"holds": "s0 == 1", "sizes": {"s0": [0, 0]}, "line": ""}
    for wrong in (
        {"sizes": {"s0": [0, 2]}},
        {"sizes": {"s0": [1, 0]}},
        {"holds": "open('x')"},
        {"sizes": {"s0": [True, 0]}},
    ):
        with pytest.raises(ValueError, match=r"no axis|no arithmetic"):
            Sizes.from_data({"checks": [check | wrong], "fixed": []}, [2])


class Chunked(nn.Module):
    """Its length is computed of twice as many parts after each step."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            n = x.shape[1]
            x = torch.cat([x[:, : min(n, n % 8 + 8)], x[:, :1]], 1)
        return x.tanh().sum(1)


def test_a_size_that_becomes_too_intricate_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxgrad.capture.watch.LARGEST", 30)
    model, x = Chunked().eval(), torch.randn(2, 30, 3).double()
    libra = fxgrad.convert(model, (x,))
    if torch.__version__ < "2.14" and libra.classified.captured.inputs[0].shape[1] is None:
        assert torch.equal(libra(x[:, :20]), model(x[:, :20]))  # an older torch computes this size of few parts
        return
    assert libra.classified.captured.inputs[0].shape == (None, 30, 3)
    assert torch.equal(libra(x[:1]), model(x[:1]))
    with pytest.raises(fxgrad.InputError, match=r"test_sizes\.py:\d+: x = torch.cat.* of more than 30 parts"):
        libra(x[:, :20])
    chosen = fxgrad.convert(model, (x,), dynamic_shapes={"x": {1: AUTO}})  # by the user, who may wait
    assert torch.equal(chosen(x[:, :20]), model(x[:, :20]))


class _Listed(nn.Module):
    """Goes through the examples one by one, which fixes how many there are."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part[None].exp() for part in list(x)])


@pytest.mark.parametrize(("count", "why"), [(1, "the example, whose size of 1"), (2, ".*list")])
def test_a_fixed_batch_is_that_of_the_example(count: int, why: str) -> None:
    x = torch.randn(count, 3)
    libra = fxgrad.convert(_Listed().eval(), (x,))
    assert torch.equal(libra(x), _Listed()(x))
    with pytest.raises(InputError, match=f"captured for \\({count}, any\\). Axis 0 is fixed at {count} by {why}"):
        libra(torch.randn(3, 3))


def test_a_size_by_which_a_line_cuts_leaves_the_others_free() -> None:
    class Cuts(nn.Module):
        def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
            return pixels.view(-1, 3, 4).sum((0, 1)).exp()[None, None] * words[..., None]

    model, pixels = Cuts().eval(), torch.randn(4, 12)
    libra = fxgrad.convert(model, (pixels, torch.randn(2, 5)))
    assert [i.shape for i in libra.classified.captured.inputs] == [(None, 12), (None, None)]
    words = torch.randn(3, 7)
    assert torch.equal(libra(pixels[:3], words), model(pixels[:3], words))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.linear(x).view(1, 3, 8),
        lambda m, x: m.linear(x.expand(1, 6, 4)),
        lambda m, x, w: F.conv_transpose1d(x, w),
    ],
    ids=["view", "expand", "weight"],
)
def test_a_model_of_a_batch_of_one_only(function: Any) -> None:
    torch.manual_seed(0)
    model = Of(function).double().eval()
    inputs = (torch.randn(1, 6, 4).double(),)
    if function.__code__.co_argcount == 3:
        inputs = (torch.randn(1, 1, 4).double(), torch.randn(1, 1, 3).double())
    with pytest.raises(RuntimeError):
        model(*(torch.cat([leaf, leaf]) for leaf in inputs))
    libra = fxgrad.convert(model, inputs)
    assert torch.equal(libra(*inputs), model(*inputs))
    assert fxgrad.check(libra, inputs).passed


def test_the_program_runs_only_on_sizes_that_the_model_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of a captured program check no sizes: PyTorch's normalization would read beyond its statistics."""

    class Normalized(nn.Module):
        def forward(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            asked.append(tuple(mean.shape))
            return F.batch_norm(x, mean, var) * (1 if x.shape[0] == 1 else 2)

    def run(captured: Any, leaves: list[Any]) -> list[Any]:
        ran.append(tuple(leaves[1].shape))
        return own(captured, leaves)

    own = alone._run
    monkeypatch.setattr(alone, "_run", run)
    asked: list[Any] = []
    ran: list[Any] = []
    captured = capture(Normalized().eval(), (torch.randn(3, 5, 2), torch.zeros(5), torch.ones(5)))
    assert (1,) in asked, "the model refused statistics of one channel"
    assert not ran
    assert captured.checks, "so that the check of the batch stays"
