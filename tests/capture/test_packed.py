"""Recurrent layers of packed sequences: the original's bits, complete, and each sequence as if it were alone."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import fxgrad
from fxgrad.errors import InputError


class Packed(nn.Module):
    def __init__(self, kind, bidirectional=False, layers=1, in_order=True, **options):
        super().__init__()
        self.recurrent = kind(6, 8, layers, batch_first=True, bidirectional=bidirectional, **options)
        self.head = nn.Linear(8 * (1 + bidirectional), 3)
        self.in_order = in_order

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.in_order)
        output, last = self.recurrent(packed)
        padded, _ = pad_packed_sequence(output, batch_first=True)
        last = last[0] if isinstance(last, tuple) else last
        return self.head(padded.sum(1)) + last[-1].sum(-1, keepdim=True)


def _inputs(in_order=True, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(3, 7, 6, dtype=dtype), torch.tensor([7, 5, 2] if in_order else [3, 7, 2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(("bidirectional", "layers"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_layers_have_the_original_bits_and_are_complete(kind, bidirectional, layers, in_order, dtype):
    torch.manual_seed(0)
    model = Packed(kind, bidirectional, layers, in_order).to(dtype).eval()
    inputs = _inputs(in_order, dtype)
    libra = fxgrad.convert(model, inputs)
    assert fxgrad.check(libra, inputs, original=model).passed


@pytest.mark.parametrize(("kind", "options"), [(nn.RNN, {"nonlinearity": "relu"}), (nn.LSTM, {"bias": False})])
def test_variants(kind, options):
    model = Packed(kind, **options).double().eval()
    assert fxgrad.check(fxgrad.convert(model, _inputs()), _inputs(), original=model).passed


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_packed_sequence_is_attributed_as_if_it_were_alone(kind, in_order):
    torch.manual_seed(0)
    model = Packed(kind, True, 1, in_order).double().eval()
    x, lengths = _inputs(in_order)
    found = fxgrad.attribute(fxgrad.convert(model, (x, lengths)), (x, lengths), target=1)
    assert found.completeness_error < 1e-10

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = model.recurrent, model.head

        def forward(self, x):
            output, last = self.recurrent(x)
            last = last[0] if isinstance(last, tuple) else last
            return self.head(output.sum(1)) + last[-1].sum(-1, keepdim=True)

    for i, length in enumerate(lengths.tolist()):
        own = x[i : i + 1, :length]
        alone = fxgrad.attribute(fxgrad.convert(Alone().double().eval(), (own,)), (own,), target=1)
        assert torch.allclose(found.map[i, :length], alone.map[0], rtol=0, atol=1e-10)
        assert not found.map[i, length:].any() and torch.allclose(found.apart[i], alone.apart[0], rtol=0, atol=1e-10)


def test_other_lengths_are_refused():
    libra = fxgrad.convert(Packed(nn.LSTM).double().eval(), _inputs())
    with pytest.raises(InputError, match=r"reads its data at .*test_packed\.py:\d+: packed = pack_padded_sequence"):
        libra(_inputs()[0], torch.tensor([7, 4, 2]))


def test_a_packed_layer_under_the_plain_gradient_is_autograd():
    model = Packed(nn.LSTM, True, 2, False).double().eval()
    x, lengths = _inputs(False)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(fxgrad.convert(model, (x, lengths), rules="gradient")(x, lengths).sum(), x)
    (theirs,) = torch.autograd.grad(model(x, lengths).sum(), x)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


class Takes(nn.Module):
    """A model whose input is packed."""

    def __init__(self, kind=nn.LSTM, returns=False):
        super().__init__()
        self.recurrent, self.head, self.returns = kind(6, 8, bidirectional=True), nn.Linear(8, 3), returns

    def forward(self, batch):
        output, last = self.recurrent(batch["texts"])
        return output if self.returns else self.head((last[0] if isinstance(last, tuple) else last)[-1])


def _packed(in_order, lengths=(5, 4, 2)):
    torch.manual_seed(2)
    texts = [torch.randn(length, 6).double() for length in lengths]
    return {"texts": pack_sequence(texts if in_order else texts[::-1], enforce_sorted=in_order)}


@pytest.mark.parametrize(("kind", "in_order"), [(nn.LSTM, True), (nn.GRU, False)])
def test_a_packed_sequence_as_an_input_is_attributed_element_by_element(kind, in_order, tmp_path):
    model, batch = Takes(kind).double().eval(), _packed(in_order)
    libra = fxgrad.convert(model, (batch,))
    assert fxgrad.check(libra, (batch,), original=model).passed
    data = batch["texts"].data.clone().requires_grad_()
    value = libra({"texts": batch["texts"]._replace(data=data)})[:, 1]
    found = fxgrad.attribute(libra, (batch,), target=1)
    assert torch.equal(found.output, value) and found.completeness_error < 1e-10
    for i in range(3):
        (g,) = torch.autograd.grad(value[i], data, retain_graph=True)
        assert torch.allclose(found.maps["batch['texts']['data']"][i], (g * data).sum(1), rtol=0, atol=1e-12)
    fxgrad.save(libra, tmp_path / "packed.pt2")
    assert torch.equal(fxgrad.load(tmp_path / "packed.pt2")(batch), libra(batch))
    with pytest.raises(InputError, match=r"shape \(10, 6\), but the model was captured for \(11, 6\)"):
        libra(_packed(in_order, (5, 3, 2)))
    with pytest.raises(InputError, match=r"reads its data at .*test_packed\.py:\d+: output, last"):
        libra(_packed(in_order, (5, 3, 3)))


def test_a_packed_sequence_as_an_output():
    model, batch = Takes(returns=True).double().eval(), _packed(False)
    ours, theirs = fxgrad.convert(model, (batch,))(batch), model(batch)
    assert type(ours) is type(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs))
