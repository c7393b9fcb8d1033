"""The look-up of token ids looks up, and does nothing else: a model on ids runs once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import fxgrad

GATHERS = {"aten.embedding.default"}


def gathers(libra: fxgrad.ConvertedModule) -> list[str]:
    assert libra.lookup is not None
    return [str(node.target) for node in libra.lookup.graph.nodes if node.op == "call_function"]


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.LlamaForCausalLM(config).eval()


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.BertModel(config).eval()


@pytest.mark.parametrize("build", [llama, bert])
def test_gathers_only(build: object) -> None:
    ids = torch.randint(0, 50, (2, 7))
    options = {"use_cache": False} if build is llama else {}
    libra = fxgrad.convert(build(), (), {"input_ids": ids, **options})  # type: ignore[operator]
    assert set(gathers(libra)) == GATHERS


def test_a_layer_with_dropout_and_a_recurrence_are_not_run_for_the_look_up() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.drop = nn.Embedding(9, 4), nn.Dropout(0.5)
            self.read, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.read(self.drop(self.words(ids)))[0][:, -1])

    libra = fxgrad.convert(Reader().eval(), (torch.randint(0, 9, (2, 5)),))
    assert set(gathers(libra)) == GATHERS


def test_embedding_runs_no_matrix_product() -> None:
    """Counted by torch itself, as it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(0, 50, (2, 7))
    model = llama()
    libra = fxgrad.convert(model, (), {"input_ids": ids, "use_cache": False})
    with FlopCounterMode(display=False) as looking:
        libra.embed(input_ids=ids, use_cache=False)
    with FlopCounterMode(display=False) as ours, torch.no_grad():
        libra(input_ids=ids, use_cache=False)
    with FlopCounterMode(display=False) as theirs, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    assert looking.get_total_flops() == 0
    assert ours.get_total_flops() == theirs.get_total_flops() > 0


@torch.library.custom_op("fxgrad_tests::mirror", mutates_args=())
def mirror(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1).contiguous()


@mirror.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Mirrored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 2, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(mirror(ids)).mean(1))


def test_ids_are_followed_through_an_op_of_ones_own_by_one_line(tmp_path: Path) -> None:
    model, ids = Mirrored().double().eval(), torch.tensor([[1, 5, 2]])
    with pytest.raises(fxgrad.CaptureError, match="nor token ids that an embedding looks up"):
        fxgrad.convert(model, (ids,))
    (tmp_path / "mine.toml").write_text('[linear]\n"fxgrad_tests.mirror" = { carrier = "x", moves = "pick" }\n')
    libra = fxgrad.convert(model, (ids,), rules=["libragrad", str(tmp_path / "mine.toml")])
    found = libra.embed(ids)["words"]
    assert torch.equal(found, model.words(ids.flip(-1)))
    assert fxgrad.check(libra, (ids,), original=model).passed
