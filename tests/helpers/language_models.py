"""Tiny random language models of transformers, and a tokenizer trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as tr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from fxgrad.text import Explainer

SENTENCES = [
    "the sky is blue and the night is red.",
    "I said: unlikely, he said it rains",
    "one two three four five six seven",
]
SPECIAL = ["<pad>", "<s>", "</s>", "[MASK]", "[SEP]"]


@cache
def tokenizer(wrapped: bool = False) -> Any:
    """A byte-level BPE; `wrapped` puts <s> before a text and </s> behind it, as encoders want."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES * 3, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    if wrapped:
        ends = [(name, bpe.token_to_id(name)) for name in ("<s>", "</s>")]
        pair = "<s> $A </s> $B:1 </s>:1"
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair=pair, special_tokens=ends)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "[MASK]"}
    gives = ["input_ids", *(["token_type_ids"] if wrapped else []), "attention_mask"]
    return tr.PreTrainedTokenizerFast(tokenizer_object=bpe, model_input_names=gives, **names)


V = len(tokenizer())
CAUSAL = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ENCODER = {
    "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 64, "num_labels": 3,
}  # fmt: skip
TWO = {
    "vocab_size": V, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": V, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}  # fmt: skip
WHISPER = {
    **{k: v for k, v in TWO.items() if k != "max_position_embeddings"}, "num_mel_bins": 8, "max_source_positions": 16,
    "max_target_positions": 32, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
GPT2 = {
    "vocab_size": V, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MAMBA = {
    "vocab_size": V,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

BUILD: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**CAUSAL)),
    "qwen3": lambda: tr.Qwen3ForCausalLM(tr.Qwen3Config(**CAUSAL, head_dim=4)),
    "gemma3": lambda: tr.Gemma3ForCausalLM(tr.Gemma3TextConfig(**CAUSAL, head_dim=4, sliding_window=4)),
    "gpt2": lambda: tr.GPT2LMHeadModel(tr.GPT2Config(**GPT2)),
    "mamba": lambda: tr.MambaForCausalLM(tr.MambaConfig(**MAMBA)),
    "mixtral": lambda: tr.MixtralForCausalLM(tr.MixtralConfig(**CAUSAL, num_local_experts=4, num_experts_per_tok=2)),
    "t5": lambda: tr.T5ForConditionalGeneration(tr.T5Config(**T5)),
    "bart": lambda: tr.BartForConditionalGeneration(tr.BartConfig(**TWO)),
    "whisper": lambda: tr.WhisperForConditionalGeneration(tr.WhisperConfig(**WHISPER)),
    "bert": lambda: tr.BertForSequenceClassification(tr.BertConfig(**ENCODER)),
    "masked": lambda: tr.BertForMaskedLM(tr.BertConfig(**ENCODER)),
    "tokens": lambda: tr.BertForTokenClassification(tr.BertConfig(**ENCODER)),
    "spans": lambda: tr.BertForQuestionAnswering(tr.BertConfig(**{**ENCODER, "num_labels": 2})),
    "sentence": lambda: tr.BertModel(tr.BertConfig(**ENCODER)),
}
IN_FLOAT32 = {"llama", "qwen3", "gemma3", "mamba", "mixtral", "t5"}
"""Norms, or experts, compute in float32 whatever the model's dtype is."""
HALF_WAY = {"mixtral"}
"""No kernel for float64."""
WRAPPED = {"bert", "masked", "tokens", "spans", "sentence"}
"""Their tokenizer puts tokens around a text."""


def model(name: str) -> nn.Module:
    """A model, with weights large enough that what it says depends on its input."""
    torch.manual_seed(0)
    built = BUILD[name]().eval().requires_grad_(False)
    for parameter in built.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4)
    return built if name in HALF_WAY else built.double()


@cache
def explainer(name: str) -> Explainer:
    """One for all tests: it has nothing but the converted model, and converting takes most of their time."""
    return Explainer(model(name), tokenizer(name in WRAPPED))
