"""The models of the paper's experiments."""

from __future__ import annotations

MODELS = {
    "ViT-tiny": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "ViT-small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "ViT-base": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "ViT-large": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "EVA02": "eva02_small_patch14_336.mim_in22k_ft_in1k",
    "gMixer": "gmixer_24_224.ra3_in1k",
    "BEiT2": "beitv2_large_patch16_224.in1k_ft_in22k_in1k",
    "FlexiViT": "flexivit_large.1200ep_in1k",
    "CLIP-large": "vit_large_patch14_clip_224.openai_ft_in1k",
    "CLIP-huge": "vit_huge_patch14_clip_224.laion2b_ft_in12k_in1k",
    "DeiT3": "deit3_huge_patch14_224.fb_in22k_ft_in1k",
    "SigLIP": "vit_so400m_patch14_siglip_gap_378.webli_ft_in1k",
}
"""The paper's name -> timm's tag."""
