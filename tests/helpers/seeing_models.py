"""Tiny random models of transformers that see pictures, and their processors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as tr
from torch import nn

from tests.helpers.language_models import CAUSAL, tokenizer

IMAGE, START, END = "<image>", "<look>", "</look>"
SIDE, PATCH = 32, 8
SIGHT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip
QWEN_SIGHT: dict[str, Any] = {
    "depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
}  # fmt: skip


@cache
def words() -> Any:
    """The tokenizer of the language models, with a token for pictures."""
    import copy

    own = copy.deepcopy(tokenizer())
    own.add_special_tokens({"additional_special_tokens": [IMAGE, START, END, "<|image_pad|>", "<|video_pad|>"]})
    own.image_token, own.image_token_id = IMAGE, own.convert_tokens_to_ids(IMAGE)
    return own


V = len(words())
TEXT: dict[str, Any] = {**CAUSAL, "vocab_size": V}
PLACE = {"image_token_id": words().convert_tokens_to_ids(IMAGE)}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}}


def _siglip() -> Any:
    return tr.SiglipVisionConfig(**SIGHT, vision_use_head=False).to_dict()


def _qwen(kind: str, **more: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        sight = {**QWEN_SIGHT, **more}
        ends = {"video_token_id": V - 1, "vision_start_token_id": V - 4, "vision_end_token_id": V - 3}
        text = {**TEXT, **ROPE, **({"head_dim": 4} if kind == "Qwen3VL" else {})}
        config = getattr(tr, f"{kind}Config")(text_config=text, vision_config=sight, **PLACE, **ends)
        return getattr(tr, f"{kind}ForConditionalGeneration")(config)

    return build


BUILD: dict[str, Callable[[], nn.Module]] = {
    "llava": lambda: tr.LlavaForConditionalGeneration(tr.LlavaConfig(
        vision_config=tr.CLIPVisionConfig(**SIGHT), text_config=tr.LlamaConfig(**TEXT), vision_feature_layer=-1, **PLACE)),
    "paligemma": lambda: tr.PaliGemmaForConditionalGeneration(tr.PaliGemmaConfig(
        vision_config=_siglip(), text_config=tr.GemmaConfig(**TEXT, head_dim=4).to_dict(), projection_dim=16, **PLACE)),
    "gemma3": lambda: tr.Gemma3ForConditionalGeneration(tr.Gemma3Config(
        vision_config=_siglip(), text_config=tr.Gemma3TextConfig(**TEXT, head_dim=4).to_dict(), mm_tokens_per_image=4,
        **PLACE)),
    "smolvlm": lambda: tr.SmolVLMForConditionalGeneration(tr.SmolVLMConfig(
        vision_config=SIGHT, text_config=tr.LlamaConfig(**TEXT).to_dict(), scale_factor=2, **PLACE)),
    "qwen2": _qwen("Qwen2VL", embed_dim=16, hidden_size=16, mlp_ratio=2),
    "qwen25": _qwen("Qwen2_5_VL", hidden_size=16, out_hidden_size=16, intermediate_size=32, window_size=16,
                    fullatt_block_indexes=[1]),
    "qwen3": _qwen("Qwen3VL", hidden_size=16, out_hidden_size=16, intermediate_size=32, num_position_embeddings=16,
                   deepstack_visual_indexes=[0]),
    "blip2": lambda: tr.Blip2ForConditionalGeneration(tr.Blip2Config(
        vision_config=tr.Blip2VisionConfig(**SIGHT).to_dict(), num_query_tokens=3, qformer_config=tr.Blip2QFormerConfig(
            vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            encoder_hidden_size=16).to_dict(),
        text_config=tr.OPTConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, ffn_dim=32, num_attention_heads=4,
                                 max_position_embeddings=64, word_embed_proj_dim=16).to_dict(), **PLACE)),
    "git": lambda: tr.GitForCausalLM(tr.GitConfig(
        vision_config=SIGHT, vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=64)),
    "pix2struct": lambda: tr.VisionEncoderDecoderModel(tr.VisionEncoderDecoderConfig(
        encoder=tr.ViTConfig(**SIGHT).to_dict(), decoder=tr.BertConfig(vocab_size=V, hidden_size=16, is_decoder=True,
            add_cross_attention=True, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32).to_dict(),
        decoder_start_token_id=1, pad_token_id=0)),
}  # fmt: skip
PLACES = {"llava": 16, "paligemma": 16, "gemma3": 4, "smolvlm": 4, "qwen2": 16, "qwen25": 16, "qwen3": 16, "blip2": 3}
"""How many tokens a picture takes in a text."""


def model(name: str) -> nn.Module:
    """A model, with weights large enough that what it says depends on its input."""
    torch.manual_seed(0)
    built = BUILD[name]().eval().requires_grad_(False)
    for parameter in built.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4) if parameter.any() else torch.nn.init.normal_(parameter, std=0.2)
    return built.double()


def processed(name: str, text: str, seed: int = 0, pictures: int = 1) -> dict[str, torch.Tensor]:
    """What the model's processor would give for a text that begins with pictures."""
    drawn = torch.Generator().manual_seed(seed)
    ids = words()(text)["input_ids"]
    if name == "pix2struct":
        return {"pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=drawn)}
    place = [1, *([PLACE["image_token_id"]] * PLACES.get(name, 0) + [V - 4]) * (pictures if name in PLACES else 0)]
    found = {"input_ids": torch.tensor([[*place, *ids]])}
    seen = found["input_ids"] == PLACE["image_token_id"]
    if name.startswith("qwen"):
        found["pixel_values"] = torch.randn(64 * pictures, 3 * 2 * 4 * 4, generator=drawn)
        found["image_grid_thw"] = torch.tensor([[1, 8, 8]] * pictures)
        found["mm_token_type_ids"] = seen.long()
    else:
        shape = (1, pictures) if name == "smolvlm" else (pictures,)
        found["pixel_values"] = torch.randn(*shape, 3, SIDE, SIDE, generator=drawn)
    if name == "gemma3":
        found["token_type_ids"] = seen.long()
    if name == "paligemma":
        found["token_type_ids"] = torch.zeros_like(seen, dtype=torch.long)
    return found


def llava_processor() -> Any:
    """LLaVA's processor."""
    side = {"height": SIDE, "width": SIDE}
    shown = tr.CLIPImageProcessor(size=side, crop_size=side)
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return tr.LlavaProcessor(shown, words(), patch_size=PATCH, **strategy)
