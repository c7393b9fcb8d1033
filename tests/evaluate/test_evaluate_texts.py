"""`evaluate` on texts: a planted word is found; numbers by hand; one run and two halves; what is refused, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tr
from click.testing import CliRunner

from fxgrad.commands.cli import main
from fxgrad.data import open_data
from fxgrad.errors import FxgradError, InputError
from fxgrad.evaluate import Plan, Results, evaluate, read
from fxgrad.evaluate.page import pages
from fxgrad.evaluate.text_bench import TextBench
from fxgrad.evaluate.values import write_values
from fxgrad.metrics import OF_TEXTS, TokenRemoval, token_precision
from fxgrad.text import Explainer
from tests.helpers import classified

ORACLE = ("any", "oracle")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return classified.in_folder(tmp_path_factory.mktemp("bert"), classified.bert(), classified.tokenizer())


def plan_of(model: str, folder: Path, **settings: Any) -> Plan:
    data = classified.in_file(folder / "texts.jsonl")
    methods = ("input_x_gradient", "fullgrad", "rollout")
    plan = Plan((model,), methods, ("gradient", "libragrad"), data=data, count=None, chunk=2, shuffle="none")
    return replace(plan, **{"pretrained": True, "dtype": "float64", **settings})


def columns(results: Results, policy: str, method: str) -> dict[str, dict[str, float]]:
    (found,) = (v for k, v in results.values.items() if k[1:] == (policy, method))
    return {metric: dict(column) for metric, column in found.items()}


def test_the_planted_word_is_found(tmp_path: Path) -> None:
    """Only `KEY` speaks for the class: Input x Gradient of libragrad finds it, whatever the dtype."""
    model = classified.in_folder(tmp_path / "planted", classified.planted(), classified.tokenizer())
    for dtype in ("float32", "float64"):
        plan = plan_of(model, tmp_path, dtype=dtype, methods=("input_x_gradient",), target="label")
        results = evaluate(plan, str(tmp_path / dtype))
        found, oracle = columns(results, "libragrad", "input_x_gradient"), columns(results, *ORACLE)
        for metric in ("average_precision", "token_f1", "iou_f1"):
            assert set(found[metric].values()) == set(oracle[metric].values()) == {1.0}
        assert found["comprehensiveness"] == oracle["comprehensiveness"]
        assert min(found["srg_aopc"].values()) > 0.3 and min(found["comprehensiveness"].values()) > 0.3
        assert max(found["completeness_relative"].values()) < 1e-5
        others = [v["average_precision"] for k, v in results.values.items() if k[2] == "random"]
        assert any(value < 1 for value in others[0].values())


def test_numbers_by_hand(bert: str, tmp_path: Path) -> None:
    """Scores from `fxgrad.text.explain`, one text at a time; removal from the original model."""
    policies = ("libragrad", "attnlrp")  # under the plain gradient, a norm leaves nothing but rounding errors
    plan = plan_of(bert, tmp_path, removal="hide", methods=("input_x_gradient",), policies=policies)
    results = evaluate(plan, str(tmp_path / "store"))
    model, words = classified.bert().double(), classified.tokenizer()
    for policy in policies:
        found = columns(results, policy, "input_x_gradient")
        own = Explainer(model, words, rules=policy)
        for number, text in enumerate(classified.TEXTS, 1):
            id = f"texts.jsonl:{number}"
            one = own.explain(text, 1)
            row, ids = one.matrix[0], torch.tensor([words(text)["input_ids"]])
            inner = list(range(1, len(row) - 1))
            key = torch.tensor([[words.convert_ids_to_tokens(int(i)) == classified.KEY for i in ids[0]]])
            counted = torch.tensor([[i in inner for i in range(len(row))]])
            assert found["average_precision"][id] == pytest.approx(float(token_precision(row[None], key, counted)))
            order = sorted(inner, key=lambda i: -float(row[i]))

            def asked(gone: list[int], ids: torch.Tensor = ids) -> float:
                mask = torch.tensor([[int(i not in gone) for i in range(ids.shape[1])]])
                with torch.no_grad():
                    return float(model(ids, mask).logits.softmax(1)[0, 1])

            tops = [order[: max(1, -(-len(inner) * share // 100))] for share in (1, 5, 10, 20, 50)]
            drops = [asked([]) - asked(top) for top in tops]
            assert found["comprehensiveness"][id] == pytest.approx(sum(drops) / 5, abs=1e-9)
            kept = [asked([]) - asked([i for i in inner if i not in top]) for top in tops]
            assert found["sufficiency"][id] == pytest.approx(sum(kept) / 5, abs=1e-9)
            assert found["completeness"][id] == pytest.approx(
                abs(float(one.values[0]) - float(row.sum() + one.biases[0])), abs=1e-9
            )


def test_every_metric_and_one_text_at_a_time(bert: str, tmp_path: Path) -> None:
    together = evaluate(plan_of(bert, tmp_path, chunk=5, dtype="float32"), str(tmp_path / "together"))
    assert set(columns(together, "libragrad", "fullgrad")) == set(OF_TEXTS)
    plan = plan_of(bert, tmp_path, policies=("libragrad",))
    exact = [evaluate(replace(plan, chunk=c), str(tmp_path / f"by-{c}")) for c in (1, 3)]
    for key in exact[0].values:
        if key[2] != "random":  # which is drawn for a chunk
            for metric, column in exact[0].values[key].items():
                assert dict(exact[1].values[key][metric]) == pytest.approx(column, rel=1e-9, abs=1e-12), (key, metric)
    assert "completeness" not in columns(together, *ORACLE)


def test_an_interrupted_run_gives_the_same_bytes(bert: str, tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    plan = plan_of(bert, tmp_path, dtype="float32", methods=("input_x_gradient", "smoothgrad", "rollout"))
    plan = replace(plan, options=("smoothgrad.samples=2",))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = evaluate(plan, str(tmp_path / "whole"))
        with pytest.raises(KeyboardInterrupt):
            evaluate(plan, str(tmp_path / "halves"), watch=stop)
        assert 0 < len(read(tmp_path / "halves").done) < len(whole.done)
        again = evaluate(plan, str(tmp_path / "halves"))
    finally:
        torch.set_num_threads(threads)
    for name, results in (("whole", whole), ("again", again)):
        write_values([results], tmp_path / f"{name}.npz")
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    assert whole.values == again.values and pages([whole]) == pages([again])


def test_what_a_model_lacks_is_noted(tmp_path: Path) -> None:
    sizes = {"vocab_size": len(classified.WORDS), "d_model": 16, "n_layer": 1, "n_head": 4, "d_inner": 8}
    xlnet = tr.XLNetForSequenceClassification(tr.XLNetConfig(**sizes, num_labels=2)).eval()
    model = classified.in_folder(tmp_path / "xlnet", xlnet, classified.tokenizer())
    plan = plan_of(model, tmp_path, methods=("rollout", "saliency"), policies=("gradient",), count=2)
    results = evaluate(plan, str(tmp_path / "store"))
    assert list(results.refused) == [(model, "any", "rollout")] and "average_precision" in columns(
        results, "gradient", "saliency"
    )
    text = pages([results])["results.md"]
    assert "- rollout (any): rollout needs attention" in text
    assert "2 texts; tokens hidden from the attention (XLNetForSequenceClassification takes no position_ids" in text


class FixedForSequenceClassification(tr.BertForSequenceClassification):
    """Its code asks for the number of tokens."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:  # type: ignore[override]
        scale = 1.5 if input_ids.shape[1] == 6 else 1.0
        found = super().forward(input_ids, attention_mask)
        found.logits = found.logits * scale
        return found


def test_a_model_of_fixed_lengths_is_converted_for_each(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = FixedForSequenceClassification.__name__
    monkeypatch.setattr(tr, name, FixedForSequenceClassification, raising=False)
    net = FixedForSequenceClassification(classified.bert().config)
    net.load_state_dict(classified.bert().state_dict())
    model = classified.in_folder(tmp_path / "fixed", net.eval(), classified.tokenizer())
    settings = json.loads((tmp_path / "fixed" / "config.json").read_text())
    assert settings["architectures"] == [name]
    plan = plan_of(model, tmp_path, chunk=1, methods=("input_x_gradient",), policies=("libragrad",), removal="mask")
    found = columns(evaluate(plan, str(tmp_path / "store")), "libragrad", "input_x_gradient")
    assert max(found["completeness_relative"].values()) < 1e-9 and len(found["srg_aopc"]) == len(classified.TEXTS)


def test_labels_by_name_and_the_predicted_class(bert: str, tmp_path: Path) -> None:
    """Names are the model's; a model whose classes have none takes those of the data set, by their order."""
    planted = classified.in_folder(tmp_path / "planted", classified.planted(), classified.tokenizer())

    def targets(model: str, label: Any, **settings: Any) -> list[int]:
        plan = plan_of(model, tmp_path, **settings)
        data: Any = open_data(classified.in_file(tmp_path / "texts.jsonl", label))
        found: list[int] = TextBench(plan, data, range(5), {}, (), model).batch(0, 5).target.tolist()
        return found

    assert targets(planted, "red") == [1] * 5 and targets(planted, "blue", target="predicted") == [1] * 5
    assert targets(bert, "blue") == [0] * 5  # LABEL_0
    with pytest.raises(InputError, match=r"the label 'blue' of texts.jsonl:1 is none of .*Close to it"):
        targets(planted, "blue")
    with pytest.raises(InputError, match=r"texts.jsonl:1 has no label. Give it one, or use --target predicted"):
        targets(planted, None)


def test_what_is_no_evaluation_of_texts(bert: str, tmp_path: Path) -> None:
    plan, store = plan_of(bert, tmp_path), str(tmp_path / "store")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prompts": ("a", "b")}, "prompts is for pictures, and rationales:.* has texts. Leave it out"),
        ({"maps": "cubic"}, "maps is for pictures"),
        ({"mode": "RGB"}, "a mode is one of pictures"),
        ({"removal": "blur"}, "blur removes parts of pictures; tokens of texts, auto, drop, hide, mask, pad"),
        ({"metrics": ("infidelity",)}, "the metric infidelity is of pictures, and the data set has texts"),
        ({"methods": ("sobel",)}, "there is no method 'sobel'"),
        ({"models": ("fxgrad.demo:digits_vit",), "pretrained": False}, "texts are for models of transformers"),
    ]
    for settings, message in wrong:
        with pytest.raises(FxgradError, match=message):
            evaluate(replace(plan, **settings), store)
    with pytest.raises(InputError, match="hide removes tokens of texts; parts of pictures, auto, drop, zero, blur"):
        evaluate(Plan(("fxgrad.demo:digits_vit",), ("saliency",), removal="hide", count=1), str(tmp_path / "pictures"))
    sizes = {"vocab_size": len(classified.WORDS), "d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 4}
    t5 = tr.T5ForSequenceClassification(tr.T5Config(**sizes, num_labels=2))
    masked = tr.BertForMaskedLM(classified.bert().config)
    for name, net, why in (("t5", t5, "reads a text twice"), ("masked", masked, "is no ForSequenceClassification")):
        model = classified.in_folder(tmp_path / name, net, classified.tokenizer())
        with pytest.raises(InputError, match=f"classify them; {type(net).__name__} {why}"):
            evaluate(replace(plan, models=(model,)), str(tmp_path / f"of-{name}"))


def test_command_line(bert: str, tmp_path: Path) -> None:
    data, store, out = classified.in_file(tmp_path / "t.jsonl"), str(tmp_path / "store"), str(tmp_path / "results.md")
    chosen = ["evaluate", bert, "--pretrained", "--data", data, "--method", "attcat", "--policy", "libragrad"]
    done = CliRunner().invoke(main, [*chosen, "--store", store, "--out", out, "--removal", "pad"])
    assert (done.exit_code, done.stdout) == (0, f"wrote {out}\n"), done.output
    printed = CliRunner().invoke(main, ["evaluate", "--summary", "--store", store]).stdout
    assert printed == Path(out).read_text("utf-8")
    assert "5 texts; tokens replaced by [PAD]; cut off behind 24 tokens." in printed
    assert "Means over texts (of" in printed and "baselines among them are `oracle`, `random`." in printed
    assert "steps" not in printed and "examples texts" in printed
    assert "### comprehensiveness (higher is better)" in printed and "| oracle |" in printed


def test_removal_is_the_same_by_the_original_and_the_converted_model(bert: str) -> None:
    """A `TokenRemoval` takes either."""
    import fxgrad

    model = classified.bert().double()
    ids = torch.tensor([[1, 5, 6, 7, 9, 2], [1, 5, 9, 2, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    keep, counted = torch.rand(ids.shape) < 0.5, ids > 2
    libra = fxgrad.convert(model, kwargs=inputs)
    logits = [r(r.prepare(inputs, counted), keep | ~counted) for r in map(TokenRemoval, (model, libra))]
    assert torch.allclose(*logits, rtol=0, atol=1e-12)
