"""Pictures in prompts: words and maps are complete together, and each pixel's share is where the pixel is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import transformers as tr

from fxgrad.errors import InputError
from fxgrad.text import Explainer, Explanation, explain
from fxgrad.text.seen import cells
from tests.helpers.seeing_models import BUILD, SIDE, llava_processor, model, processed, words

FLOAT32 = {"llava", "paligemma", "gemma3", "smolvlm", "qwen2", "qwen25", "qwen3"}
"""Norms compute in float32 whatever the model's dtype is."""


def picture(seed: int = 0, size: tuple[int, int] = (48, 32)) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    return Image.fromarray(drawn).resize(size, Image.Resampling.BILINEAR)


@cache
def explainer(name: str) -> Explainer:
    return Explainer(model(name), words())


@cache
def reading() -> Explainer:
    """LLaVA with its processor."""
    return Explainer(model("llava"), llava_processor())


def error(found: Explanation) -> float:
    assert found.biases is not None
    return float((found.matrix.sum(1) + found.biases - found.values).abs().max())


def apart(found: Explanation) -> float:
    """How far the maps are from their columns."""
    return max(
        float((maps.sum((1, 2)) - found.matrix[:, at]).abs().max()) for maps, at in zip(found.pictures, found.seen)
    )


@pytest.mark.parametrize("name", BUILD)
def test_words_and_pictures_add_up_and_one_conversion_does(name: str) -> None:
    tolerance = 1e-6 if name in FLOAT32 else 1e-9
    own = explainer(name)
    found = own.explain(processed(name, "the sky is"), " blue red")
    assert error(found) < tolerance and apart(found) < 1e-12 and len(found.pictures) == 1
    assert float(found.pictures[0].abs().max()) > 1e-10 and found.columns[found.seen[0]] == "[picture]"
    first = own.converted
    for longer in own.explain([processed(name, "the night is red and", 1), processed(name, "one", 2)], [" blue"] * 2):
        for folded in (longer, longer.words(), longer.words().hops(2), longer.span(0, 1), longer.sentences()):
            assert error(folded) < tolerance and apart(folded) < 1e-12
    assert own.converted is first


@pytest.mark.parametrize("name", [n for n in BUILD if n != "git"])
def test_the_logits_are_those_that_the_model_generates_by(name: str) -> None:
    net, own, given = model(name), explainer(name), processed(name, "the sky is")
    given = {key: value.double() if value.is_floating_point() else value for key, value in given.items()}
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "output_logits": True}
    said = net.generate(**given, **options, return_dict_in_generate=True, pad_token_id=0)  # type: ignore[operator]
    ids = said.sequences[0, -3:]
    logits = torch.stack(said.logits, 1)[0].gather(1, ids[:, None])[:, 0].double()
    found = own.explain(given, ids.tolist())
    assert torch.allclose(found.values, logits, rtol=0, atol=1e-6)
    alone = own.explain(given, generate={"max_new_tokens": 3, "min_new_tokens": 3})
    assert torch.allclose(alone.values, logits[: len(alone.values)], rtol=0, atol=1e-6)


def qwen() -> Any:
    shown = tr.Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=256, max_pixels=4096)
    return tr.Qwen2VLProcessor(shown, words(), tr.Qwen2VLVideoProcessor(patch_size=4, merge_size=2))


def test_texts_with_pictures_go_through_the_processor(tmp_path: Path) -> None:
    own = reading()
    found = own.explain(("<image> the sky", picture()), " is blue")
    given = llava_processor()(text="<image> the sky", images=[picture()], return_tensors="pt")
    assert torch.equal(found.matrix, own.explain(given, " is blue").matrix)
    assert found.columns == ("[picture]", " the", " sky", " is")
    two = own.explain(("<image> and<image> the sky", [picture(), picture(1)]), " is blue")
    assert two.seen == (0, 2) and error(two) < 1e-6 and apart(two) < 1e-12
    assert two.photos[0].shape == (SIDE, SIDE, 3) and not torch.equal(*two.photos)
    text = own.explain("the sky", " is blue")
    assert text.pictures == () and error(text) < 1e-6


def test_a_chat_with_a_picture() -> None:
    processor = llava_processor()
    processor.chat_template = (
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}"
        "{% endif %}{% endfor %}{% endfor %}"
    )
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": " the sky"}]
    own = Explainer(model("llava"), processor)
    found = own.explain([{"role": "user", "content": content}], " is blue")
    assert torch.equal(found.matrix, own.explain(("<image> the sky", picture()), " is blue").matrix)


def test_patches_of_a_picture_are_where_they_are() -> None:
    """The pixels come in squares of patches; the photo of an uneven picture is upright, and so are the maps."""
    shown = picture(size=(48, 32))
    found = explain(model("qwen2"), qwen(), ("<image> the sky", shown), " is")
    (photo,), (maps,) = found.photos, found.pictures
    assert photo.shape == (32, 48, 3) and maps.shape[1:] == (8, 12)
    wanted = torch.from_numpy(np.asarray(shown).copy()).float()
    correlation = torch.corrcoef(torch.stack([photo.float().flatten(), wanted.flatten()]))[0, 1]
    assert correlation > 0.98  # each channel is normalized in its own way


def test_the_map_is_input_x_gradient_of_the_models_own_pixels() -> None:
    """A witness: the converted module's gradient by plain autograd, pixel by pixel."""
    given = processed("llava", "the sky is")
    own = explainer("llava")
    found = own.explain(given, " blue")
    pixels = given["pixel_values"].double().requires_grad_()
    assert own.converted is not None
    kwargs = {"input_ids": given["input_ids"], "pixel_values": pixels}
    kept = torch.arange(given["input_ids"].shape[1] - 1, given["input_ids"].shape[1])
    token = words()(" blue")["input_ids"][0]
    own.converted(**kwargs, logits_to_keep=kept).logits[0, -1, token].backward()
    assert pixels.grad is not None
    assert torch.allclose(found.pictures[0][0], (pixels * pixels.grad)[0].sum(0).detach(), rtol=0, atol=1e-12)


def test_figure_page_and_numbers(tmp_path: Path) -> None:
    import json

    found = reading().explain(("<image> the sky", picture()), " is blue").words()
    figure = found.plot(tmp_path / "a.png")
    drawn = [axes for part in figure.subfigs[1:] for axes in part.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == ["is", "blue"]
    page = found.html()
    assert page.count("data:image/png;base64,") == 1 and page.count("<canvas") == 1
    written = json.loads(found.to_json())["pictures"]
    assert written[0]["column"] == 0
    assert torch.tensor(written[0]["maps"]).sum((1, 2)).tolist() == pytest.approx(found.matrix[:, 0].tolist(), abs=1e-6)
    assert cells(torch.ones(2, 100, 20)).shape == (2, 32, 20)


def test_an_input_that_no_column_shows_is_refused() -> None:
    small = {"d_kv": 8, "d_ff": 32, "num_heads": 2, "hidden_size": 16, "num_layers": 1}
    sight = {"patch_embed_hidden_size": 12, "seq_len": 8, **{k: v for k, v in small.items() if k != "num_heads"}}
    config = tr.Pix2StructConfig(
        text_config={**small, "vocab_size": len(words())},
        vision_config={**sight, "num_attention_heads": 2, "num_hidden_layers": 1},
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    net = tr.Pix2StructForConditionalGeneration(config).double().eval()
    patches = torch.cat([1 + torch.arange(4.0)[:, None].expand(4, 2), torch.randn(4, 12)], 1)[None]
    with pytest.raises(InputError, match=r"of the inputs flattened_patches, .* belong to no token and to no picture"):
        explain(net, words(), {"flattened_patches": patches}, " blue red").matrix  # noqa: B018


def test_what_is_said_of_bad_input() -> None:
    own = explainer("llava")
    with pytest.raises(
        InputError, match=r"takes no pictures. In the place of the tokenizer, pass the model's processor"
    ):
        own.explain(("<image> the sky", picture()), " is")
    with pytest.raises(InputError, match=r"a text comes with a text, or with pictures of PIL, not with ndarray"):
        reading().explain(("<image> the sky", np.zeros((4, 4, 3))), " is")
    with pytest.raises(InputError, match=r"the tokenizer cannot write this prompt as one text"):
        reading().explain(("<image><image> the sky", picture()), " is")
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "pixel_values": torch.zeros(2, 3, 4, 4)}
    with pytest.raises(InputError, match=r"what a processor gives is of one prompt"):
        own.explain(batch, " is")
    seeing = explainer("gemma3")
    seeing.explain(processed("gemma3", "the sky"), " is")
    assert seeing.converted is not None
    with pytest.raises(
        InputError, match=r"does not say how token_type_ids go on. Pass the model of transformers itself"
    ):
        explain(seeing.converted, words(), processed("gemma3", "the sky"), " is blue")
