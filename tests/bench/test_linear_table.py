"""The page of linear maps and pairs: rows keep their bars, and say so if they do not."""

from __future__ import annotations

from bench.tables import linear


def test_a_row_and_its_bars() -> None:
    row = linear.MODELS["LSTM"]
    cells, kept = linear.measured("LSTM", row)
    assert kept and cells[:2] == ["LSTM", "8 x 30"] and float(cells[2]) < 1e-12 < float(cells[3])
    assert not linear.measured("LSTM", row._replace(bar=0.0))[1]


def test_witnesses_keep_their_bars() -> None:
    assert all(kept for _, kept in linear.by_plain_autograd())


def test_every_model_of_the_page_is_there() -> None:
    names = ("ViT", "ConvNeXt", "Swin", "MLP-Mixer", "CLIP", "LSTM", "GPT-2", "Llama", "T5", "Mamba")
    assert [name.partition(" (")[0] for name in linear.MODELS] == list(names)
