"""Models of transformers, built small: classifiers and CLIPs against the package's own outputs, offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import fxgrad
from fxgrad.commands.cli import main
from fxgrad.data import reach
from fxgrad.data.clip import Clip
from fxgrad.data.models import load_model
from fxgrad.errors import CaptureError, InputError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT = "hf:vit?" + "&".join(f"{k}={v}" for k, v in {**SMALL, "image_size": 32, "patch_size": 8}.items())
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8))
WORDS = ["a", "dog", "cat", "red"]
LENGTH = 12


def vit_folder(folder: Path) -> Any:
    """A folder as the hub has it: config, weights, preprocessing; and the model that was saved there."""
    labels = {0: "cat", 1: "dog", 2: "car"}
    config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8, id2label=labels)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def clip_folder(folder: Path, kind: str) -> Any:
    """A small CLIP or SigLIP with a tokenizer of five words."""
    text = {**SMALL, "vocab_size": 7, "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 6}
    both = {"text_config": {**text, "pad_token_id": 0}, "vision_config": {**SMALL, "image_size": 32, "patch_size": 8}}
    if kind == "clip":
        config = transformers.CLIPConfig(**both, projection_dim=24)
        model = transformers.CLIPModel(config).eval()
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        processor = transformers.CLIPImageProcessor(**size)
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(**both)).eval()
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<unk>": 1, **{word: 2 + i for i, word in enumerate(WORDS)}, "<end>": 6}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 6)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return model


def padded(*texts: str) -> torch.Tensor:
    """The ids of texts, by hand."""
    ids = [[2 + WORDS.index(word) for word in text.split()] + [6] for text in texts]
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in ids])


def test_a_folder_brings_weights_preprocessing_and_class_names(tmp_path: Path) -> None:
    model = vit_folder(tmp_path)
    loaded = load_model(f"hf:{tmp_path}", pretrained=True)
    assert (loaded.described_weights, loaded.patch_size) == ("pretrained weights", 8)
    assert loaded.class_names == ("cat", "dog", "car") and loaded.preprocess.size == (3, 32, 32)
    wanted = transformers.ViTImageProcessor.from_pretrained(tmp_path)(images=PHOTO, return_tensors="pt")
    x = loaded.preprocess(PHOTO)
    assert torch.equal(x, wanted["pixel_values"])
    assert torch.equal(loaded.model(x), model(**wanted).logits)
    libra = fxgrad.convert(loaded.model, (x,))
    found = fxgrad.attribute(libra, (x,), target="dog", class_names=loaded.class_names, method="fullgrad_plus")
    assert found.patches.shape == (1, 4, 4) and found.completeness_error < 1e-4  # type: ignore[operator]


def test_a_checkpoint_has_the_keys_of_the_package_s_own_model(tmp_path: Path) -> None:
    model = vit_folder(tmp_path)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    loaded = load_model(f"hf:{tmp_path}", checkpoint=tmp_path / "w.pth")
    x = loaded.example()
    assert torch.equal(loaded.model(x), model(pixel_values=x).logits)


def test_other_sizes_and_classes(tmp_path: Path) -> None:
    vit_folder(tmp_path)
    loaded = load_model(f"hf:{tmp_path}", num_classes=5, input_size=(3, 48, 48))
    assert loaded.described_weights == "random weights (seed 0)" and loaded.class_names is None
    assert loaded.preprocess(PHOTO).shape == (1, 3, 48, 48) and loaded.model(loaded.example()).shape == (2, 5)


def test_a_type_of_model_needs_no_files() -> None:
    one, same, other = (load_model(VIT, seed=seed) for seed in (1, 1, 2))
    x = one.preprocess(PHOTO)
    assert x.shape == (1, 3, 32, 32) and -1 <= x.min() < x.max() <= 1
    assert torch.equal(one.model(x), same.model(x)) and not torch.equal(one.model(x), other.model(x))
    assert torch.allclose(one.preprocess.invert(x), (x[0] + 1) / 2)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_prompts_are_the_package_s_own_similarity(kind: str, tmp_path: Path) -> None:
    model = clip_folder(tmp_path, kind)
    loaded = load_model(f"hf:{tmp_path}", pretrained=True)
    prompted = loaded.prompted("a dog", "a red cat")
    x, ids = prompted.preprocess(PHOTO), padded("a dog", "a red cat")
    with torch.no_grad():
        wanted = model(pixel_values=x, input_ids=ids).logits_per_image
        assert torch.allclose(prompted.model(x), wanted, atol=1e-5)
        assert torch.allclose(loaded.model(x, ids), wanted, atol=1e-5)
        assert loaded.model(x).shape == (1, 24 if kind == "clip" else 32)
    assert prompted.class_names == ("a dog", "a red cat") and prompted.patch_size == 8
    libra = fxgrad.convert(prompted.model, (x,))
    found = fxgrad.attribute(libra, (x,), target="a red cat", class_names=prompted.class_names)
    assert torch.allclose(found.output, wanted[:, 1], atol=1e-5)
    assert found.completeness_error is None or found.completeness_error < 1e-4


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_both_towers_are_captured_and_complete(kind: str, tmp_path: Path) -> None:
    """Words and pixels share one logit; the lengths of both embeddings are held."""
    clip_folder(tmp_path, kind)
    loaded = load_model(f"hf:{tmp_path}", pretrained=True, dtype=torch.float64)
    assert isinstance(loaded.model, Clip)
    x, ids = loaded.preprocess(PHOTO), padded("a red cat")
    libra = fxgrad.convert(loaded.model, (x, ids))
    assert torch.equal(libra(x, ids), loaded.model(x, ids))
    report = fxgrad.check(libra, (x, ids), original=loaded.model)
    assert report.passed and report.completeness_error < 1e-10
    found = fxgrad.attribute(libra, (x, ids), target=0)
    shapes = {name: tuple(map.shape) for name, map in found.maps.items()}
    assert shapes == {"image": (1, 32, 32), "clip.text_model.embeddings.token_embedding": (1, 1, LENGTH)}


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("hf:timesfm", {}, "has no classifier of pictures and no language model of the type timesfm"),
        (f"{VIT}&hidden_sise=3", {}, "a config of vit has no 'hidden_sise'. Close to it: hidden_size"),
        ("hf:vit", {"pretrained": True}, "is a type of model and has no weights. Give hf:OWNER/NAME, or leave out --p"),
        ("hf:google/vit", {}, r"cannot be had from the hub \(which is out of reach, .* hf:FOLDER, or a type of model"),
        ("hf:empty", {}, "hf:empty cannot be read from the folder .* Offline: give a folder that has config.json"),
        ("hf:resnet", {}, "hf:resnet does not say how large its input is: --input-size C H W"),
    ],
)
def test_what_is_refused(
    spec: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "hub_reachable", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaptureError, match=message) as raised:
        load_model(spec, **options)
    assert "\n" not in str(raised.value)


def test_tokenizers_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_folder(tmp_path, "clip")
    for file in tmp_path.glob("*token*"):
        file.unlink()
    loaded = load_model(f"hf:{tmp_path}")
    with pytest.raises(CaptureError, match=r"the tokenizer of hf:.* knows no word of 'a dog'. Put tokenizer.json and"):
        loaded.prompted("a dog")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no connection\nmore")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(
        CaptureError, match=r"cannot be had \(OSError: no connection\)\. Put tokenizer.json and .*FOLDER"
    ):
        loaded.prompted("a dog")
    both = "text_config={'num_hidden_layers':1}&vision_config={'num_hidden_layers':1}"
    with pytest.raises(CaptureError, match=r"hf:clip.* has no tokenizer: its folder or repository has"):
        load_model(f"hf:clip?{both}").prompted("a dog")


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("hf:gpt2?n_embd=32&n_layer=2&n_head=2&vocab_size=40", (2, 16, 40)),
        ("hf:bert?hidden_size=32&num_hidden_layers=1&num_attention_heads=2&intermediate_size=48", (2, 16, 30522)),
        ("hf:gpt2?n_embd=32&n_layer=1&n_head=2&vocab_size=40&pad_token_id=0&num_classes=3", (2, 3)),
    ],
)
def test_language_models(spec: str, shape: tuple[int, ...]) -> None:
    loaded = load_model(spec, dtype=torch.float64)
    ids = loaded.example()
    with torch.no_grad():
        assert ids.dtype == torch.int64 and loaded.model(ids).shape == shape
        assert torch.equal(loaded.model(ids), loaded.model.model(input_ids=ids).logits)  # type: ignore[operator]
    with pytest.raises(InputError, match="takes token ids, no pictures: convert and check take it here; in Python"):
        loaded.preprocess(PHOTO)


def test_a_language_model_is_checked_on_the_command_line() -> None:
    done = CliRunner().invoke(main, ["check", "hf:gpt2?n_embd=32&n_layer=1&n_head=2&vocab_size=40", "--randomize"])
    assert (
        done.exit_code == 0
        and "input 16 token ids, float32" in done.stdout
        and "passed: forward identical" in done.stdout
    ), done.output


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stock CLIP is explained and exported by prompts; without any, its embeddings are no classes."""
    clip_folder(tmp_path / "small", "clip")
    PHOTO.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    prompts = ["--prompt", "a dog", "--prompt", "a red cat"]
    done = CliRunner().invoke(main, ["explain", "hf:small", "photo.png", "--pretrained", *prompts, "-o", "dog.png"])
    assert done.exit_code == 0 and done.stderr == "", done.output
    wanted = load_model("hf:small", pretrained=True).prompted("a dog").model
    logit = wanted(load_model("hf:small").preprocess(PHOTO)).item()
    assert f"prompt 'a dog', logit {logit:.4g}" in done.stdout and (tmp_path / "dog.png").exists()
    described = {}

    def write(
        converted: Any, args: Any, path: str, *, metadata: dict[str, Any], **options: Any
    ) -> dict[str, list[str]]:
        described.update(metadata)
        Path(path).touch()
        return {"inputs": [], "outputs": []}

    monkeypatch.setattr("fxgrad.commands.export.export_explainer", write)
    done = CliRunner().invoke(main, ["export", "hf:small", "--pretrained", *prompts, "-o", "dog.pt2"])
    assert done.exit_code == 0 and described["class_names"] == ("a dog", "a red cat"), done.output
    for command in (["explain", "hf:small", "photo.png"], ["export", "hf:small", "-o", "a.pt2"]):
        refused = CliRunner().invoke(main, command)
        assert refused.exit_code == 2 and "give at least one --prompt, such as --prompt" in refused.stderr


def test_without_transformers_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CaptureError, match=r"needs transformers .* pip install transformers"):
        load_model(VIT)
