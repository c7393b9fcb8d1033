"""A padded text in a batch gets what it gets alone, by every method that looks at tokens; padding gets nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.methods import METHODS, Token

LONG, SHORT = [7, 3, 9, 11, 2], [5, 8, 6]
METHODS_OF_TOKENS = sorted(
    set(METHODS) - {"random", "smoothgrad", "shift_averaged", "integrated_gradients", "rise", "kernel_shap"}
)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).double().eval()
    randomize(model)
    return model


def masked(rows: list[list[int]]) -> tuple[torch.Tensor, dict[str, Any]]:
    mask = torch.tensor(rows)
    return mask, {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0), "use_cache": False}


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_text_is_the_text(side: str) -> None:
    model = gpt2()
    real = slice(2, 5) if side == "left" else slice(0, 3)
    padded = torch.tensor([LONG, [0, 0, *SHORT] if side == "left" else [*SHORT, 0, 0]])
    _, given = masked([[1] * 5, [0, 0, 1, 1, 1] if side == "left" else [1, 1, 1, 0, 0]])
    both = fxgrad.convert(model, (padded,), given)
    alone = fxgrad.convert(model, (torch.tensor([SHORT]),), masked([[1] * 3])[1])
    at = -1 if side == "left" else torch.tensor([4, 2])
    for method in METHODS_OF_TOKENS:
        try:
            found = fxgrad.attribute(both, (padded,), given, target=Token(at, 13), method=method)
        except fxgrad.InputError as error:
            assert method == "tokentm" and "tokentm needs blocks of an attention" in str(error), error
            continue
        (wanted,) = fxgrad.attribute(
            alone, (torch.tensor([SHORT]),), masked([[1] * 3])[1], target=Token(-1, 13), method=method
        ).tokens
        assert torch.allclose(found.tokens[1, real], wanted, rtol=1e-10, atol=1e-12), method
        assert method == "gradcam" or wanted.abs().max() > 0, method
        padding = [i for i in range(5) if i not in range(5)[real]]
        assert bool((found.tokens[1, padding] == 0).all()), method


def test_padding_of_a_model_that_looks_both_ways() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = BertForSequenceClassification(config).double().eval()
    randomize(model)
    padded, mask = torch.tensor([LONG, [*SHORT, 0, 0]]), {"attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}
    short, ones = torch.tensor([SHORT]), {"attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    both, alone = fxgrad.convert(model, (padded,), mask), fxgrad.convert(model, (short,), ones)
    for method in ("attcat", "gradcam", "xgradcam_plus", "genatt", "tokentm", "fullgrad_plus"):
        found = fxgrad.attribute(both, (padded,), mask, target=1, method=method).tokens
        wanted = fxgrad.attribute(alone, (short,), ones, target=1, method=method).tokens
        assert torch.allclose(found[1, :3], wanted[0], rtol=1e-10, atol=1e-12) and wanted.abs().max() > 0, method
