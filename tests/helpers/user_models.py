"""Small float64 models of the kinds that users have, each with options and inputs that are drawn at random.

A family is a function of a `Pick`, which draws its options, to a `Family`: a model and a maker of its inputs. None of
them is taken from another test, and fxgrad is tuned for none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLASSES, WORDS = 3, 11


class Pick:
    """Draws options: the next of some numbers, modulo the number of options. All zeros draw the first options."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers, self.used = numbers, 0

    def __call__(self, *options: Any) -> Any:
        number = self.numbers[self.used % len(self.numbers)]
        self.used += 1
        return options[number % len(options)]


@dataclass
class Family:
    """A model, and how to make inputs for it.

    Attributes:
        model: in float64 and eval mode.
        make: (batch, longer, generator) -> the positional arguments; `longer` has other sizes beside the batch's.
        axes: for each argument, its axis of examples; None where all examples share it.
    """

    model: nn.Module
    make: Callable[[int, bool, torch.Generator], tuple[Any, ...]]
    axes: tuple[int | None, ...] = (0,)


class Made(nn.Module):
    """Modules by name, and a function of them and the inputs as the forward."""

    def __init__(self, call: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.call = call


class One(Made):
    def forward(self, x: Any) -> Any:
        return self.call(self, x)


class Two(Made):
    def forward(self, x: Any, y: Any) -> Any:
        return self.call(self, x, y)


class Optional(Made):
    def forward(self, x: Any, y: Any = None) -> Any:
        return self.call(self, x, y)


def normal(*shape: int) -> Callable[[int, bool, torch.Generator], tuple[Any, ...]]:
    """A maker of one input (batch, *shape); the last size grows by 2 if it shall be longer, and is above 4."""

    def make(batch: int, longer: bool, generator: torch.Generator) -> tuple[Any, ...]:
        grown = (*shape[:-1], shape[-1] + 2 * longer) if shape[-1] > 4 else shape
        return (torch.randn(batch, *grown, generator=generator, dtype=torch.float64),)

    return make


def act(pick: Pick) -> nn.Module:
    return pick(nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.ELU, nn.Hardswish, nn.Softplus, nn.Mish)()


def mlp(pick: Pick) -> Family:
    norm = pick(nn.Identity, lambda n: nn.LayerNorm(n), lambda n: nn.BatchNorm1d(n), lambda n: nn.RMSNorm(n))
    layers = [nn.Linear(4, 6, bias=pick(True, False)), norm(6), act(pick), nn.Dropout(0.1), nn.Linear(6, CLASSES)]
    return Family(nn.Sequential(*layers, pick(nn.Identity, nn.Identity, lambda: nn.Softmax(-1))()), normal(4))


def table(pick: Pick) -> Family:
    """Numbers and ids of categories."""
    how = pick("embeddings", "one table", "bag", "one hot")
    parts: dict[str, Any] = {"numbers": nn.LayerNorm(4), "first": nn.Linear(10, 6), "act": act(pick)}
    if how == "embeddings":
        parts["tables"] = nn.ModuleList(nn.Embedding(5, 3) for _ in range(2))
    elif how == "one hot":
        parts["first"] = nn.Linear(14, 6)
    else:
        parts["table"] = nn.Embedding(5, 3) if how == "one table" else nn.EmbeddingBag(5, 6, mode="mean")

    def call(m: Any, x: Tensor, ids: Tensor) -> Any:
        if how == "embeddings":
            coded = torch.cat([t(ids[:, i]) for i, t in enumerate(m.tables)], 1)
        elif how == "one hot":
            coded = F.one_hot(ids, 5).to(x).flatten(1)
        else:
            coded = m.table(ids).flatten(1)
        return m.last(m.act(m.first(torch.cat([m.numbers(x), coded], 1))))

    def make(batch: int, longer: bool, generator: torch.Generator) -> tuple[Any, ...]:
        return *normal(4)(batch, longer, generator), torch.randint(0, 5, (batch, 2), generator=generator)

    return Family(Two(call, **parts, last=nn.Linear(6, CLASSES)), make, (0, 0))


def cnn(pick: Pick) -> Family:
    """Over signals, pictures or volumes."""
    d = pick(2, 1, 3)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    norm = pick((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[d - 1], lambda n: nn.GroupNorm(2, n), nn.Identity)
    pools = {
        "max": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[d - 1](2),
        "mean": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[d - 1](2),
        "none": nn.Identity(),
    }
    residual, nhwc = pick(True, False), d == 2 and pick(False, False, True)
    parts = {
        "stem": conv(2, 4, 3, stride=pick(1, 2), padding=1),
        "pool": pools[pick("max", "mean", "none")],
        "blocks": nn.ModuleList(nn.Sequential(conv(4, 4, 3, padding=1), norm(4), act(pick)) for _ in range(2)),
        "last": nn.Linear(4, CLASSES),
    }

    def call(m: Any, x: Tensor) -> Any:
        x = m.pool(m.stem(x.permute(0, 3, 1, 2) if nhwc else x))
        for block in m.blocks:
            x = x + block(x) if residual else block(x)
        return m.last(x.flatten(2).mean(2))

    return Family(One(call, **parts), normal(8, 8, 2) if nhwc else normal(2, *[8] * d))


def blocks(pick: Pick, batch_first: bool = True) -> nn.ModuleList:
    first, kind = pick(True, False), pick("gelu", "relu")
    made = [nn.TransformerEncoderLayer(8, 2, 12, 0.1, kind, norm_first=first, batch_first=batch_first) for _ in "12"]
    return nn.ModuleList(made)


def vit(pick: Pick) -> Family:
    read, sizes = pick("class", "mean", "first patch"), pick("fixed", "interpolated")
    patches = nn.Parameter(torch.randn(1, 8, 4, 4))
    parts = {"cut": nn.Conv2d(3, 8, 2, 2), "start": nn.Parameter(torch.randn(1, 1, 8)), "places": patches}

    def call(m: Any, x: Tensor) -> Any:
        cut = m.cut(x)
        places = F.interpolate(m.places, cut.shape[2:], mode="bilinear") if sizes == "interpolated" else m.places
        tokens = (cut + places).flatten(2).transpose(1, 2)
        if read == "class":
            tokens = torch.cat([m.start.expand(len(x), -1, -1), tokens], 1)
        for block in m.blocks:
            tokens = block(tokens)
        tokens = m.norm(tokens)
        return m.last(tokens.mean(1) if read == "mean" else tokens[:, 0])

    return Family(
        One(call, **parts, blocks=blocks(pick), norm=nn.LayerNorm(8), last=nn.Linear(8, CLASSES)),
        lambda batch, longer, g: (torch.randn(batch, 3, 8, 8 + 2 * longer, generator=g, dtype=torch.float64),),
    )


def ids_of(batch: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, WORDS, (batch, length), generator=generator)


def mask_of(batch: int, length: int) -> Tensor:
    """The last words of every second text are padding."""
    return torch.arange(length)[None] < torch.tensor([length - 2 * (i % 2) for i in range(batch)])[:, None]


def text(pick: Pick) -> Family:
    """Token ids and a mask of padding."""
    read, number = pick("mean", "first", "per token"), pick(torch.bool, torch.int64)

    def call(m: Any, ids: Tensor, mask: Tensor) -> Any:
        x = m.words(ids) + m.places(torch.arange(ids.shape[1]))
        for block in m.blocks:
            x = block(x, src_key_padding_mask=mask == 0)
        if read == "per token":
            return m.last(x)
        kept = mask[..., None].to(x)
        return m.last((x * kept).sum(1) / kept.sum(1) if read == "mean" else x[:, 0])

    parts = {"words": nn.Embedding(WORDS, 8, padding_idx=0), "places": nn.Embedding(12, 8), "blocks": blocks(pick)}
    return Family(
        Two(call, **parts, last=nn.Linear(8, CLASSES)),
        lambda batch, longer, g: (
            ids_of(batch, 6 + 2 * longer, g),
            mask_of(batch, 6 + 2 * longer).to(number),
        ),
        (0, 0),
    )


def decoder(pick: Pick) -> Family:
    """A causal language model."""
    tied, own = pick(True, False), pick("sdpa", "softmax")

    def call(m: Any, ids: Tensor) -> Any:
        x = m.words(ids) + m.places.weight[: ids.shape[1]]
        for norm, qkv, out, mlp in m.layers:
            q, k, v = qkv(norm(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            if own == "sdpa":
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                scores = q @ k.transpose(-1, -2) / 2
                hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
                mixed = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
            x = x + out(mixed.transpose(1, 2).flatten(2))
            x = x + mlp(x)
        return F.linear(x, m.words.weight) if tied else m.last(x)

    layer = [
        nn.RMSNorm(8),
        nn.Linear(8, 24),
        nn.Linear(8, 8),
        nn.Sequential(nn.Linear(8, 12), act(pick), nn.Linear(12, 8)),
    ]
    parts = {
        "words": nn.Embedding(WORDS, 8),
        "places": nn.Embedding(12, 8),
        "layers": nn.ModuleList([nn.ModuleList(layer)]),
    }
    return Family(One(call, **parts, last=nn.Linear(8, WORDS)), lambda b, longer, g: (ids_of(b, 5 + 2 * longer, g),))


def translator(pick: Pick) -> Family:
    """Ids of one text and of another one."""
    shared = pick(True, False)

    def call(m: Any, source: Tensor, target: Tensor) -> Any:
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        return m.last(m.body(m.words(source), (m.words if shared else m.others)(target), tgt_mask=causal))

    body = nn.Transformer(8, 2, 1, 1, 12, norm_first=pick(False, True), batch_first=True)
    parts = {"words": nn.Embedding(WORDS, 8), "others": nn.Embedding(WORDS, 8), "body": body}
    return Family(
        Two(call, **parts, last=nn.Linear(8, WORDS)),
        lambda b, longer, g: (ids_of(b, 5 + 2 * longer, g), ids_of(b, 4, g)),
        (0, 0),
    )


def recurrent(pick: Pick) -> Family:
    """An LSTM or GRU over numbers; batch or sequence first, or packed with the lengths."""
    kind, form, read = pick(nn.LSTM, nn.GRU), pick("batch", "sequence", "packed"), pick("last", "mean")
    two = pick(False, True)
    parts = {
        "net": kind(3, 4, bidirectional=two, batch_first=form != "sequence"),
        "last": nn.Linear(8 if two else 4, CLASSES),
    }
    if form == "packed":

        def packed(m: Any, x: Tensor, lengths: Tensor) -> Any:
            inside = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            found, _ = nn.utils.rnn.pad_packed_sequence(m.net(inside)[0], batch_first=True)
            return m.last(found.sum(1) / lengths[:, None])

        def make(batch: int, longer: bool, g: torch.Generator) -> tuple[Any, ...]:
            lengths = torch.tensor([5 - i % 2 for i in range(batch)])
            return torch.randn(batch, 5, 3, generator=g, dtype=torch.float64), lengths

        return Family(Two(packed, **parts), make, (0, 0))

    def call(m: Any, x: Tensor) -> Any:
        axis = 0 if form == "sequence" else 1
        found = m.net(x)[0]
        return m.last(found.mean(axis) if read == "mean" else found.select(axis, -1))

    def of(batch: int, longer: bool, g: torch.Generator) -> tuple[Any, ...]:
        x = torch.randn(batch, 5 + 2 * longer, 3, generator=g, dtype=torch.float64)
        return (x.transpose(0, 1).contiguous() if form == "sequence" else x,)

    return Family(One(call, **parts), of, (1 if form == "sequence" else 0,))


def graph(pick: Pick) -> Family:
    """Numbers of nodes and a list of edges; the examples are the graph's nodes, or graphs by their number."""
    per = pick("node", "graph")

    def call(m: Any, x: Tensor, edges: Tensor) -> Any:
        for own, other in m.layers:
            sent = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
            x = torch.relu(own(x) + other(sent))
        return m.last(x) if per == "node" else m.last(x.mean(0, keepdim=True))

    def make(batch: int, longer: bool, g: torch.Generator) -> tuple[Any, ...]:
        nodes = 4 + batch
        return (
            torch.randn(nodes, 4, generator=g, dtype=torch.float64),
            torch.randint(0, nodes, (2, 7 + 2 * longer), generator=g),
        )

    layers = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)]) for _ in "12")
    return Family(Two(call, layers=layers, last=nn.Linear(4, CLASSES)), make, (None, None))


def siamese(pick: Pick) -> Family:
    """Two pictures through one tower."""
    end = pick("joined", "distance", "product", "cosine")

    def call(m: Any, x: Tensor, y: Tensor) -> Any:
        a, b = m.tower(x), m.tower(y)
        if end == "cosine":
            return F.cosine_similarity(a, b)
        if end == "joined":
            return m.last(torch.cat([a, b], 1))
        return m.alone((a - b).abs() if end == "distance" else a * b)

    tower = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), act(pick), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    )
    return Family(
        Two(call, tower=tower, last=nn.Linear(10, CLASSES), alone=nn.Linear(5, CLASSES)),
        lambda b, longer, g: (*normal(1, 6, 6)(b, longer, g), *normal(1, 6, 6)(b, longer, g)),
        (0, 0),
    )


def sequence_first(pick: Pick) -> Family:
    """A transformer over (length, batch, width)."""
    batch_in_output = pick("row", "column")

    def call(m: Any, x: Tensor) -> Any:
        for block in m.blocks:
            x = block(x)
        return m.last(x.mean(0)) if batch_in_output == "row" else m.last(x)

    def make(batch: int, longer: bool, g: torch.Generator) -> tuple[Any, ...]:
        return (torch.randn(5 + 2 * longer, batch, 8, generator=g, dtype=torch.float64),)

    return Family(One(call, blocks=blocks(pick, batch_first=False), last=nn.Linear(8, CLASSES)), make, (1,))


def reader(pick: Pick) -> Family:
    """Models whose Python looks at data."""
    how = pick("flag", "lengths", "any", "masked", "none")

    def call(m: Any, x: Tensor, y: Any) -> Any:
        if how == "flag":
            x = m.first(x) if bool(m.flag) else m.first(x) * 2
        elif how == "lengths":
            x = m.first(x[:, : int(y.max())])
        elif how == "any":
            x = m.first(x.masked_fill(y[..., None] < 4, 0.0) if bool((y < 4).any()) else x)
        elif how == "masked":
            x = m.first(x).index_put((y < 4,), m.empty)
        else:
            x = m.first(x) if y is None else m.first(x) * y[:, :1, None]
        return m.last(torch.relu(x).mean(1))

    def make(batch: int, longer: bool, g: torch.Generator) -> tuple[Any, ...]:
        x = torch.randn(batch, 6, 3, generator=g, dtype=torch.float64)
        second = {
            "lengths": lambda: torch.tensor([5 - i % 2 for i in range(batch)]),
            "any": lambda: torch.randint(3, 9, (batch, 6), generator=g),
            "masked": lambda: torch.randint(3, 9, (batch, 6), generator=g),
        }
        return (x, second[how]()) if how in second else (x,)

    parts = {"first": nn.Linear(3, 5), "last": nn.Linear(5, CLASSES), "flag": torch.tensor(True)}
    return Family(Optional(call, **parts, empty=nn.Parameter(torch.randn(5))), make, (0, 0))


class Cube(torch.autograd.Function):
    """A function of the user's with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * ctx.saved_tensors[0] ** 2 * g


def odd(pick: Pick) -> Family:
    """A checkpoint, an autograd.Function, a layer over frequencies, a part without gradient, a random number."""
    how = pick("reentrant", "checkpoint", "function", "fourier", "complex weight", "no_grad", "inplace", "dropout")

    def call(m: Any, x: Tensor) -> Any:
        if how in ("reentrant", "checkpoint"):
            x = checkpoint(m.first, x, use_reentrant=how == "reentrant")
        elif how == "function":
            x = Cube.apply(m.first(x))
        elif how == "fourier":
            x = torch.fft.irfft(torch.fft.rfft(m.first(x), dim=1)[:, :3] * m.kept, n=x.shape[1], dim=1)
        elif how == "complex weight":
            x = torch.fft.irfft(torch.fft.rfft(m.first(x), dim=1) * m.spectrum, n=x.shape[1], dim=1)
        elif how == "no_grad":
            with torch.no_grad():
                x = m.first(x)
        elif how == "inplace":
            x = m.first(x)
            x[:, 0] += 1
            x.mul_(0.5)
        else:
            x = F.dropout(m.first(x), 0.5, training=True)
        return m.last(m.act(x).mean(1))

    parts = {"first": nn.Sequential(nn.Linear(3, 5), act(pick)), "act": act(pick), "last": nn.Linear(5, CLASSES)}
    spectrum = nn.Parameter(torch.randn(4, 5, dtype=torch.complex128))
    return Family(One(call, **parts, kept=torch.rand(3, 5), spectrum=spectrum), normal(6, 3))


FAMILIES: dict[str, Callable[[Pick], Family]] = {
    f.__name__: f
    for f in (
        *(mlp, table, cnn, vit, text, decoder, translator, recurrent, graph, siamese, sequence_first, reader, odd),
    )
}


@dataclass
class Output:
    """What a model of the transformers kind returns."""

    logits: Tensor
    hidden: Tensor


torch.export.register_dataclass(Output)

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "probabilities": lambda y: (y, y.softmax(-1)),
    "loss": lambda y: {"loss": F.cross_entropy(y.flatten(0, -2), y.new_zeros(y[..., 0].numel()).long()), "logits": y},
    "output": lambda y: Output(y, y * 2),
    "pair": lambda y: (y, y.square()),
    "classes": lambda y: {"logits": y, "classes": y.argmax(-1)},
}
"""Structures of outputs; a bare tensor is none of them."""


class Structured(nn.Module):
    """A model with its output in another structure."""

    def __init__(self, model: nn.Module, form: str) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, *args: Any) -> Any:
        return FORMS[self.form](self.model(*args))


def family_of(name: str, numbers: Sequence[int], seed: int) -> Family:
    """The family's member that some numbers draw, with the weights of a seed."""
    pick = Pick(numbers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family = FAMILIES[name](pick)
        form = pick("bare", "bare", "bare", *FORMS)
        if form != "bare":
            family.model = Structured(family.model, form)
        family.model.double().eval()
        for module in family.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()  # type: ignore[union-attr, operator]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return family
