"""Models of open_clip, built small by a configuration of ours: prompts, preprocessing, weights, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

import fxgrad
from fxgrad.data import reach
from fxgrad.data.models import load_model
from fxgrad.data.open_clip_models import twin_of
from fxgrad.errors import CaptureError

open_clip = pytest.importorskip("open_clip")
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a small model that open_clip knows for one test."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    (tmp_path / "Tiny-8.json").write_text(json.dumps({"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    yield "open_clip:Tiny-8"


def test_a_prompted_model_is_open_clip_s_cosine_with_the_texts(tiny: str) -> None:
    loaded = load_model(tiny)
    assert (loaded.weights, loaded.preprocess.size, loaded.patch_size) == ("random", (3, 32, 32), 8)
    texts = ("a zebra", "an elephant", "grass")
    prompted = loaded.prompted(*texts)
    x = loaded.preprocess(Image.effect_noise((50, 40), 90))
    clip = loaded.model.clip
    with torch.no_grad():
        picture, words, scale = clip(x, loaded.model.tokenizer(list(texts)))[:3]  # type: ignore[operator]
        assert torch.allclose(prompted.model(x), scale * picture @ words.T, atol=1e-5)
        assert loaded.model(x).shape == (1, 12)
    assert prompted.class_names == texts and prompted.model.num_classes == 3
    prompted.refuse_without_prompts()
    with pytest.raises(CaptureError, match="a CLIP classifies by texts: give at least one --prompt"):
        loaded.prompted()
    with pytest.raises(
        CaptureError, match="open_clip:Tiny-8 classifies by texts, and gives embeddings without: give at"
    ):
        loaded.refuse_without_prompts()


def test_it_is_balanced_and_has_tokens(tiny: str) -> None:
    prompted = load_model(tiny).prompted("a zebra", "an elephant")
    x = prompted.example(2)
    libra = fxgrad.convert(prompted.model, (x,))
    assert torch.equal(libra(x), prompted.model(x))
    found = fxgrad.attribute(libra, (x,), target=1, method="input_x_gradient", at="tokens")
    assert found.patches.shape == (2, 4, 4) and found.completeness_error < 1e-3  # type: ignore[operator]


def test_both_towers_are_captured_and_complete(tiny: str) -> None:
    """Words and pixels share one logit; the lengths of both embeddings are held."""
    loaded = load_model(tiny, dtype=torch.float64)
    x, ids = loaded.example(1), loaded.model.tokenizer(["a zebra"])  # type: ignore[operator]
    libra = fxgrad.convert(loaded.model, (x, ids))
    with torch.no_grad():
        picture, words, scale = loaded.model.clip(x, ids)[:3]  # type: ignore[operator]
        assert torch.allclose(libra(x, ids), scale * picture @ words.T)
    report = fxgrad.check(libra, (x, ids), original=loaded.model)
    assert report.passed and report.completeness_error < 1e-10
    found = fxgrad.attribute(libra, (x, ids), target=0)
    assert {name: tuple(map.shape) for name, map in found.maps.items()} == {
        "image": (1, 32, 32),
        "clip.token_embedding": (1, 1, 16),
    }


@pytest.mark.parametrize(
    ("name", "pretrained", "spec"),
    [
        ("vit_base_patch16_clip_224", False, "ViT-B-16"),
        ("vit_base_patch16_clip_quickgelu_224", False, "ViT-B-16-quickgelu"),
        ("vit_base_patch16_clip_224.openai", True, "ViT-B-16-quickgelu@openai"),
        ("vit_base_patch16_clip_224.laion2b", True, "ViT-B-16@laion2b_s34b_b88k"),
        ("vit_base_patch16_siglip_224.webli", True, "ViT-B-16-SigLIP@webli"),
        ("vit_base_patch16_siglip_224.v2_webli", True, "ViT-B-16-SigLIP2@webli"),
        ("eva02_large_patch14_clip_336", True, "EVA02-L-14-336@merged2b_s6b_b61k"),
    ],
)
def test_timm_s_picture_towers_have_a_twin_with_texts(name: str, pretrained: bool, spec: str) -> None:
    assert twin_of(name, pretrained) == f"open_clip:{spec}"


def test_a_tower_of_timm_takes_prompts(tiny: str, tmp_path: Path) -> None:
    """The witness: what open_clip's own model says, with weights of the same seed."""
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
    (tmp_path / "Small-16.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "Small-16.json")
    prompted = load_model("timm:test_vit", seed=3).prompted("a dog", "a cat")
    assert (prompted.name, prompted.described_weights) == ("open_clip:Small-16", "random weights (seed 3)")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        clip = open_clip.create_model("Small-16").eval()
        x = prompted.preprocess(Image.effect_noise((300, 200), 90))
        picture, words, scale = clip(x, open_clip.get_tokenizer("Small-16")(["a dog", "a cat"]))[:3]
        assert torch.allclose(prompted.model(x), scale * picture @ words.T, atol=1e-4)


def test_a_tokenizer_on_the_hub_is_asked_for_when_there_are_texts(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": {**TEXT, "hf_tokenizer_name": "nobody/nothing"}}
    (tmp_path / "Far-8.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "Far-8.json")
    monkeypatch.setattr(reach, "hub_reachable", lambda: False)
    loaded = load_model("open_clip:Far-8")
    assert loaded.model(loaded.example(1)).shape == (1, 12)
    with pytest.raises(
        CaptureError, match=r"the tokenizer of open_clip:Far-8 cannot be had: .* out of reach"
    ) as raised:
        loaded.prompted("a dog")
    assert "\n" not in str(raised.value)


def test_towers_without_texts() -> None:
    with pytest.raises(
        CaptureError, match=r"no text tower for timm:vit_base_patch32_clip_224\.tin; it has weights for"
    ):
        twin_of("vit_base_patch32_clip_224.tin", True)
    with pytest.raises(
        CaptureError, match=r"timm:test_vit knows no prompts\. A CLIP does, as open_clip:NAME or hf:NAME"
    ):
        load_model("timm:test_vit").prompted("a dog")


def test_weights_come_from_a_checkpoint_of_open_clip_s_model(tiny: str, tmp_path: Path) -> None:
    other = open_clip.create_model("Tiny-8")
    safetensors.torch.save_file(other.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(tiny, checkpoint=tmp_path / "w.safetensors")
    x = loaded.example(1)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), other.eval().encode_image(x))


def test_a_folder_as_the_hub_has_it_brings_weights_and_preprocessing(tiny: str, tmp_path: Path) -> None:
    """As hf-hub: has BiomedCLIP, here with a timm ViT for the pictures, too."""
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"}
    model = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic", "resize_mode": "squash"}
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    (tmp_path / "Timm-16.json").write_text(json.dumps(model))
    open_clip.add_model_config(tmp_path / "Timm-16.json")
    stored = open_clip.create_model("Timm-16").eval()
    safetensors.torch.save_file(stored.state_dict(), folder / "open_clip_model.safetensors")
    loaded = load_model(f"open_clip:local-dir:{folder}")
    assert loaded.weights == f"local-dir:{folder}"
    assert (loaded.preprocess.mean, loaded.preprocess.crop) == ((0.1, 0.2, 0.3), None)
    x = loaded.preprocess(Image.effect_noise((300, 200), 90))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), stored.encode_image(x))
        words = stored.encode_text(loaded.model.tokenizer(["a", "b"]), normalize=True)  # type: ignore[operator]
        wanted = stored.logit_scale.exp() * stored.encode_image(x, normalize=True) @ words.T
        assert torch.allclose(loaded.prompted("a", "b").model(x), wanted, atol=1e-4)


def test_the_preprocessing_is_open_clip_s(tiny: str) -> None:
    loaded = load_model(tiny)
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    config = open_clip.transform.PreprocessCfg(**loaded.model.clip.visual.preprocess_cfg)  # type: ignore[union-attr]
    assert torch.equal(
        loaded.preprocess(image)[0], open_clip.transform.image_transform_v2(config, is_train=False)(image)
    )
    assert loaded.preprocess.mean == tuple(config.mean)


def test_the_paper_s_models_have_these_names() -> None:
    assert ("EVA02-L-14-336", "merged2b_s6b_b61k") in open_clip.list_pretrained()


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (
            "open_clip:Tiny-9",
            {},
            r"open_clip has no model 'Tiny-9'. open_clip.list_models\(\) has all; hf-hub:REPOSITORY, too",
        ),
        ("open_clip:Tiny-8@gold", {}, "open_clip has no weights 'gold' of Tiny-8; it has none"),
        ("open_clip:ViT-B-32@gold", {}, "open_clip has no weights 'gold' of ViT-B-32; it has openai, "),
        ("open_clip:Tiny-8", {"pretrained": True}, "the weights of an open_clip model are its tag: NAME@TAG"),
        ("open_clip:local-dir:/absent", {}, "open_clip:local-dir:/absent cannot be had: "),
    ],
)
def test_what_is_refused(spec: str, options: dict[str, bool], message: str, tiny: str) -> None:
    with pytest.raises(CaptureError, match=message):
        load_model(spec, **options)  # type: ignore[arg-type]
