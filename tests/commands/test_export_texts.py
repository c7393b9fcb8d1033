"""`fxgrad export hf:MODEL`: language models as files, from token ids."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("transformers")

import fxgrad
from fxgrad.commands.cli import main
from fxgrad.data.models import load_model
from fxgrad.methods import Token

SIZES = "num_hidden_layers=2&hidden_size=16&num_attention_heads=4&intermediate_size=32&vocab_size=30"
TIED = {
    "gpt2": "hf:gpt2?n_layer=2&n_embd=16&n_head=4&vocab_size=30&bos_token_id=1&eos_token_id=1",
    "bert": f"hf:bert?{SIZES}",
    "llama": f"hf:llama?{SIZES}&num_key_value_heads=2",
}


@pytest.mark.parametrize("name", TIED)
def test_a_language_model_s_file_gives_what_attribute_does(name: str, tmp_path: Path) -> None:
    """Heads that share their weights with the embedding, too."""
    file = tmp_path / "words.onnx"
    done = CliRunner().invoke(main, ["export", TIED[name], "-o", str(file)], catch_exceptions=False)
    assert done.exit_code == 0 and "inputs ids, target; outputs logits, attribution, completeness_error" in done.output
    loaded = load_model(TIED[name])
    ids = loaded.example(batch=3, seed=5)
    libra = fxgrad.convert(loaded.model, (loaded.example(),))
    wanted = fxgrad.attribute(libra, (ids,), target=Token(4, 7))
    session = onnxruntime.InferenceSession(file)
    target = torch.tensor([[4, 7]]).expand(3, 2).numpy()
    logits, attribution, error = session.run(None, {"ids": ids.numpy(), "target": target})
    assert torch.allclose(torch.from_numpy(logits), loaded.model(ids), rtol=0, atol=1e-5)
    assert torch.allclose(torch.from_numpy(attribution), wanted.map, rtol=0, atol=1e-5 * float(wanted.map.abs().max()))
    assert error.max() < 1e-3
