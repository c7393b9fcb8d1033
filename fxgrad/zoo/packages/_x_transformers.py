"""x-transformers: a small decoder and encoder, and each of its options alone on top of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxgrad.zoo.packages.recipe import Package, Recipe, flags, floats, ints, make, ones, recipe

# fmt: off
LENGTH, WORDS = 8, 50
IDS = ints(LENGTH, below=WORDS)
LAYERS: dict[str, Any] = dict(dim=32, depth=2, heads=2, attn_dim_head=16, ff_mult=2, verbose=False)


def layers(kind: str, /, **options: Any) -> Any:
    return make(f"x_transformers:{kind}", **LAYERS | options)


def language(kind: str = "Decoder", /, wrapper: Mapping[str, Any] | None = None, **options: Any) -> Recipe:
    """A transformer over token ids, with these options of its layers, and of the wrapper around them."""
    net = layers(kind, **options)
    return recipe(
        make("x_transformers:TransformerWrapper", num_tokens=WORDS, max_seq_len=16, attn_layers=net, **wrapper or {}),
        IDS,
    )


OF_LAYERS: Mapping[str, Mapping[str, Any]] = {
    "scalenorm": dict(use_scalenorm=True),
    "rmsnorm": dict(use_rmsnorm=True),
    "simple_rmsnorm": dict(use_simple_rmsnorm=True),
    "dynamic_tanh": dict(use_dynamic_tanh=True),
    "derf": dict(use_derf=True),
    "alibi": dict(alibi_pos_bias=True),
    "rel_pos_bias": dict(rel_pos_bias=True),
    "dynamic_pos_bias": dict(dynamic_pos_bias=True, dynamic_pos_bias_log_distance=True),
    "rotary": dict(rotary_pos_emb=True),
    "rotary_xpos": dict(rotary_xpos=True),
    "polar": dict(polar_pos_emb=True),
    "weight_tie_layers": dict(weight_tie_layers=True),
    "sandwich_coef": dict(sandwich_coef=1),
    "par_ratio": dict(par_ratio=2, depth=3),
    "residual_attn": dict(residual_attn=True),
    "macaron": dict(macaron=True),
    "post_norm": dict(pre_norm=False),
    "pre_and_post_norm": dict(pre_and_post_norm=True),
    "aggregated_residuals": dict(attn_aggregated_residuals=True, attn_aggregated_residual_kwargs=dict(lora_rank=8)),
    "gate_residual": dict(gate_residual=True),
    "orthog_residual": dict(orthog_residual=True),
    "scale_residual": dict(scale_residual=True),
    "shift_tokens": dict(shift_tokens=1),
    "sandwich_norm": dict(sandwich_norm=True),
    "softclamp_output": dict(softclamp_output=True),
    "layerscale": dict(use_layerscale=True),
    "unet_skips": dict(unet_skips=True),
    "integrate_layers": dict(integrate_layers=True),
    "residual_streams": dict(num_residual_streams=2),
    "diff_residuals": dict(num_residual_streams=2, qkv_receive_diff_residuals=True),
    "reinject_input": dict(reinject_input=True, learned_reinject_input_gate=True),
    "value_residual": dict(add_value_residual=True),
    "talking_heads": dict(attn_pre_talking_heads=True, attn_post_talking_heads=True),
    "head_scale": dict(attn_head_scale=True),
    "sparse_topk": dict(attn_sparse_topk=3),
    "memory_key_values": dict(attn_num_mem_kv=2),
    "attention_on_attention": dict(attn_on_attn=True),
    "gate_values": dict(attn_gate_values=True),
    "gate_value_heads": dict(attn_gate_value_heads=True),
    "swiglu_values": dict(attn_swiglu_values=True),
    "output_gate": dict(attn_output_gate=True),
    "max_attend_past": dict(attn_max_attend_past=3),
    "qk_norm": dict(attn_qk_norm=True),
    "qk_norm_groups": dict(attn_qk_norm=True, attn_qk_norm_groups=2, attn_qk_norm_dim_scale=True),
    "qk_rmsnorm": dict(attn_qk_rmsnorm=True),
    "value_rmsnorm": dict(attn_value_rmsnorm=True),
    "l2_distance": dict(attn_l2_distance=True),
    "sigmoid": dict(attn_sigmoid=True),
    "hard": dict(attn_hard=True),
    "selective": dict(attn_selective=True),
    "cog_signed": dict(attn_cog_signed=True),
    "one_kv_head": dict(attn_one_kv_head=True),
    "kv_heads": dict(attn_kv_heads=1),
    "value_dim_head": dict(attn_value_dim_head=8),
    "add_zero_kv": dict(attn_add_zero_kv=True),
    "head_learned_sink": dict(attn_head_learned_sink=True),
    "data_dependent_alibi": dict(attn_data_dependent_alibi=True),
    "relative_projected": dict(attn_use_rel_proj_pos_bias=True),
    "cope": dict(attn_use_cope=True),
    "softclamp_logits": dict(attn_softclamp_logits=True),
    "orthog_values": dict(attn_orthog_projected_values=True),
    "laser": dict(attn_laser=True),
    "latent_qkv": dict(attn_use_latent_q=True, attn_dim_latent_q=8, attn_use_latent_kv=True, attn_dim_latent_kv=8),
    "inverted": dict(attn_inverted_attention=True),
    "flash": dict(attn_flash=True),
    "glu": dict(ff_glu=True),
    "swiglu": dict(ff_glu=True, ff_swish=True),
    "glu_bias": dict(ff_glu=True, ff_glu_mult_bias=True),
    "relu_squared": dict(ff_relu_squared=True),
    "solu": dict(ff_solu=True),
    "post_act_ln": dict(ff_post_act_ln=True),
    "no_bias": dict(ff_no_bias=True),
    "ff_softclamp": dict(ff_softclamp_value=5.0),
    "only_attn": dict(only_attn=True),
}
OF_WRAPPER: Mapping[str, Mapping[str, Any]] = {
    "embedding_of_another_size": dict(emb_dim=16),
    "post_emb_norm": dict(post_emb_norm=True),
    "memory_tokens": dict(num_memory_tokens=3),
    "tied_embedding": dict(tie_embedding=True),
    "no_positions": dict(use_abs_pos_emb=False),
    "sinusoidal": dict(scaled_sinu_pos_emb=True),
    "l2norm_embed": dict(l2norm_embed=True),
    "output_heads": dict(num_output_heads=2),
    "embedding_gradient": dict(emb_frac_gradient=0.5),
    "mixture_of_softmax": dict(mixture_of_softmax=True, mixture_of_softmax_k=2),
    "sigsoftmax": dict(sigsoftmax_logits=True),
    "deep_embed": dict(ff_deep_embed=True),
}
OF_ENCODER: Mapping[str, Mapping[str, Any]] = {
    "average": dict(average_pool_embed=True, logits_dim=5),
    "cls_token": dict(use_cls_token=True, logits_dim=5),
    "attn_pool": dict(attn_pool=True, logits_dim=5),
}
SOUND = floats(LENGTH, 6)
CONTINUOUS: dict[str, Any] = dict(dim_in=6, dim_out=4, max_seq_len=16)
PICTURES: dict[str, Any] = dict(image_size=32, patch_size=8, num_classes=5)

RECIPES: Mapping[str, Recipe] = {
    "decoder": language(),
    "encoder": language("Encoder"),
    "prefix_decoder": language("PrefixDecoder"),
    "masked": recipe(make("x_transformers:TransformerWrapper", num_tokens=WORDS, max_seq_len=16,
        attn_layers=layers("Encoder")), IDS, mask=flags(LENGTH)),
    "recycling": recipe(make("x_transformers:TransformerWrapper", num_tokens=WORDS, max_seq_len=16, recycling=True,
        attn_layers=layers("Decoder")), IDS, recycle_steps=2),
    **{f"layers/{name}": language(**options) for name, options in OF_LAYERS.items()},
    **{f"wrapper/{name}": language(wrapper=options) for name, options in OF_WRAPPER.items()},
    **{f"encoder/{name}": language("Encoder", wrapper=options) for name, options in OF_ENCODER.items()},
    "vision": recipe(make("x_transformers:ViTransformerWrapper", attn_layers=layers("Encoder"), **PICTURES), floats(3,
        32, 32) ),
    "vision_registers": recipe(make("x_transformers:ViTransformerWrapper", attn_layers=layers("Encoder"),
        num_register_tokens=2, **PICTURES), floats(3, 32, 32)),
    "continuous": recipe(make("x_transformers:ContinuousTransformerWrapper", attn_layers=layers("Decoder"),
        **CONTINUOUS), SOUND ),
    "continuous_masked": recipe(make("x_transformers:ContinuousTransformerWrapper", attn_layers=layers("Encoder"),
        **CONTINUOUS), SOUND, mask=ones(LENGTH)),
    "continuous_pooled": recipe(make("x_transformers:ContinuousTransformerWrapper", attn_layers=layers("Encoder"),
        average_pool_embed=True, **CONTINUOUS), SOUND),
    "cross_attender": recipe(layers("CrossAttender"), floats(LENGTH, 32), context=floats(5, 32)),
    "conditioned": recipe(layers("Encoder", use_adaptive_layernorm=True, use_adaptive_layerscale=True, dim_condition=8),
        floats(LENGTH, 32), condition=floats(8)),
    "conditioned_rms": recipe(layers("Encoder", use_adaptive_rmsnorm=True, dim_condition=8), floats(LENGTH, 32),
        condition=floats(8) ),
    "attention_pool": recipe(make("x_transformers:AttentionPool", 32, num_pooled_tokens=2, heads=2, dim_head=16),
        floats(LENGTH, 32) ),
    "multi_input": recipe(make("x_transformers:MultiInputTransformerWrapper", num_tokens=dict(note=20, pitch=30),
        max_seq_len=16, return_only_embed=True, attn_layers=layers("Decoder")), dict(note=ints(LENGTH, below=20),
        pitch=ints(LENGTH, below=30))),
    "numbers_in_text": recipe(make("x_transformers:XValTransformerWrapper", num_tokens=WORDS, numerical_token_id=3,
        max_seq_len=16, attn_layers=layers("Decoder")), IDS, floats(LENGTH)),
    "neo_mlp": recipe(make("x_transformers:NeoMLP", dim_in=5, dim_hidden=7, dim_out=4, depth=2, dim_model=32), floats(5)
        ),
}
X_TRANSFORMERS = Package("x-transformers", "x_transformers", RECIPES)
# fmt: on
