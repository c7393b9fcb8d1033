"""The demo's models of eight architectures: they load, read canvases, convert; and training repeats."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import fxgrad
from fxgrad.data.models import load_model
from fxgrad.demo import models, train
from fxgrad.demo.canvases import COLOURS, canvas
from fxgrad.demo.clip import DigitsClip
from fxgrad.demo.hints import Adapters, Tokens, inherit
from fxgrad.demo.losses import Batch, at_patch_size, captions, contrastive, flexible, multilabel
from fxgrad.demo.model import CLASS_NAMES, checkpoint, preprocess
from fxgrad.demo.models import ARCHITECTURES, MODELS
from fxgrad.demo.muon import Muon
from fxgrad.demo.results import measure, page
from fxgrad.demo.score import evaluate
from fxgrad.errors import CaptureError, InputError

RESULTS = Path(__file__).parents[2] / "bench" / "measured" / "models.json"


@pytest.fixture(scope="module")
def clip() -> DigitsClip:
    return models.clip()


def test_all_eight_are_shipped_within_ten_megabytes() -> None:
    assert len(ARCHITECTURES) == 8 and set(ARCHITECTURES) < set(MODELS)
    assert sum(checkpoint(name).stat().st_size for name in MODELS) <= 10_000_000


@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads_strictly_and_reads_both_digits(name: str) -> None:
    loaded = load_model(f"fxgrad.demo.models:{name}")
    model = loaded.model
    assert loaded.class_names == CLASS_NAMES and loaded.patch_size == 6
    assert loaded.preprocess.size == (3 if name == "clip" else 1, 48, 48)
    assert not model.training
    stored, own = load_file(checkpoint(name)), model.state_dict()
    assert stored.keys() == own.keys() and all(torch.equal(stored[key].float(), own[key]) for key in own)
    measured = json.loads(RESULTS.read_text())[name]
    assert sum(p.numel() for p in model.parameters()) == measured["parameters"]
    # Four standard deviations of fifty draws below what two thousand canvases gave.
    share = measured["both"]
    assert evaluate(model, count=50).both > share - 4 * (share * (1 - share) / 50) ** 0.5


def test_a_logit_is_explained_to_rounding() -> None:
    model = models.mixer()
    shown = canvas(3)
    x = preprocess(shown.image)
    libra = fxgrad.convert(model, (x,))
    onehot = torch.eye(10)[[shown.labels[0]]]
    report = fxgrad.check(libra, (x,), original=model, cotangent=onehot)
    assert report.passed and report.completeness_error < 1e-5
    assert fxgrad.check(libra.under("gradient"), (x,), cotangent=onehot).completeness_error > 1e-2


def test_the_page_is_written_from_what_was_measured() -> None:
    results = json.loads(RESULTS.read_text())
    assert set(results) == set(MODELS)
    assert RESULTS.with_suffix(".md").read_text() == page(results), "run `make train`"
    for facts in results.values():
        assert facts["libragrad_mean"] < 1e-5 and facts["gradient_mean"] > 0.1
        # What is rounded does not shrink with a logit: beside one below 1 it may be more.
        assert facts["libragrad_largest"] * min(1, abs(facts["libragrad_largest_at"])) < 1e-5


def test_one_thread_trains_the_same_weights_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "HELDOUT_CANVASES", 20)
    monkeypatch.setattr(train, "_THREADS", torch.get_num_threads())
    monkeypatch.setattr(train, "measure", partial(measure, count=1))
    out, results = tmp_path / "w.safetensors", tmp_path / "r.json"
    options = ["vit_tiny", "--steps", "1", "--seed", "3", "--out", str(out), "--results", str(results)]
    done = CliRunner().invoke(train.main, options)
    assert done.exit_code == 0, done.output
    again, written = train.train("vit_tiny", steps=1, seed=3).state_dict(), load_file(out)
    other = train.train("vit_tiny", steps=1, seed=4).state_dict()
    assert all(torch.equal(again[key].half(), written[key]) for key in again)
    assert not all(torch.equal(again[key], other[key]) for key in again)
    assert json.loads(results.read_text())["vit_tiny"]["canvases"] == 32
    assert "| vit_tiny | 20,778 |" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize(("name", "loss"), [("clip", contrastive), ("flexivit", flexible), ("beit2", multilabel)])
def test_losses_and_hints_reach_every_parameter(name: str, loss: Callable[..., torch.Tensor]) -> None:
    model, canvases = MODELS[name](weights=False), train._pool(8, name == "clip", True)
    adapters = Adapters(80, 80)
    with Tokens(model) as tokens:
        task = loss(model, canvases)
    (task + adapters(tokens.found, canvases.hints)).backward()
    assert all(p.grad is not None for p in [*model.parameters(), *adapters.parameters()])
    assert not any(module._forward_hooks for module in model.modules())


def test_hints_are_the_teachers_tokens() -> None:
    teacher, canvases = models.vit(), train._pool(8, False, True)
    with torch.no_grad():
        inside = teacher.forward_intermediates(canvases.images, [1, 3], output_fmt="NLC", intermediates_only=True)
    wanted = torch.stack([torch.nn.functional.layer_norm(t, (80,)) for t in inside], 1)
    torch.testing.assert_close(canvases.hints.float(), wanted, rtol=1e-3, atol=2e-3)


def test_a_model_starts_from_the_teacher_where_it_can() -> None:
    teacher, flexivit, mixer = models.vit(), models.flexivit(weights=False), models.mixer(weights=False)
    assert inherit(flexivit, teacher) == 1 and 0 < inherit(mixer, teacher) < 0.1
    x = preprocess(np.stack([canvas(i).image for i in range(4)]))
    with torch.no_grad():
        torch.testing.assert_close(flexivit.patch_embed(x), teacher.patch_embed(x))
    clip = models.clip(weights=False)
    inherit(clip, teacher)
    # Grey is grey to it, in three channels.
    torch.testing.assert_close(
        clip.visual.patch_embed.proj.weight.sum(1, keepdim=True), teacher.patch_embed.proj.weight
    )


def test_the_training_command_says_what_it_cannot_do(tmp_path: Path) -> None:
    unknown = CliRunner().invoke(train.main, ["resnet"])
    assert unknown.exit_code == 2 and "there is no model resnet: use all, vit, deit3" in unknown.output
    several = CliRunner().invoke(train.main, ["vit", "mixer", "--out", str(tmp_path / "w")])
    assert several.exit_code == 2 and "it is for one model; leave it out" in several.output
    nowhere = CliRunner().invoke(train.main, ["--results", str(tmp_path / "no" / "r.json")])
    assert nowhere.exit_code == 2 and "there is no directory" in nowhere.output


def test_a_checkpoint_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mixers = checkpoint("mixer")
    monkeypatch.setattr("fxgrad.demo.model.checkpoint", lambda name: mixers)
    with pytest.raises(CaptureError, match=r"digits_mixer\.safetensors does not fit the model: \d+ missing"):
        models.deit3()


def test_muon_agrees_with_torch_where_bfloat16_allows() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(8, 16)) for _ in range(2))
    steps = [Muon([ours], lr=0.1, weight_decay=0.05)]
    steps += [torch.optim.Muon([theirs], lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")]
    for _ in range(3):
        ours.grad = torch.randn(8, 16)
        theirs.grad = ours.grad.clone()
        for optimizer in steps:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)
    with pytest.raises(ValueError, match="Muon is for matrices"):
        Muon([torch.nn.Parameter(torch.ones(3))], lr=0.1)


def test_flexivit_at_its_own_patches_is_the_model_itself() -> None:
    model = models.flexivit()
    x = preprocess(np.stack([canvas(i).image for i in range(50)]))
    with torch.no_grad():
        torch.testing.assert_close(at_patch_size(model, x, 6), model(x))
        # It reads larger patches, too.
        top = at_patch_size(model, x, 8).topk(2).indices.sort().values.tolist()
    assert np.mean([found == sorted(canvas(i).labels) for i, found in enumerate(top)]) > 0.6


def test_prompts_become_ids(clip: DigitsClip) -> None:
    ids = clip.tokenize("A red seven AND an eight")
    assert ids.dtype == torch.int64 and ids.tolist() == [[0, 1, 14, 11, 3, 2, 12, 0]]
    with pytest.raises(InputError) as unknown:
        clip.tokenize("a purple seven")
    assert str(unknown.value) == (
        "the prompt 'a purple seven' has the unknown word 'purple'. The model knows a, an, and, zero, one, two, three, "
        "four, five, six, seven, eight, nine, red, green, blue, yellow."
    )
    with pytest.raises(InputError, match="has 0 words; the model takes 1 to 7"):
        clip.tokenize(" ")
    with pytest.raises(InputError, match="has 8 words; the model takes 1 to 7"):
        clip.tokenize("a a a a a a a a")
    with pytest.raises(InputError, match="give at least one prompt"):
        clip.prompted()


def test_similarities_are_scaled_cosines_and_default_to_the_classes(clip: DigitsClip) -> None:
    x = preprocess(np.stack([canvas(i, colours=True).image for i in range(3)]))
    texts = torch.cat([clip.tokenize(f"{'an' if n == 'eight' else 'a'} {n}") for n in CLASS_NAMES])
    with torch.no_grad():
        image, text = clip.encode_image(x), clip.encode_text(texts)
        assert torch.equal(clip(x, texts), clip(x))
        cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
        torch.testing.assert_close(clip(x), cosines * clip.log_scale.exp())
        prompted = clip.prompted("a seven", "a two")
        torch.testing.assert_close(prompted(x), clip(x)[:, [7, 2]])
    assert clip.prompts.shape == (10, 8) and prompted.num_classes == 2


def test_clip_tells_colours_apart(clip: DigitsClip) -> None:
    right = []
    for number in range(50):
        shown = canvas(number, colours=True)
        digit = CLASS_NAMES[shown.labels[0]]
        with torch.no_grad():
            found = clip.prompted(*(f"a {colour} {digit}" for colour in COLOURS))(preprocess(shown.image))
        right.append(list(COLOURS)[int(found.argmax())] == shown.colours[0])
    assert np.mean(right) > 0.8


def test_a_prompted_clip_attributes_the_picture_only_and_a_pair_both() -> None:
    model = DigitsClip(width=16, depth=1).double().eval()
    x, ids = preprocess(canvas(3, colours=True).image).double(), model.tokenize("a seven")
    alone = fxgrad.convert(model.prompted("a seven"), (x,))
    pair = fxgrad.convert(model, (x, ids))
    assert [i.name for i in alone.classified.captured.entries if i.attributed] == ["image"]
    assert [i.name for i in pair.classified.captured.entries if i.attributed] == ["image", "words"]
    assert torch.equal(alone(x), pair(x, ids))
    assert (
        fxgrad.check(alone, (x,)).completeness_error < 1e-12 and fxgrad.check(pair, (x, ids)).completeness_error < 1e-12
    )
    # A product of two carriers halves both shares: the picture alone gets twice what it gets beside the text.
    leaf = x.requires_grad_()
    (whole,) = torch.autograd.grad(alone(leaf).sum(), leaf)
    (half,) = torch.autograd.grad(pair(leaf, ids).sum(), leaf)
    torch.testing.assert_close(whole, 2 * half)


def test_captions_are_true_of_the_pictures_that_show_what_they_say() -> None:
    torch.manual_seed(0)
    shown = [canvas(i, colours=True) for i in range(40)]
    labels, names = torch.tensor([c.labels for c in shown]), list(COLOURS)
    inks = torch.tensor([[names.index(name) for name in c.colours] for c in shown])
    texts, truth = captions(Batch(torch.empty(40, 0), labels, inks, torch.empty(40, 0)))
    for i, picture in enumerate(shown):
        things = {(colour, CLASS_NAMES[label]) for colour, label in zip(picture.colours, picture.labels)}
        for j, text in enumerate(texts):
            said = [thing.split()[1:] for thing in text.split(" and ")]
            true = all(any(thing[-1] == d and thing[0] in (c, d) for c, d in things) for thing in said)
            assert truth[i, j] == true
    assert truth.diagonal().all() and truth.sum() > 45
    assert {len(text.split()) for text in texts} == {2, 3, 5, 6, 7}
