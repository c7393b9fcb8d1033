"""What writes in place keeps its tensor's layout in memory, and so does the converted program, at any layout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.capture.layouts import LOSING

Write = Callable[[Tensor, Tensor], Any]
MASK = torch.tensor([[True, False, True, False]]).T
PLACES = torch.tensor([2, 0, 3, 1])
EACH = PLACES[None, :, None]
WRITES: dict[str, Write] = {
    "masked_fill": lambda t, x: t.masked_fill_(MASK, 0.5),
    "masked_scatter": lambda t, x: t.masked_scatter_(MASK.expand(4, 4), 3 * x),
    "baddbmm": lambda t, x: t.baddbmm_(x, x),
    "cumsum": lambda t, x: t.cumsum_(1),
    "index_add": lambda t, x: t.index_add_(1, PLACES, 2 * x),
    "index_copy": lambda t, x: t.index_copy_(1, PLACES, 2 * x),
    "scatter": lambda t, x: t.scatter_(1, EACH.expand(t.shape[0], 4, 4), 2 * x),
    "scatter_add": lambda t, x: t.scatter_add_(1, EACH.expand(t.shape[0], 4, 4), 2 * x),
    "scatter_reduce": lambda t, x: t.scatter_reduce_(1, EACH.expand(t.shape[0], 4, 4), 2 * x, "sum"),
    "tril": lambda t, x: t.tril_(),
    "a copy": lambda t, x: t.copy_(2 * x.mT),
    "a copy of one row": lambda t, x: t.copy_(x[:, :1]),
    "a copy in another dtype": lambda t, x: t.copy_(x.mT.float()),
    "a view": lambda t, x: t.mT.masked_fill_(MASK, 0.5),
    "a part": lambda t, x: t[:, 1].masked_fill_(MASK[:, 0], 0.5),
    "two, one after the other": lambda t, x: t.tril_().masked_fill_(MASK, 0.5),
    "an op that keeps it": lambda t, x: t.index_fill_(1, PLACES[:2], 0.5),
}


class Writing(nn.Module):
    def __init__(self, write: Write, read_again: bool) -> None:
        super().__init__()
        self.write, self.read_again = write, read_again
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        t = x.clone()
        view = t[:, :0]
        self.write(t, x)
        return t * self.weight + view.sum() if self.read_again else t * self.weight


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("read_again", [False, True], ids=["one pass suffices", "a view is read again"])
def test_the_layout_is_kept(name: str, read_again: bool) -> None:
    model = Writing(WRITES[name], read_again).eval()
    torch.manual_seed(0)
    x = torch.randn(3, 4, 4, dtype=torch.float64)
    libra = fxgrad.convert(model, (x[:2],), rules="gradient")
    for laid in (x, x.mT.contiguous().mT, x.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        own = laid.detach().requires_grad_()
        wanted, found = model(own), libra(own)
        assert torch.equal(found, wanted) and found.stride() == wanted.stride()
        g = torch.randn_like(wanted)
        torch.testing.assert_close(
            *(torch.autograd.grad(y, own, g)[0] for y in (found, wanted)), rtol=1e-12, atol=1e-14
        )
    assert fxgrad.check(fxgrad.convert(model, (x,)), (x,), original=model).passed


ARGUMENTS: dict[str, Callable[[Tensor], tuple[Any, ...]]] = {
    "addbmm": lambda x: (x[None], x[None]),
    "addmm": lambda x: (x, x),
    "addr": lambda x: (x[0], x[0]),
    "baddbmm": lambda x: (x.expand(2, 4, 4), x.expand(2, 4, 4)),
    "cumprod": lambda x: (0,),
    "cumsum": lambda x: (0,),
    "embedding_renorm": lambda x: (PLACES, 1.0, 2.0),
    "fill": lambda x: (0.5,),
    "floor_divide": lambda x: (x,),
    "hardswish": lambda x: (),
    "leaky_relu": lambda x: (),
    "index_add": lambda x: (0, PLACES, x),
    "index_copy": lambda x: (0, PLACES, x),
    "index_fill": lambda x: (0, PLACES, 0.5),
    "index_put": lambda x: ([PLACES], x),
    "index_reduce": lambda x: (0, PLACES, x, "prod"),
    "masked_fill": lambda x: (x > 0, 0.5),
    "masked_scatter": lambda x: (x > 0, x),
    "mvlgamma": lambda x: (1,),
    "put": lambda x: (PLACES, x[0]),
    "renorm": lambda x: (2, 0, 1.0),
    "scatter": lambda x: (0, PLACES[:, None].expand(4, 4), x),
    "scatter_add": lambda x: (0, PLACES[:, None].expand(4, 4), x),
    "scatter_reduce": lambda x: (0, PLACES[:, None].expand(4, 4), x, "sum"),
    "tril": lambda x: (),
    "triu": lambda x: (),
    "zero": lambda x: (),
}
ANOTHER_NAME = {
    *("absolute", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "divide", "fix", "greater"),
    *("greater_equal", "less", "less_equal", "multiply", "negative", "not_equal", "subtract"),
}
NO_LAYOUT = {
    *("addmv", "copy", "detach", "rename"),  # of a vector; kept by `replace_copy`; no write
    *("resize", "resize_as", "set", "as_strided", "squeeze", "swapaxes", "swapdims", "t", "transpose", "unsqueeze"),
    *("copy_sparse_to_sparse", "resize_as_sparse", "sparse_resize", "sparse_resize_and_clear"),
    *("alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout", "rrelu_with_noise"),
    *("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "random", "uniform"),
}


def test_the_ops_that_lose_the_layout_are_those_of_the_table() -> None:
    known = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "aten::" in name}
    packets = {
        name[:-1]: getattr(torch.ops.aten, name[:-1])
        for name in known
        if name.endswith("_") and not name.startswith("_") and not name.endswith("__") and name[:-1] in known
    }
    pointwise = {
        name for name, op in packets.items() if any(torch.Tag.pointwise in getattr(op, o).tags for o in op.overloads())
    }
    new = set(packets) - pointwise - set(ARGUMENTS) - ANOTHER_NAME - NO_LAYOUT
    assert not new, f"ops that write in place, of which it is not known whether they keep the layout: {sorted(new)}"
    losing = set()
    for name, arguments in ARGUMENTS.items():
        x = torch.rand(4, 4, dtype=torch.float64).T
        own = x.expand(2, 4, 4).contiguous().mT if name == "baddbmm" else x
        if packets[name](own, *arguments(x)).stride() != own.stride():
            losing.add(f"{name}_")
    assert losing == LOSING
