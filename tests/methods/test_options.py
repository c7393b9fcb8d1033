"""Options of attribute that are not what they should be, and what is left of a message about them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgrad


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 12, batch_first=False) for _ in "12")

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.mean(0)


@pytest.fixture(scope="module")
def net() -> fxgrad.ConvertedModule:
    torch.manual_seed(0)
    return fxgrad.convert(Net().double().eval(), (torch.randn(5, 3, 8).double(),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 4}, r"grid is the sizes of the map of patches, such as \(14, 14\), not 4"),
        ({"grid": (0, 2)}, r"grid is the sizes of the map of patches, .*, not \(0, 2\)"),
        ({"blocks": "layers.0"}, "blocks is a list of module paths, not 'layers.0'"),
        ({"blocks": 3}, "blocks is a list of module paths, not 3"),
        ({"prefix": -1}, "prefix is a number of tokens, not -1"),
        ({"class_token": "first"}, "class_token is the index of a token, not 'first'"),
        ({"class_token": 99}, "there is no token 99: the model's blocks have 5"),
        ({"input": 0}, "input is the name of an input, not 0"),
        ({"method": "hirescam", "layer": 3}, "layer is the path of a module, not 3"),
        ({"method": "integrated_gradients", "n_steps": 0}, "n_steps is a whole number of at least 1, not 0"),
        ({"method": "smoothgrad", "samples": 2.5}, "samples is a whole number of at least 1, not 2.5"),
    ],
)
def test_wrong_options(net: fxgrad.ConvertedModule, options: dict[str, Any], message: str) -> None:
    with pytest.raises(fxgrad.InputError, match=message):
        fxgrad.attribute(net, (torch.randn(5, 3, 8).double(),), target=0, **options)


def test_tokens_on_the_first_axis_have_the_transformation_of_their_own(net: fxgrad.ConvertedModule) -> None:
    x = torch.randn(5, 4, 8).double()
    whole = fxgrad.attribute(net, (x,), target=1, method="tokentm").map
    assert whole.shape == (4, 5)
    for i in (0, 2):
        two = fxgrad.attribute(net, (x[:, i : i + 2],), target=1, method="tokentm").map
        assert float((two - whole[i : i + 2]).abs().max()) < 1e-10 * float(whole.abs().max())


def test_inputs_that_are_no_dense_tensors(net: fxgrad.ConvertedModule) -> None:
    x = torch.randn(5, 3, 8).double()
    with pytest.raises(
        fxgrad.InputError, match=r"input 'x' is torch.sparse_coo; rules hold for dense tensors"
    ) as error:
        net(x.to_sparse())
    with pytest.raises(fxgrad.InputError, match=r"these are \(x\[0\]\[0\]\[0\], .* and 112 more\)") as error:
        net(x.tolist())
    assert len(str(error.value)) < 500


def test_a_sparse_example() -> None:
    with pytest.raises(
        fxgrad.CaptureError, match=r"an example input of shape \(3, 3\) is sparse .*with its dense form"
    ):
        fxgrad.convert(nn.Linear(3, 2).eval(), (torch.eye(3).to_sparse(),))


def test_a_function_that_fails_where_nodes_are_no_examples() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            sent = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
            return self.last(x + sent).mean(0, keepdim=True)

    args = (torch.randn(4, 4), torch.tensor([[0, 1, 2], [1, 2, 3]]))
    libra = fxgrad.convert(Graph().eval(), args)
    with pytest.raises(fxgrad.InputError, match=r"the target function \(broken\) ended in IndexError"):

        def broken(output: Tensor) -> Tensor:
            return output[:, 7]

        fxgrad.attribute(libra, args, target=broken)
