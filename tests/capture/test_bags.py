"""Bags of embeddings and one-hot codes as look-ups: each token's share is that of an embedding, looked up and summed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxgrad


class Net(nn.Module):
    def __init__(self, mode="sum", padding=None):
        super().__init__()
        self.words = nn.EmbeddingBag(9, 6, mode=mode, padding_idx=padding)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(6, 3))

    def forward(self, ids, weights=None):
        return self.head(self.words(ids, per_sample_weights=weights))


class Written(nn.Module):
    """The same, written with an embedding."""

    def __init__(self, net):
        super().__init__()
        self.words = nn.Embedding.from_pretrained(net.words.weight)
        self.head, self.mode, self.padding = net.head, net.words.mode, net.words.padding_idx

    def forward(self, ids, weights=None):
        rows = self.words(ids)
        rows = rows if weights is None else rows * weights[..., None]
        if self.mode == "max":
            return self.head(rows.max(1).values)  # of equal ones the first, as the bag
        kept = torch.ones_like(ids) if self.padding is None else (ids != self.padding).long()
        total = (rows * kept[..., None]).sum(1)
        return self.head(total / kept.sum(1, keepdim=True) if self.mode == "mean" else total)


def _ids():
    return torch.tensor([[1, 5, 5, 2], [3, 0, 0, 4], [8, 7, 0, 1]])


def _alike(ours, theirs, names=("words",)):
    assert ours.completeness_error < 1e-10
    assert torch.allclose(ours.apart, theirs.apart, rtol=0, atol=1e-10)
    for name in names:
        assert torch.allclose(ours.maps[name], theirs.maps[name], rtol=0, atol=1e-10), name


@pytest.mark.parametrize(
    ("mode", "padding", "weighted"),
    [("sum", None, False), ("sum", None, True), ("mean", None, False), ("mean", 0, False), ("max", None, False)],
)
def test_each_token_of_a_bag_has_its_share(mode, padding, weighted):
    torch.manual_seed(0)
    net = Net(mode, padding).double().eval()
    inputs = (_ids(), torch.rand(3, 4).double()) if weighted else (_ids(),)
    libra = fxgrad.convert(net, inputs)
    assert fxgrad.check(libra, inputs, original=net).passed
    written = fxgrad.convert(Written(net).double().eval(), inputs)
    names = ("weights", "words") if weighted else ("words",)
    found = fxgrad.attribute(libra, inputs, target=1)
    _alike(found, fxgrad.attribute(written, inputs, target=1), names)
    assert found.maps["words"].shape == (3, 4)
    if padding is not None:
        assert not found.map[_ids() == padding].any()
    other = tuple(x[:2] for x in inputs)
    assert torch.equal(libra(*other), net(*other))


class Ragged(Net):
    def forward(self, ids, starts):
        return self.head(self.words(ids.flatten(), starts))


@pytest.mark.parametrize("starts", [[0, 4, 8], [0, 2, 9]])
def test_bags_of_any_length(starts):
    torch.manual_seed(0)
    net, ids, starts = Ragged("mean").double().eval(), _ids(), torch.tensor(starts)
    libra = fxgrad.convert(net, (ids, starts), dynamic_shapes={"ids": None, "starts": None})
    found = fxgrad.attribute(libra, (ids, starts), target=1)
    assert found.completeness_error < 1e-10
    flat = (
        found.map
        if found.map.dim() == 3
        else torch.stack([row * torch.eye(3)[i, :, None] for i, row in enumerate(found.map)])
    )
    for i, bag in enumerate(ids.flatten().tensor_split(starts[1:])):
        written = fxgrad.convert(Written(net).double().eval(), (bag[None],))
        alone = fxgrad.attribute(written, (bag[None],), target=1).map[0]
        own = flat[i].flatten()[starts[i] : starts[i] + len(bag)]
        assert torch.allclose(own, alone, rtol=0, atol=1e-10)
        assert torch.allclose(flat[i].sum(), alone.sum(), rtol=0, atol=1e-10)  # and nothing from other bags
    assert found.map.dim() == (2 if starts.tolist() == [0, 4, 8] else 3)


def test_as_many_tokens_as_bags_are_no_examples():
    torch.manual_seed(0)
    net = Ragged("sum").double().eval()
    ids, starts = torch.tensor([4, 2, 7]), torch.tensor([0, 2, 2])
    found = fxgrad.attribute(fxgrad.convert(net, (ids, starts)), (ids, starts), target=1)
    assert found.map.shape == (3, 3) and found.completeness_error < 1e-10
    assert found.map[0, :2].all() and not found.map[0, 2:].any() and not found.map[1].any()


class Coded(nn.Module):
    def __init__(self, net, way):
        super().__init__()
        self.table, self.head, self.way = net.words.weight, net.head, way

    def forward(self, ids):
        codes = F.one_hot(ids, 9).to(self.table.dtype)
        rows = codes @ self.table if self.way == "product" else F.linear(codes, self.table.T.contiguous())
        return self.head(rows.sum(1))


@pytest.mark.parametrize("way", ["product", "linear"])
def test_one_hot_codes_are_a_look_up(way):
    torch.manual_seed(0)
    net = Net().double().eval()
    coded = Coded(net, way).double().eval()
    libra = fxgrad.convert(coded, (_ids(),))
    assert fxgrad.check(libra, (_ids(),), original=coded).passed
    theirs = fxgrad.attribute(fxgrad.convert(Written(net).double().eval(), (_ids(),)), (_ids(),), target=1)
    ours = fxgrad.attribute(libra, (_ids(),), target=1)
    assert torch.allclose(ours.map, theirs.map, rtol=0, atol=1e-10) and ours.completeness_error < 1e-10
