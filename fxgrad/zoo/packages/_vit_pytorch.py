"""Vision transformers of vit-pytorch, one of every module; the losses and trainers around them are left out.

NaViT takes lists of pictures of several sizes, and its nested tensors are none of torch.export's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxgrad.zoo.packages.recipe import Package, Recipe, floats, make, recipe

# fmt: off
SIDE = 32
PICTURE, VIDEO, SERIES = floats(3, SIDE, SIDE), floats(3, 4, SIDE, SIDE), floats(3, SIDE)
SMALL: dict[str, Any] = dict(dim=32, depth=2, heads=2, dim_head=16, mlp_dim=48)
VIT: dict[str, Any] = SMALL | dict(image_size=SIDE, patch_size=8, num_classes=5)
CUBE: dict[str, Any] = SMALL | dict(image_size=SIDE, image_patch_size=8, frames=4, frame_patch_size=2, num_classes=5)
GRID: dict[str, Any] = SMALL | dict(input_shape=SIDE, patch_size=8, ndim=2, num_classes=5)


def vit(path: str, /, **options: Any) -> Recipe:
    return recipe(make(f"vit_pytorch.{path}", **VIT | options), PICTURE)


def net(path: str, /, **options: Any) -> Recipe:
    return recipe(make(f"vit_pytorch.{path}", num_classes=5, **options), floats(3, 64, 64))


def video(path: str, /, omit: tuple[str, ...] = (), **options: Any) -> Recipe:
    sizes = {key: value for key, value in CUBE.items() if key not in omit}
    return recipe(make(f"vit_pytorch.{path}", **sizes | options), VIDEO)


ENCODER = make("vit_pytorch.vit:ViT", **VIT)
FACTORIZED: dict[str, Any] = dict(omit=("depth",), spatial_depth=2, temporal_depth=2)

RECIPES: Mapping[str, Recipe] = {
    "vit": vit("vit:ViT"),
    "vit_mean": vit("vit:ViT", pool="mean"),
    "simple_vit": vit("simple_vit:SimpleViT"),
    "ats_vit": vit("ats_vit:ViT", max_tokens_per_depth=(12, 8)),
    "attn_residual_dca": vit("attn_residual_with_dca_simple_vit:SimpleViT"),
    "cait": vit("cait:CaiT", cls_depth=1),
    "cct": recipe(make("vit_pytorch.cct:CCT", img_size=SIDE, embedding_dim=32, num_layers=2, num_heads=2, mlp_ratio=2,
        num_classes=5, kernel_size=3, stride=1, padding=1), PICTURE),
    "cct_learnable": recipe(make("vit_pytorch.cct:CCT", img_size=SIDE, embedding_dim=32, num_layers=2, num_heads=2,
        num_classes=5, positional_embedding="learnable"), PICTURE),
    "cct_3d": recipe(make("vit_pytorch.cct_3d:CCT", img_size=SIDE, num_frames=4, embedding_dim=32, num_layers=2,
        num_heads=2, mlp_ratio=2, num_classes=5), VIDEO),
    "cross_vit": recipe(make("vit_pytorch.cross_vit:CrossViT", image_size=SIDE, num_classes=5, depth=1, sm_dim=16,
        lg_dim=32, sm_patch_size=8, sm_enc_heads=2, sm_enc_mlp_dim=32, sm_enc_dim_head=8, lg_patch_size=16,
        lg_enc_depth=1, lg_enc_heads=2, lg_enc_mlp_dim=32, lg_enc_dim_head=8, cross_attn_depth=1, cross_attn_heads=2,
        cross_attn_dim_head=8), PICTURE),
    "crossformer": recipe(make("vit_pytorch.crossformer:CrossFormer", dim=(32, 32, 64, 64), depth=(1, 1, 1, 1),
        num_classes=5, local_window_size=2, global_window_size=(4, 2, 2, 1)), floats(3, 64, 64)),
    "cvt": net("cvt:CvT", s1_emb_dim=16, s2_emb_dim=24, s2_heads=2, s2_depth=1, s3_emb_dim=32, s3_heads=2, s3_depth=1),
    "deepvit": vit("deepvit:DeepViT"),
    "distillable": vit("distill:DistillableViT"),
    "efficient": recipe(make("vit_pytorch.efficient:ViT", image_size=SIDE, patch_size=8, num_classes=5, dim=32,
        transformer=make("x_transformers:Encoder", dim=32, depth=2, heads=2)), PICTURE),
    "extractor": recipe(make("vit_pytorch.extractor:Extractor", ENCODER, detach=False), PICTURE),
    "recorder": recipe(make("vit_pytorch.recorder:Recorder", ENCODER), PICTURE),
    "jet_vit": vit("jet_vit:JetViT", window_size=2),
    "jumbo_vit": vit("jumbo_vit:JumboViT"),
    "learnable_memory": vit("learnable_memory_vit:ViT"),
    "learnable_memory_adapter": recipe(make("vit_pytorch.learnable_memory_vit:Adapter", num_classes=3,
        vit=make("vit_pytorch.learnable_memory_vit:ViT", **VIT)), PICTURE),
    "levit": net("levit:LeViT", image_size=64, dim=(16, 24, 32), depth=1, heads=(1, 2, 2), mlp_mult=2, dim_key=8,
        dim_value=8 ),
    "levit_distilled": net("levit:LeViT", image_size=64, dim=(16, 24, 32), depth=1, heads=(1, 2, 2), mlp_mult=2,
        dim_key=8, dim_value=8, num_distill_classes=4),
    "video_transformer": recipe(make("vit_pytorch.levjepa:VideoTransformer", **SMALL, image_size=SIDE, patch_size=8,
        frames=4), VIDEO ),
    "nd_transformer": recipe(make("vit_pytorch.levjepa_nd:NDTransformer", **SMALL, ndim=3, input_shape=(4, SIDE, SIDE),
        patch_size=(2, 8, 8) ), VIDEO),
    "local_vit": vit("local_vit:LocalViT"),
    "look_vit": recipe(make("vit_pytorch.look_vit:LookViT", dim=32, image_size=48, num_classes=5, depth=2,
        patch_size=16, heads=2, dim_head=8, highres_patch_size=12, cross_attn_heads=2, cross_attn_dim_head=8), floats(3,
        48, 48)),
    "looped_vit": recipe(make("vit_pytorch.looped_vit:LoopedViT", num_classes=5, dim=32, image_size=SIDE, patch_size=8,
        pre_loop_depth=1, num_looped_blocks=1, post_loop_depth=1, loop_depth=2, heads=2, mlp_dim=48), PICTURE),
    "max_vit": net("max_vit:MaxViT", dim=16, depth=(1, 1), dim_head=8, dim_conv_stem=8, window_size=4),
    "max_vit_registers": net("max_vit_with_registers:MaxViT", dim=16, depth=(1, 1), dim_head=8, dim_conv_stem=8,
        window_size=4 ),
    "mobile_vit": net("mobile_vit:MobileViT", image_size=(64, 64), dims=[16, 24, 32], channels=[8, 8, 12, 12, 16, 16,
        24, 24, 32, 32, 48], depths=(1, 1, 1)),
    "mp3": vit("mp3:ViT"),
    "nest": recipe(make("vit_pytorch.nest:NesT", image_size=SIDE, patch_size=4, num_classes=5, dim=16, heads=2,
        num_hierarchies=2, block_repeats=(1, 1)), PICTURE),
    "normalized_vit": vit("normalized_vit:nViT"),
    "parallel_vit": vit("parallel_vit:ViT"),
    "pit": vit("pit:PiT", depth=(1, 1)),
    "regionvit": net("regionvit:RegionViT", dim=(8, 16, 24, 32), depth=(1, 1, 1, 1), window_size=2),
    "regionvit_peg": net("regionvit:RegionViT", dim=(8, 16, 24, 32), depth=(1, 1, 1, 1), window_size=2, use_peg=True,
        tokenize_local_3_conv=True),
    "rvt": vit("rvt:RvT"),
    "scalable_vit": net("scalable_vit:ScalableViT", dim=8, heads=(1, 2, 2, 2), depth=(1, 1, 1, 1), reduction_factor=(4,
        2, 1, 1), window_size=(8, 4, None, None)),
    "sep_vit": recipe(make("vit_pytorch.sep_vit:SepViT", num_classes=5, dim=8, depth=(1, 1, 1), heads=(1, 2, 2)),
        floats(3, 112, 112) ),
    "simple_flash": vit("simple_flash_attn_vit:SimpleViT"),
    "simple_flash_3d": video("simple_flash_attn_vit_3d:SimpleViT"),
    "simple_uvit": vit("simple_uvit:SimpleUViT"),
    "simple_1d": recipe(make("vit_pytorch.simple_vit_1d:SimpleViT", **SMALL, seq_len=SIDE, patch_size=8, num_classes=5),
        SERIES ),
    "simple_3d": video("simple_vit_3d:SimpleViT"),
    "simple_attn_residual": vit("simple_vit_attn_residual:SimpleViTAttnResidual"),
    "simple_orthog_residual": vit("simple_vit_orthog_residual_update:SimpleViT"),
    "simple_fft": vit("simple_vit_with_fft:SimpleViT", freq_patch_size=8),
    "simple_hyper_connections": vit("simple_vit_with_hyper_connections:SimpleViT", num_residual_streams=2),
    "simple_patch_dropout": vit("simple_vit_with_patch_dropout:SimpleViT"),
    "simple_qk_norm": vit("simple_vit_with_qk_norm:SimpleViT"),
    "simple_registers": vit("simple_vit_with_register_tokens:SimpleViT"),
    "simple_relative_bias": vit("simple_vit_with_relative_proj_pos_bias:SimpleViT"),
    "simple_sparse_gating": vit("simple_vit_with_sparse_gating:SimpleViTWithSparseGating"),
    "simple_specialized_cls": vit("simple_vit_with_specialized_cls:SimpleViT"),
    "simple_value_residual": vit("simple_vit_with_value_residual:SimpleViT"),
    "t2t": recipe(make("vit_pytorch.t2t:T2TViT", dim=32, image_size=SIDE, depth=2, heads=2, mlp_dim=48, num_classes=5),
        PICTURE ),
    "twins_svt": net("twins_svt:TwinsSVT", s1_emb_dim=8, s1_local_patch_size=4, s1_global_k=4, s2_emb_dim=16,
        s2_local_patch_size=4, s2_global_k=4, s3_emb_dim=24, s3_local_patch_size=4, s3_global_k=4, s3_depth=1,
        s4_emb_dim=32, s4_local_patch_size=2, s4_global_k=2, s4_depth=1),
    "vaat_vit": vit("vaat:ViT", num_register_tokens=2),
    "vaat_ast": recipe(make("vit_pytorch.vaat:AST", dim=32, depth=2, mlp_dim=48, num_classes=5, patch_size=8, heads=2,
        dim_head=16), floats(1024)),
    "vat": recipe(make("vit_pytorch.vat:VAT", make("vit_pytorch.vat:ViT", **VIT), dim=32, depth=2, heads=2, dim_head=16,
        dim_action=4, mlp_dim=48), floats(1, 3, SIDE, SIDE)),
    "vat_siglip": recipe(make("vit_pytorch.vat_siglip:SigLIP", image_size=SIDE, patch_size=8, dim=32, depth=2, heads=2,
        mlp_dim=48), PICTURE),
    "vit_1d": recipe(make("vit_pytorch.vit_1d:ViT", **SMALL, seq_len=SIDE, patch_size=8, num_classes=5), SERIES),
    "vit_3d": video("vit_3d:ViT"),
    "vit_5": vit("vit_5:ViT"),
    "vit_detpool": vit("vit_detpool:ViTDetPool"),
    "vit_small_dataset": vit("vit_for_small_dataset:ViT"),
    "vit_nd": recipe(make("vit_pytorch.vit_nd:ViTND", **GRID), PICTURE),
    "vit_nd_causal": recipe(make("vit_pytorch.vit_nd:ViTND", **GRID, causal_dims=0), PICTURE),
    "vit_nd_pope": recipe(make("vit_pytorch.vit_nd_pope:ViTND", **GRID), PICTURE),
    "vit_nd_rotary": recipe(make("vit_pytorch.vit_nd_rotary:ViTND", **GRID), PICTURE),
    "vit_decorr": vit("vit_with_decorr:ViT"),
    "vit_keel": vit("vit_with_keel_post_ln:ViT"),
    "vit_patch_dropout": vit("vit_with_patch_dropout:ViT"),
    "vit_patch_merger": vit("vit_with_patch_merger:ViT", patch_merge_layer=1, patch_merge_num_tokens=4),
    "vivit": video("vivit:ViViT", **FACTORIZED),
    "vivit_self_attention": video("vivit:ViViT", **FACTORIZED, variant="factorized_self_attention"),
    "vivit_moss": video("vivit_with_moss:ViViT", **FACTORIZED, moss_hidden_dim=8),
    "wwt": vit("wwt:WWT", num_slots=(4, 2)),
    "xcit": vit("xcit:XCiT", cls_depth=1),
    "video_of_pictures": recipe(make("vit_pytorch.accept_video_wrapper:AcceptVideoWrapper", ENCODER), VIDEO),
}

VIT_PYTORCH = Package("vit-pytorch", "vit_pytorch", RECIPES, needs=("x-transformers",))
# fmt: on
