"""Examples that run one by one, with inputs that nothing in the graph ties to them: as each gets it by itself."""

import functools

import pytest
import torch
from torch import nn

import fxgrad
from fxgrad.methods import Problem

METHODS = ("input_x_gradient", "fullgrad", "fullgrad_plus")


class Texts(nn.Module):
    """Words and positions through attention, under a mask whose rows are picked by number, as transformers makes it."""

    def __init__(self, tied):
        super().__init__()
        self.words, self.positions, self.tied = nn.Embedding(9, 8), nn.Embedding(5, 8), tied
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 3)

    def forward(self, ids, mask, positions):
        x = self.words(ids) + self.positions(positions)
        if not self.tied:
            mask = mask[torch.arange(ids.shape[0])[:, None], torch.arange(ids.shape[1])]
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return self.head(x)[:, 0]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x, mask):
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.out(seen.transpose(1, 2).flatten(2)).tanh()


@functools.cache
def _texts(tied, rows):
    torch.manual_seed(0)
    ids, mask = torch.randint(9, (3, 5)), torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 4 + [0]]).bool()
    inputs = ids, mask, torch.arange(5).expand(rows, 5).contiguous()
    return fxgrad.convert(Texts(tied).double().eval(), inputs), inputs


def _one(inputs, i):
    return tuple(x[i : i + 1] if len(x) == 3 else x for x in inputs)


def _assert_alike(whole, alone, i):
    assert torch.allclose(whole.map[i], alone.map[0], rtol=0, atol=1e-10)
    assert torch.allclose(whole.apart[i], alone.apart[0], rtol=0, atol=1e-10)
    for name, values in alone.maps.items():
        assert torch.allclose(whole.maps[name][i], values[0], rtol=0, atol=1e-10), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_each_example_gets_what_it_gets_by_itself(tied, rows, method, monkeypatch):
    libra, inputs = _texts(tied, rows)
    monkeypatch.setattr(Problem, "mixed", True)
    whole = fxgrad.attribute(libra, inputs, target=1, method=method)
    assert whole.completeness_error < 1e-10 and whole.map.shape == (3, 5)
    for i in range(3):
        _assert_alike(whole, fxgrad.attribute(libra, _one(inputs, i), target=1, method=method), i)


def test_positions_that_all_examples_share_are_on_the_map_of_their_tokens():
    ours = [fxgrad.attribute(*_texts(True, rows), target=1) for rows in (1, 3)]
    assert torch.allclose(ours[0].map, ours[1].map, rtol=0, atol=1e-10)
    assert [found.maps["positions"].shape for found in ours] == [(3, 1, 5), (3, 5)]
    libra, inputs = _texts(True, 1)
    for method in ("gradient", "saliency"):  # no shares: all examples run, with cotangents of one
        whole = fxgrad.attribute(libra, inputs, target=1, method=method)
        for i in range(3):
            alone = fxgrad.attribute(libra, _one(inputs, i), target=1, method=method)
            assert torch.allclose(whole.map[i], alone.map[0], rtol=0, atol=1e-10)


class Scaled(nn.Module):
    """A table that all examples share, as long as the example's batch."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x, table):
        return self.norm(self.layer(x).relu() + table.double().cumsum(0)[-1:])


def test_an_input_with_as_many_rows_as_examples_by_chance_is_not_cut(monkeypatch):
    torch.manual_seed(0)
    inputs = torch.randn(3, 4).double(), torch.randint(5, (3, 4))
    libra = fxgrad.convert(Scaled().double().eval(), inputs)
    wanted = fxgrad.attribute(libra, inputs, target=1)
    monkeypatch.setattr(Problem, "mixed", True)
    found = fxgrad.attribute(libra, inputs, target=1)
    assert torch.allclose(found.map, wanted.map, rtol=0, atol=1e-10)
    assert torch.allclose(found.apart, wanted.apart, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["integrated_gradients", "smoothgrad"])
def test_inputs_that_are_moved_are_the_embeddings_also_where_ids_have_the_same_name(method):
    libra, inputs = _texts(True, 3)
    options = {"baseline": 0.5} if method == "integrated_gradients" else {}
    found = fxgrad.attribute(libra, inputs, target=1, method=method, **options)
    other = Texts(True).double().eval()
    other.load_state_dict(libra.state_dict())
    other.forward = lambda ids, mask, places: Texts.forward(other, ids, mask, places)  # the ids by another name
    same = fxgrad.attribute(fxgrad.convert(other, inputs), inputs, target=1, method=method, **options)
    assert set(found.maps) == set(same.maps) == {"words", "positions"}
    assert all(torch.equal(found.maps[name], same.maps[name]) for name in found.maps)
