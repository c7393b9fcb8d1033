"""Models whose Python code reads data: right for inputs that decide as the example did, one clear error for others."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import fxgrad
from fxgrad.errors import CaptureError, InputError


class _Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)


class Flag(_Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("ready", torch.tensor(True))

    def forward(self, x, lengths):
        return self.linear(x).tanh() if self.ready else self.linear(x) * 2


class Largest(_Base):
    def forward(self, x, lengths):
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return self.linear(x).tanh() * mask[..., None]


class Split(_Base):
    def forward(self, x, lengths):
        parts = self.linear(x).flatten(0, 1).split(lengths.tolist() + [int(10 - lengths.sum())])
        return torch.stack([part.tanh().sum(0) for part in parts])


class Masked(_Base):
    def forward(self, x, lengths):
        y = self.linear(x)
        kept = y[torch.arange(5)[None] < lengths[:, None]]
        return kept.tanh().reshape(4 if len(kept) > 2 else 2, -1, 3).sum(1)


class Selected(_Base):
    def forward(self, x, lengths):
        mask = torch.arange(5)[None] < lengths[:, None]
        y = torch.masked_select(self.linear(x), mask[..., None]).reshape(-1, 3)
        return y.tanh() if len(y) > 2 else y


class Positions(_Base):
    def forward(self, x, lengths):
        where = torch.nonzero(torch.arange(5) < lengths[0])[:, 0]
        y = self.linear(x)[:, where]
        return y.tanh() if y.shape[1] > 2 else y


class Array(_Base):
    def forward(self, x, lengths):
        return self.linear(x)[:, : int(lengths.numpy().max())].tanh()


class Same(_Base):
    def forward(self, x, lengths):
        y = self.linear(x)
        return y if torch.equal(lengths, torch.tensor([1, 1])) else y.tanh()


class Sized(_Base):
    def forward(self, x, lengths):
        most = lengths.max()
        return self.linear(x)[:, :most].tanh() + torch.zeros(most, 3, dtype=x.dtype)


class Repeated(_Base):
    def forward(self, x, lengths):
        y = torch.repeat_interleave(self.linear(x[:, 0]), lengths, 0)
        return y.tanh() if len(y) > 2 else y


class Chosen(_Base):
    def forward(self, x, lengths):
        y = self.linear(x)[:, : int(lengths.max())]
        return torch.where(y > 0, y, 0.1 * y)


class Resized(_Base):
    def forward(self, x, lengths):
        y = F.interpolate(self.linear(x).mT, size=(lengths[1],), mode="linear")
        return F.pad(y, (0, 5 - lengths[1])).mT.tanh()


class Ends(_Base):
    def forward(self, x, lengths):
        ends = torch.unique_consecutive(torch.cat([lengths.new_zeros(1), lengths.flip(0).cumsum(0)]))
        parts = self.linear(x).flatten(0, 1)[: int(ends[-1])].split(ends.diff().tolist())
        return torch.stack([part.tanh().sum(0) for part in parts])


class Distinct(_Base):
    def forward(self, x, lengths):
        known, which, counts = torch.unique(lengths, return_inverse=True, return_counts=True)
        y = self.linear(x)[:, : len(known)] * counts[which].to(x)[:, None, None]
        return y.tanh() if len(known) > 1 else y


GENERAL = [Resized] if torch.__version__ < (2, 12) else [Sized, Resized]  # it cannot slice by a size that it traces
MODELS = [
    Ends,
    Distinct,
    Chosen,
    Resized,
    Flag,
    Largest,
    Split,
    Masked,
    Selected,
    Positions,
    Array,
    Same,
    Sized,
    Repeated,
]


def _inputs():
    torch.manual_seed(1)
    return torch.randn(2, 5, 4).double(), torch.tensor([5, 3])


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_reads_data_is_converted_for_what_the_example_decides(kind):
    torch.manual_seed(0)
    model, (x, lengths) = kind().double().eval(), _inputs()
    libra = fxgrad.convert(model, (x, lengths))
    other = torch.randn_like(x)  # the same decisions, other numbers
    assert torch.equal(libra(other, lengths), model(other, lengths))
    assert fxgrad.check(libra, (other, lengths), original=model).passed


@pytest.mark.parametrize("kind", [m for m in MODELS if m is not Flag])
def test_other_inputs_that_decide_otherwise_are_refused(kind):
    model, (x, lengths) = kind().double().eval(), _inputs()
    libra = fxgrad.convert(model, (x, lengths))
    other = torch.tensor([1, 1])
    if kind in GENERAL:  # torch.export needs no decision of the example
        assert torch.equal(libra(x, other), model(x, other))
        return
    with pytest.raises(InputError, match=r"reads its data at .*test_decisions\.py:\d+: ") as caught:
        libra(x, other)
    assert "finds something else for these inputs" in str(caught.value)
    assert "Convert it again with an example like them." in str(caught.value)


def test_a_buffer_that_decides_is_checked_when_it_changes():
    model, inputs = Flag().double().eval(), _inputs()
    libra = fxgrad.convert(model, inputs)
    libra.load_state_dict({**libra.state_dict(), "ready": torch.tensor(False)})
    with pytest.raises(InputError, match="found True for the example"):
        libra(*inputs)


class Guarded(_Base):
    def forward(self, x):
        if x.max() > 1:
            x = x / 255
        return self.linear(x).tanh()


def test_a_decision_on_the_attributed_input_itself():
    model, x = Guarded().double().eval(), torch.rand(1, 4).double()
    libra = fxgrad.convert(model, (x,))
    batch = torch.rand(3, 4).double()  # the batch of one stays free
    assert torch.equal(libra(batch), model(batch))
    assert fxgrad.attribute(libra, (batch,), target=1).completeness_error < 1e-10
    with pytest.raises(InputError, match="found False for the example"):
        libra(batch * 200)


def test_a_saved_model_keeps_its_decisions(tmp_path):
    model, (x, lengths) = Largest().double().eval(), _inputs()
    fxgrad.save(fxgrad.convert(model, (x, lengths)), tmp_path / "model.pt2")
    loaded = fxgrad.load(tmp_path / "model.pt2")
    assert torch.equal(loaded(x, lengths), model(x, lengths))
    with pytest.raises(InputError, match="reads its data at"):
        loaded(x, torch.tensor([1, 1]))


def test_decisions_hold_under_every_policy_and_for_gradients():
    model, (x, lengths) = Largest().double().eval(), _inputs()
    libra = fxgrad.convert(model, (x, lengths))
    x.requires_grad_()
    (plain,) = torch.autograd.grad(model(x, lengths).sum(), x)
    (ours,) = torch.autograd.grad(libra.under("gradient")(x, lengths).sum(), x)
    assert torch.allclose(plain, ours, rtol=0, atol=1e-12)


class Unlike(_Base):
    def forward(self, x):
        if torch.compiler.is_exporting() and bool(x.sum() > 0) and x.max() > 9:
            return x
        return self.linear(x) if x.sum() > -1e9 else x


def test_a_model_that_reads_otherwise_while_it_is_traced_is_refused():
    with pytest.raises(CaptureError, match=r"reads its data at .* while it is traced, but not where it runs"):
        fxgrad.convert(Unlike().eval(), (torch.rand(2, 4),))


def test_a_model_without_data_dependence_has_no_checks():
    libra = fxgrad.convert(nn.Linear(4, 3).eval(), (torch.rand(2, 4),))
    assert not any("decided" in str(n.target) for n in libra.classified.captured.graph.nodes)


class Noise(_Base):
    def forward(self, x):
        return self.linear(x * torch.randn(4, dtype=x.dtype).exp()).relu()


class Sampling(_Base):
    def forward(self, x):
        y = self.linear(x)
        return (y + torch.randn_like(y) * y.exp()).relu() * torch.empty_like(y).uniform_(0.5, 1)


class Shuffled(_Base):
    def forward(self, x):
        kept = torch.rand(x.shape[1]).argsort()[:2]
        return F.dropout(self.linear(x).tanh(), 0.5)[:, :2] * (kept + 1)


@pytest.mark.parametrize("kind", [Noise, Sampling, Shuffled])
def test_random_numbers_are_refused_or_drawn_once(kind):
    torch.manual_seed(0)
    model, x = kind().double().eval(), torch.randn(2, 4).double()
    with pytest.raises(CaptureError, match=r"draws random numbers, .*test_decisions\.py:\d+.*on_random=\"freeze\""):
        fxgrad.convert(model, (x,))
    libra = fxgrad.convert(model, (x,), on_random="freeze")
    assert torch.equal(libra(x), libra(x))
    assert fxgrad.check(libra, (x,)).passed
    assert list(libra.state_dict()) == list(model.state_dict())


def test_frozen_numbers_are_saved(tmp_path):
    model, x = Noise().double().eval(), torch.randn(2, 4).double()
    libra = fxgrad.convert(model, (x,), on_random="freeze")
    fxgrad.save(libra, tmp_path / "model.pt2")
    assert torch.equal(fxgrad.load(tmp_path / "model.pt2")(x), libra(x))


def test_numbers_that_cannot_be_drawn_ahead_say_so():
    class Gumbel(_Base):
        def forward(self, x):
            return F.gumbel_softmax(self.linear(x)) @ self.linear.weight

    with pytest.raises(CaptureError, match="These cannot be drawn ahead: make the model deterministic in eval mode"):
        fxgrad.convert(Gumbel().eval(), (torch.randn(2, 4),), on_random="freeze")


class Pooled(_Base):
    """Reads its data in __call__, as torch_geometric's aggregations do."""

    def __call__(self, x, lengths, size=None):
        return super().__call__(x, lengths, size=int(lengths.max()) if size is None else size)

    def forward(self, x, lengths, size):
        return self.linear(x).tanh()[:, :size]


def test_a_call_of_its_own_is_captured_as_a_whole():
    model = Pooled().double().eval()
    model.register_forward_hook(lambda module, args, output: 2 * output)
    x, lengths = torch.randn(2, 5, 4).double(), torch.tensor([3, 2])
    libra = fxgrad.convert(model, (x, lengths))
    assert libra(x, lengths).shape == (2, 3, 3)  # the hook ran once: doubled, not more
    assert torch.equal(libra(x, lengths), model(x, lengths))
    assert fxgrad.check(libra, (x, lengths), original=model).passed
    with pytest.raises(InputError, match=r"reads its data at test_decisions\.py:\d+: .*lengths\.max.*found 3"):
        libra(x, torch.tensor([4, 2]))
    given = fxgrad.convert(model, (x, lengths), {"size": 2})
    assert torch.equal(given(x, lengths, size=2), model(x, lengths, size=2))


def test_the_arguments_are_those_of_its_own_call():
    with pytest.raises(InputError, match="lengths"):
        fxgrad.convert(Pooled().eval(), (torch.randn(2, 5, 4),))


class Coded(_Base):
    """Gives PyTorch tensors where it wants numbers."""

    def forward(self, x, lengths):
        coded = F.one_hot(lengths, max(lengths.max() + 1, 2)).to(x)
        picked = self.linear(x).topk(lengths.min(), dim=1).values.roll(lengths.min(), 1)
        padded = F.pad(picked, (0, 0, 0, lengths.max()))
        return padded.sum(1) * coded.sum() + torch.full((lengths.min(), 3), lengths.max()).to(x).sum(0)


class CodedFreely(_Base):
    def forward(self, x, lengths):
        return self.linear(x).sum(1) * F.one_hot(lengths).sum(1).to(x)[:, None] * F.one_hot(lengths).shape[1]


@pytest.mark.parametrize("kind", [Coded, CodedFreely])
def test_tensors_that_pytorch_takes_for_numbers_are_read(kind):
    model = kind().double().eval()
    x, lengths = torch.randn(2, 5, 4).double(), torch.tensor([3, 2])
    libra = fxgrad.convert(model, (x, lengths))
    for other in (x, 3 * x):
        assert torch.equal(libra(other, lengths), model(other, lengths))
    assert fxgrad.check(libra, (x, lengths), original=model).passed
    with pytest.raises(InputError, match="Convert it again with an example like them"):
        libra(x, torch.tensor([4, 1]))


class Larger(_Base):
    """Takes the larger one of a number and a tensor, in several ways; torch.export makes an op of that."""

    def forward(self, x, lengths):
        sizes = (max(lengths.max() + 1, 6), max([4, lengths.max() + 1]), min(lengths.min(), 1), max(2, 3))
        return self.linear(x).sum(1) * sum(F.one_hot(lengths % size, size).sum() * size for size in sizes)


@pytest.mark.parametrize(("lengths", "other"), [([3, 2], [4, 2]), ([1, 1], [2, 3])])
def test_the_larger_one_of_a_tensor_and_a_number_is_pythons(lengths, other):
    model, lengths = Larger().double().eval(), torch.tensor(lengths)
    x = torch.randn(2, 5, 4).double()
    libra = fxgrad.convert(model, (x, lengths))
    assert torch.equal(libra(3 * x, lengths), model(3 * x, lengths))
    assert fxgrad.check(libra, (x, lengths), original=model).passed
    with pytest.raises(InputError, match=r"reads its data at test_decisions\.py:\d+: .*max"):
        libra(x, torch.tensor(other))
    assert max(2, torch.tensor(3)) == 3 and type(max).__name__ == "builtin_function_or_method"


class Centred(nn.Module):
    """Cuts the middle out of its weights, as many as the input has; where that is free, torch.export loses count."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3))

    def forward(self, x):
        start = 6 - min(x.shape[1], 6)
        middle = self.weight[start // 2 : -start // 2] if start else self.weight
        return torch.einsum("bni,nc->bc", x, middle) / int(middle.shape[0])


def test_a_size_that_cannot_be_computed_of_free_ones_is_fixed():
    model, x = Centred().double().eval(), torch.randn(2, 4, 5).double()
    libra = fxgrad.convert(model, (x,))
    assert [size is None for size in libra.classified.captured.inputs[0].shape][:2] == [True, False]
    assert torch.equal(libra(x[:1]), model(x[:1])) and fxgrad.check(libra, (x,), original=model).passed
    with pytest.raises(InputError, match=r"Axis 1 is fixed at 4 by test_decisions\.py:\d+: "):
        libra(torch.randn(2, 2, 5).double())


class Moves(_Base):
    def forward(self, x):
        return self.linear.to(x.device)(x).tanh()


class Casts(_Base):
    def forward(self, x):
        return self.linear.float()(x.float()).tanh()


def test_a_part_may_be_moved_to_where_it_is():
    model, x = Moves().double().eval(), torch.randn(2, 4).double()
    libra = fxgrad.convert(model, (x,))
    assert torch.equal(libra(x), model(x)) and fxgrad.check(libra, (x,), original=model).passed
    assert "_apply" not in vars(model.linear)


class Listening(_Base):
    """Notes by a hook, bound to itself, what a part computes."""

    noted = None

    def note(self, module, args, output):
        self.noted = output

    def forward(self, x):
        self.noted = None
        self.linear(x)
        return self.noted.tanh()


def test_a_hook_bound_to_the_model_reaches_what_runs_in_its_place():
    model, x = Listening().double().eval(), torch.randn(2, 4).double()
    model.linear.register_forward_hook(model.note)
    expected = model(x)
    before = dict(vars(model))
    libra = fxgrad.convert(model, (x,))
    assert torch.equal(libra(x), expected) and fxgrad.check(libra, (x,), original=model).passed
    assert vars(model).keys() == before.keys() and type(model.noted) is torch.Tensor


def test_a_part_that_changes_while_the_model_runs_is_refused():
    model = Casts().double().eval()
    with pytest.raises(
        CaptureError, match=r"its own Linear from torch\.float64.*to torch\.float32.*convert the changed"
    ):
        fxgrad.convert(model, (torch.randn(2, 4).double(),))


def test_the_message_is_the_same_whatever_runs_the_program():
    class Positive(_Base):
        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else self.linear(x).tanh()

    libra = fxgrad.convert(Positive().eval(), (torch.ones(2, 4),))
    texts = set()
    for call in (lambda: libra(-torch.ones(2, 4)), lambda: fxgrad.check(libra, (-torch.ones(2, 4),))):
        with pytest.raises(InputError, match="reads its data") as caught:
            call()
        texts.add(str(caught.value))
    assert len(texts) == 1


class Placed(_Base):
    """Puts rows in the places of a prompt that are marked, as a model of pictures does; `way` says how it is checked."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x, rows, marked):
        fits = marked.sum() == rows.shape[0]
        if self.way == "item":
            torch._check(fits.item(), lambda: "rows and marks do not match")
        elif self.way == "async":
            torch._assert_async(fits, "rows and marks do not match")
        elif self.way == "tensor":
            torch._check_tensor_all(fits[None], lambda: "rows and marks do not match")
        else:
            transformers.utils.torch_compilable_check(fits, "rows and marks do not match", RuntimeError)
        return self.linear(x.masked_scatter(marked[..., None], rows)).tanh()


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("way", ["item", "tensor", "transformers", "async"])
def test_what_a_model_asserts_of_its_data_is_asserted(way, exported, tmp_path):
    model = Placed(way).double().eval()
    marked = torch.tensor([[True, False, False], [False, True, True]])
    x, rows = torch.randn(2, 3, 4).double(), torch.randn(3, 4).double()
    source = torch.export.export(model, (x, rows, marked)) if exported else model
    if exported and way != "async" and torch.__version__ < (2, 12):
        with pytest.raises(CaptureError, match=r"torch\.export cannot decompose the program"):
            fxgrad.convert(source, (x, rows, marked))
        return
    libra = fxgrad.convert(source, (x, rows, marked))
    fxgrad.save(libra, tmp_path / "placed.pt2")
    other = torch.zeros_like(marked).index_fill(1, torch.tensor([0]), True)
    with pytest.raises(RuntimeError, match="do not match"):
        model(x, rows, other)
    for module in (libra, libra.under("gradient"), fxgrad.load(tmp_path / "placed.pt2")):
        assert torch.equal(module(x, rows, marked), model(x, rows, marked))
        with pytest.raises(InputError, match=r"the model itself refuses these inputs: .* does not hold, at .*\.py:\d+"):
            module(x, rows, other)
    assert fxgrad.check(libra, (x, rows, marked)).passed


def test_what_a_model_asserts_of_sizes_stays_with_the_checks_of_sizes():
    class Sized(_Base):
        def forward(self, x):
            torch._check(x.shape[0] < 100)
            return self.linear(x)

    libra = fxgrad.convert(Sized().eval(), (torch.ones(2, 4),))
    assert not any("decided" in str(node.target) for node in libra.classified.captured.graph.nodes)
