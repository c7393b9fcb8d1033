"""What a model of each kind is asked: which inputs it gets, and which of its outputs say the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.errors import InputError
from fxgrad.methods import Similarity
from fxgrad.methods.names import resolve
from fxgrad.module.converted import ConvertedModule
from fxgrad.text.host import Host
from fxgrad.text.pieces import pieces
from fxgrad.text.prompts import Encoded, answered, padded
from fxgrad.text.rows import Question, plain
from fxgrad.text.seen import Seen

Answers = Sequence[Any]
"""The answer to each prompt; None for the model's own."""


def causal(host: Host, prompts: list[Encoded], answers: Answers, against: Answers) -> Question:
    """A causal model: each token of the answer is said by the row before it."""
    said = [answered(host.tokenizer, a) for a in answers]
    texts = [[*p.ids, *a] for p, a in zip(prompts, said)]
    host.check(texts)
    ids = padded([text[:-1] for text in texts], host.padding, host.device)
    first = min(len(p.ids) for p in prompts) - 1
    kwargs: dict[str, Any] = {"input_ids": ids, **host.given("use_cache", False)}
    if host.model is None:  # a module that was converted with a mask wants one
        kwargs |= host.given("attention_mask", padded([[1] * (len(text) - 1) for text in texts], 0, host.device))
    more = host.continued(prompts[0], len(said[0]) - 1)
    seen = host.seen(prompts[0], more)
    kwargs |= host.positions(ids, more)
    kwargs |= host.given("logits_to_keep", torch.arange(first, ids.shape[1], device=host.device))
    start = first if "logits_to_keep" in kwargs else 0
    rows = [[len(p.ids) - 1 - start + i for i in range(len(a))] for p, a in zip(prompts, said)]
    tokens = [pieces(host.tokenizer, text) for text in texts]
    behind = [text[len(p.ids) :] for text, p in zip(tokens, prompts)]
    before = [_named(text[: len(p.ids)], seen) for text, p in zip(tokens, prompts)]
    columns = [(*b, *text[len(p.ids) : -1]) for b, text, p in zip(before, tokens, prompts)]
    return Question(
        kwargs, columns, [len(b) for b in before], behind, _last(rows, host.device), _last(said, host.device), plain,
        *_others(host, said, against), seen=seen,
    )  # fmt: skip


def seq2seq(host: Host, prompts: list[Encoded], answers: Answers, against: Answers) -> Question:
    """An encoder and a decoder: the prompt is the encoder's, the answer follows the decoder's start."""
    start = host.start()
    said = [answered(host.tokenizer, a) for a in answers]
    host.check([*([*start, *a] for a in said), *(p.ids for p in prompts if p.ids)])
    given = padded([[*start, *a[:-1]] for a in said], host.padding, host.device)
    kwargs = {**encoder_inputs(host, prompts), "decoder_input_ids": given, **host.given("use_cache", False)}
    rows = [[len(start) - 1 + i for i in range(len(a))] for a in said]
    answer = [pieces(host.tokenizer, a) for a in said]
    seen = host.seen(prompts[0], kwargs)
    before = [(*_named(_source(host, p), seen), *pieces(host.tokenizer, start)) for p in prompts]
    columns = [(*b, *a[:-1]) for b, a in zip(before, answer)]
    return Question(
        kwargs, columns, [len(b) for b in before], answer, _last(rows, host.device), _last(said, host.device), plain,
        *_others(host, said, against), seen=seen,
    )  # fmt: skip


def masked(host: Host, prompts: list[Encoded], answers: Answers, against: Answers) -> Question:
    """A masked model: the answer's tokens stand in the places of the masks."""
    mask = host.tokenizer.mask_token_id
    rows = [[i for i, token in enumerate(p.ids) if token == mask] for p in prompts]
    if not all(rows):
        raise InputError(
            f"the prompt has no {host.tokenizer.mask_token}, so a model that fills in masks is asked nothing. Put one "
            "in the place of each token to explain; to explain text that goes on, use a causal model."
        )
    host.check([p.ids for p in prompts])
    kwargs, places = encoder_inputs(host, prompts), _last(rows, host.device)
    if any(a is None for a in answers):
        likeliest = host.outputs(kwargs).logits.argmax(-1)
        answers = [likeliest[i, row] if a is None else a for i, (a, row) in enumerate(zip(answers, rows))]
    said = [answered(host.tokenizer, a) for a in answers]
    for a, row in zip(said, rows):
        if len(a) != len(row):
            raise InputError(f"the answer has {len(a)} tokens, the prompt {len(row)} masks: one mask for each token.")
    answer = [tuple(pieces(host.tokenizer, [t])[0] for t in a) for a in said]
    return _of_prompts(
        host, prompts, kwargs, answer, places, _last(said, host.device), plain, *_others(host, said, against)
    )


def classes(host: Host, prompts: list[Encoded], answers: Answers, against: Answers) -> Question:
    """A classifier of texts: the answer is a label."""
    host.check([p.ids for p in prompts])
    kwargs, names = encoder_inputs(host, prompts), host.labels

    def logits(outputs: Any) -> Tensor:
        found: Tensor = outputs.logits[:, None]
        return found

    given = host.outputs(kwargs).logits
    chosen = [int(given[i].argmax()) if a is None else resolve(a, given.shape[1], names) for i, a in enumerate(answers)]
    other = None if against[0] is None else [resolve(a, given.shape[1], names) for a in against]
    answer, unlike = ([(_name(names, i),) for i in some or ()] for some in (chosen, other))
    places = torch.zeros(len(prompts), 1, dtype=torch.long, device=host.device)
    others = None if other is None else _last([[i] for i in other], host.device)
    ids = _last([[i] for i in chosen], host.device)
    return _of_prompts(host, prompts, kwargs, answer, places, ids, logits, others, unlike or None)


def tokens(host: Host, prompts: list[Encoded], answers: Answers, against: Answers) -> Question:
    """A classifier of tokens: a row for each token's label, the likeliest, or the answer for all."""
    host.check([p.ids for p in prompts])
    kwargs, names = encoder_inputs(host, prompts), host.labels
    given = host.outputs(kwargs).logits
    rows = [[*range(len(p.ids))] for p in prompts]
    chosen = [
        given[i, : len(row)].argmax(-1).tolist() if a is None else [resolve(a, given.shape[-1], names)] * len(row)
        for i, (row, a) in enumerate(zip(rows, answers))
    ]
    other = (
        None if against[0] is None else [[resolve(a, given.shape[-1], names)] * len(r) for a, r in zip(against, rows)]
    )
    answer = [
        tuple(f"{piece.strip()}: {_name(names, i)} " for piece, i in zip(pieces(host.tokenizer, p.ids), labels))
        for p, labels in zip(prompts, chosen)
    ]
    unlike = None if other is None else [tuple(_name(names, i) for i in labels) for labels in other]
    others = None if other is None else _last(other, host.device)
    places = _last(rows, host.device), _last(chosen, host.device)
    return _of_prompts(host, prompts, kwargs, answer, *places, plain, others, unlike)


def spans(host: Host, prompts: list[Encoded], answers: Answers, against: Answers) -> Question:
    """A model that finds an answer in its text: two rows, the logit of its start and of its end."""
    if against[0] is not None:
        raise InputError("against is for models that say something else instead; a span has no other. Leave it out.")
    host.check([p.ids for p in prompts])
    kwargs = encoder_inputs(host, prompts)

    def logits(outputs: Any) -> Tensor:
        return torch.stack([outputs.start_logits, outputs.end_logits], 1)

    given = logits(host.outputs(kwargs))
    found = [_span(host, p, a, given[i, :, : len(p.ids)]) for i, (p, a) in enumerate(zip(prompts, answers))]
    texts = [pieces(host.tokenizer, p.ids) for p in prompts]
    answer = [(f"start: {t[a].strip()} ", f"end: {t[b].strip()}") for t, (a, b) in zip(texts, found)]
    places = torch.arange(2, device=host.device).expand(len(prompts), 2)
    return _of_prompts(host, prompts, kwargs, answer, places, _last([[*ends] for ends in found], host.device), logits)


def sentence(host: Host, prompts: list[Encoded], answers: Answers, against: Answers) -> Question:
    """An encoder without a head: how like the prompt's mean token is to the answer's, another text."""
    if any(not isinstance(a, str) for a in answers) or against[0] is not None:
        raise InputError(
            f"{host.called} has no head that answers, so its answer is another text, whose likeness to the prompt is "
            "explained: explain(model, tokenizer, text, another). To explain what a model says, use one with a head, "
            "such as AutoModelForCausalLM."
        )
    other = [Encoded(ids=list(host.tokenizer(a)["input_ids"])) for a in answers]
    host.check([p.ids for p in [*prompts, *other]])
    wanted = torch.cat([host.outputs(encoder_inputs(host, [one])) for one in other])
    kwargs, nothing = encoder_inputs(host, prompts), torch.zeros(len(prompts), 1, dtype=torch.long)
    question = _of_prompts(host, prompts, kwargs, [(a,) for a in answers], nothing, nothing, plain)
    return replace(question, target=Similarity(wanted, label="the other text"))


class Pooled(nn.Module):
    """A text encoder of transformers, from tokens to the mean of its last layer's, (batch, width).

    Source: Reimers & Gurevych, Sentence-BERT, EMNLP 2019, arXiv:1908.10084, section 3.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (batch, tokens) -> embeddings (batch, width)."""
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1)


Ask = Callable[[Host, "list[Encoded]", Answers, Answers], Question]
ENDINGS: Mapping[str, Ask] = {
    "ForMaskedLM": masked,
    "ForSequenceClassification": classes,
    "ForTokenClassification": tokens,
    "ForQuestionAnswering": spans,
    "ForCausalLM": causal,
    "LMHeadModel": causal,
}
"""In the name of a class of transformers -> what it is asked."""


def causal_or_masked(host: Host, prompts: list[Encoded], answers: Answers, against: Answers) -> Question:
    """A converted module with logits for each token: a masked model, where the prompts have masks."""
    mask = getattr(host.tokenizer, "mask_token_id", None)
    filling = mask is not None and all(mask in p.ids for p in prompts)
    return (masked if filling else causal)(host, prompts, answers, against)


SAYING = (causal, causal_or_masked, seq2seq)
"""Those of models that generate an answer."""


def kind_of(model: nn.Module) -> Ask:
    """What a model is asked, by its class.

    Raises:
        InputError: it is no language model of transformers.
    """
    if isinstance(model, ConvertedModule):
        return _kind_of_converted(model)
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_input_embeddings"):
        raise InputError(
            f"explain takes a language model of transformers, not {type(model).__name__}. For other modules, "
            "fxgrad.convert and fxgrad.attribute."
        )
    base: Any = getattr(model, "get_base_model", None)
    inner = model if base is None else base()  # under an adapter, such as LoRA
    names = " ".join(base.__name__ for base in type(inner).__mro__)
    for ending, ask in ENDINGS.items():
        if ending in names:
            return ask
    encoded_first = getattr(config, "is_encoder_decoder", False)
    if encoded_first and model.get_output_embeddings() is not None:  # type: ignore[operator]
        return seq2seq
    return causal if "ForConditionalGeneration" in names else sentence


def _kind_of_converted(model: ConvertedModule) -> Ask:
    """By its inputs and outputs: without the model itself, there is no class to ask."""
    names = {i.name for i in model.classified.captured.inputs}
    if "decoder_input_ids" in names:
        raise InputError(
            "a converted module of an encoder and a decoder does not say how its answers begin. Pass the model itself; "
            "fxgrad.text.Explainer converts it once for all prompts."
        )
    outputs: Any = model.classified.captured.graph.output_node().args[0]
    return classes if outputs[0].meta["val"].dim() == 2 else causal_or_masked


def _source(host: Host, prompt: Encoded) -> tuple[str, ...]:
    """The tokens of a prompt as text; of sound, the numbers of its frames."""
    if prompt.features is None:
        return pieces(host.tokenizer, prompt.ids)
    return tuple(f" frame {i}" for i in range(prompt.features.shape[1]))


def _named(tokens: tuple[str, ...], seen: Seen | None) -> tuple[str, ...]:
    """Tokens with a name in the place of each picture."""
    return tokens if seen is None else seen.labelled(tokens)


def encoder_inputs(host: Host, prompts: list[Encoded]) -> dict[str, Any]:
    """Ids, with a mask of the padding, and types if the model takes them; pictures; or features of sound."""
    shown = {name: host.put(value) for name, value in prompts[0].given.items()}
    if not prompts[0].ids and shown:
        return shown
    if heard := [p.features for p in prompts if p.features is not None]:
        return {host.main: host.placed(heard)}
    ids = padded([p.ids for p in prompts], host.padding, host.device)
    mask = padded([[1] * len(p.ids) for p in prompts], 0, host.device)
    types = padded([p.types or [0] * len(p.ids) for p in prompts], 0, host.device)
    found = {**shown, "input_ids": ids, **host.given("attention_mask", mask)}
    if all(p.types is not None for p in prompts):
        found |= host.given("token_type_ids", types)
    for name, needed in (("attention_mask", not mask.all()), ("token_type_ids", types.any())):
        if host.model is None and needed and name not in found:
            raise InputError(
                f"the converted module takes no {name}, which these prompts need. Convert it with one, pass the model "
                "itself, or give prompts of one length, one text each."
            )
    return found


def _of_prompts(
    host: Host,
    prompts: list[Encoded],
    kwargs: dict[str, Any],
    answers: Sequence[tuple[str, ...]],
    positions: Tensor,
    ids: Tensor,
    logits: Callable[[Any], Tensor],
    others: Tensor | None = None,
    against: Sequence[tuple[str, ...]] | None = None,
) -> Question:
    """A question whose columns are the prompts alone."""
    texts = [pieces(host.tokenizer, p.ids) for p in prompts]
    return Question(kwargs, texts, [len(t) for t in texts], answers, positions, ids, logits, others, against)


def _others(host: Host, said: list[list[int]], against: Answers) -> tuple[Tensor | None, list[tuple[str, ...]] | None]:
    """The tokens of the other answers, as many as the answers have: (their ids, their texts)."""
    if against[0] is None:
        return None, None
    other = [answered(host.tokenizer, a) for a in against]
    for a, b in zip(said, other):
        if len(a) != len(b):
            raise InputError(
                f"against has {len(b)} tokens and the answer {len(a)}; they are contrasted token by token. Give one of "
                f"{len(a)} tokens, or token ids."
            )
    host.check(other)
    return _last(other, host.device), [pieces(host.tokenizer, b) for b in other]


def _span(host: Host, prompt: Encoded, answer: Any, logits: Tensor) -> tuple[int, int]:
    """First and last token of an answer in its prompt: where it stands, or the likeliest pair."""
    if answer is None:
        scores = (logits[0][:, None] + logits[1][None]).triu()
        scores = scores.masked_fill(torch.ones_like(scores).tril(-1).bool(), -torch.inf)
        start, end = divmod(int(scores.argmax()), len(scores))
        return start, end
    wanted = answered(host.tokenizer, answer)
    for start in reversed(range(len(prompt.ids) - len(wanted) + 1)):  # the text follows the question
        if prompt.ids[start : start + len(wanted)] == wanted:
            return start, start + len(wanted) - 1
    raise InputError(f"{answer!r:.80} does not stand in the prompt, token by token. Give a piece of it.")


def _last(rows: Sequence[Sequence[int]], device: Any) -> Tensor:
    """Rows of numbers as int64 (rows, longest), short ones filled up with their last."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=device)


def _name(names: Sequence[str] | None, index: int) -> str:
    return names[index] if names else f"class {index}"
