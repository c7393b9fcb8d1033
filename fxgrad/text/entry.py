"""`fxgrad.text.explain`: a prompt, an answer, and what each token before gives to each token of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from fxgrad.methods.entry import known
from fxgrad.module.converted import ConvertedModule
from fxgrad.table.loading import Rules
from fxgrad.text.explanation import Explanation
from fxgrad.text.host import Host
from fxgrad.text.kinds import SAYING, Pooled, kind_of, sentence
from fxgrad.text.prompts import Encoded, each, encoded
from fxgrad.text.rows import Question, Solver


def explain(
    model: nn.Module,
    tokenizer: Any,
    prompt: Any,
    answer: Any = None,
    *,
    rules: Rules = "libragrad",
    against: Any = None,
    generate: Mapping[str, Any] | None = None,
    method: Any = "input_x_gradient",
) -> Any:
    """What each token before gives to the logit of each token of an answer.

    Args:
        model: a language model of transformers in eval mode, or a ConvertedModule of one. What the answer is depends on
            its kind: a causal model or an encoder and a decoder says it after the prompt; a masked model has it in the
            places of the masks; a classifier of texts says a label; a classifier of tokens, one for each token; a model
            for questions finds a span, a row for its start and one for its end. Of an encoder without a head, the
            answer is another text, and the likeness of both is explained.
        tokenizer: the model's, of transformers; for prompts with pictures, the model's processor.
        prompt: a text, a pair of texts, the messages of a chat (written by the tokenizer's template), or token ids; for
            models that see, a text with a picture, or a list of pictures, of PIL, or a chat with pictures, or a picture
            alone, or what the processor gives; for models of speech, features (mel, frames). A list of them is a batch.
        answer: a text, or token ids; for classifiers, a label or its number. By default what the model says itself:
            what it generates, its likeliest label, tokens or span. With a batch, a list.
        rules: the policy, as for `fxgrad.convert`; a ConvertedModule keeps its own.
        against: another answer of as many tokens, or another label: explains this answer and not that one. Values are
            then differences of logits.
        generate: options for the model's `generate`, such as {"max_new_tokens": 8}. By default it takes the likeliest
            token each time, 32 at most.
        method: as for `fxgrad.attribute`, any method that has tokens.

    Returns:
        An `Explanation`; with a batch, a list of them. Its matrix is computed when it is first asked for.

    Raises:
        InputError: an empty prompt, a tokenizer that does not fit the model, a text that is too long for it, no such
            label, an answer that the model's kind does not give.
        CaptureError, NoRuleError, NotBalanceableError: as for `fxgrad.convert`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = {word: i for i, word in enumerate(["[UNK]", "the", "sky", "is", "blue", "red"])}
        >>> plain = Tokenizer(models.WordLevel(words, "[UNK]"))
        >>> plain.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")
        >>> sizes = {"vocab_size": 6, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
        >>> model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
        >>> found = explain(model, tokenizer, "the sky is", "blue red")
        >>> found.matrix.shape, found.prompt_tokens, found.answer_tokens
        (torch.Size([2, 4]), ('the', ' sky', ' is'), (' blue', ' red'))
        >>> bool((found.values - found.matrix.sum(1) - found.biases).abs().max() < 1e-5)
        True

    Source: LibraGrad, arXiv:2411.16760, for the gradient; Shrikumar et al., arXiv:1605.01713, for Input x Gradient.
    """
    own = Explainer(model, tokenizer, rules=rules, method=method)
    return own.explain(prompt, answer, against=against, generate=generate)


class Explainer:
    """A model and its tokenizer, converted once, for many prompts and answers.

    Args:
        model, tokenizer, rules, method: as for `explain`.

    Raises:
        InputError: the model is none of transformers, or there is no such method.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> Explainer(BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)).eval(), None).converted is None
        True
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, rules: Rules = "libragrad", method: Any = "input_x_gradient"
    ) -> None:
        self._ask, self._method = kind_of(model), known(method)
        self._host = Host(model, tokenizer, rules, Pooled(model) if self._ask is sentence else None)

    @property
    def converted(self) -> ConvertedModule | None:
        """The converted model; None before the first prompt.

        It is converted again for a prompt of another length only if the model's code fixes the length.
        """
        return self._host.converted

    def explain(
        self, prompt: Any, answer: Any = None, *, against: Any = None, generate: Mapping[str, Any] | None = None
    ) -> Any:
        """An explanation, or a list of them; see `explain`."""
        host = self._host
        prompts, several = encoded(host.processor, prompt)
        answers, other = (
            each(value, len(prompts), several, what) for value, what in ((answer, "answer"), (against, "against"))
        )
        if self._ask in SAYING:
            answers = [host.generated(p, generate or {}) if a is None else a for p, a in zip(prompts, answers)]
        asked = list(zip(prompts, answers, other))
        # Prompts with pictures are asked one by one: their inputs may have any shapes.
        groups = [[one] for one in asked] if any(p.given for p in prompts) else [asked]
        found = [one for group in groups for one in self._explained(*(list(part) for part in zip(*group)))]
        return found if several else found[0]

    def _explained(self, prompts: list[Encoded], answers: list[Any], against: list[Any]) -> list[Explanation]:
        """Explanations of a batch."""
        question = self._ask(self._host, prompts, answers, against)
        solver = Solver(self._host.conversion(question.kwargs), question, self._method.function)
        return [self._explanation(question, solver, example) for example in range(len(prompts))]

    def _explanation(self, question: Question, solver: Solver, example: int) -> Explanation:
        answer = question.answers[example]
        return Explanation(
            question.columns[example],
            question.prompts[example],
            answer,
            self._method.name,
            solver.converted.classified.table.name,
            None if question.against is None else question.against[example],
            tuple((i, i + 1) for i in range(len(answer))),
            tuple((i, i + 1) for i in range(len(question.columns[example]) - question.prompts[example])),
            partial(solver.rows, example),
            () if question.seen is None else question.seen.columns,
            () if question.seen is None else question.seen.photos(),
        )
