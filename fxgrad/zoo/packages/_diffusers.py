"""Denoisers and autoencoders of diffusers; time steps are given as a tensor, one per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxgrad.zoo.packages.recipe import Package, Recipe, floats, ints, make, ones, recipe

# fmt: off
LATENT, VIDEO, PICTURE = floats(4, 16, 16), floats(4, 3, 8, 8), floats(3, 32, 32)
STEP, CLASS, TEXT = ints(below=100), ints(below=9), floats(6, 24)
HEADS: dict[str, Any] = dict(num_attention_heads=2, attention_head_dim=12)
UNET: dict[str, Any] = dict(
    block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4, in_channels=4,
    out_channels=4)
BLOCKS: dict[str, Any] = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
JOINT: dict[str, Any] = HEADS | dict(num_layers=2, joint_attention_dim=24)


def net(name: str, /, *args: Any, options: Mapping[str, Any], **inputs: Any) -> Recipe:
    return recipe(make(f"diffusers:{name}", **options), *args, **inputs)


RECIPES: Mapping[str, Recipe] = {
    "unet_2d": net("UNet2DModel", LATENT, STEP, options=UNET | dict(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))),
    "unet_2d_tuple": net("UNet2DModel", LATENT, STEP, return_dict=False, options=UNET | dict(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))),
    "unet_2d_resnet_sampling": net("UNet2DModel", LATENT, STEP, options=UNET | dict(
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"), downsample_type="resnet", upsample_type="resnet",
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"), resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier")),
    "unet_condition": net("UNet2DConditionModel", LATENT, STEP, TEXT, options=UNET | dict(
        cross_attention_dim=24, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))),
    "unet_condition_xl": net("UNet2DConditionModel", LATENT, STEP, TEXT, options=UNET | dict(
        cross_attention_dim=24, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), use_linear_projection=True,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=40), added_cond_kwargs=dict(text_embeds=floats(16), time_ids=floats(6))),
    "unet_condition_simple": net("UNet2DConditionModel", LATENT, STEP, TEXT, options=UNET | dict(
        cross_attention_dim=24, down_block_types=("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"))),
    "unet_3d": net("UNet3DConditionModel", VIDEO, STEP, TEXT, options=UNET | dict(
        cross_attention_dim=24, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"))),
    "unet_spatio_temporal": net("UNetSpatioTemporalConditionModel", floats(2, 8, 8, 8), STEP, floats(1, 24),
                                floats(3), options=dict(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, num_attention_heads=2,
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"))),
    "controlnet": net("ControlNetModel", LATENT, STEP, TEXT, floats(3, 32, 32), options=BLOCKS | dict(
        in_channels=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=24,
        attention_head_dim=4, conditioning_embedding_out_channels=(4, 8))),
    "t2i_adapter": net("T2IAdapter", PICTURE, options=dict(
        in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter")),
    "autoencoder_kl": net("AutoencoderKL", PICTURE, options=BLOCKS | dict(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)),
    "autoencoder_asymmetric": net("AsymmetricAutoencoderKL", PICTURE, options=dict(
        down_block_types=("DownEncoderBlock2D",) * 2, down_block_out_channels=(8, 16), layers_per_down_block=1,
        up_block_types=("UpDecoderBlock2D",) * 2, up_block_out_channels=(8, 16), layers_per_up_block=1,
        norm_num_groups=4)),
    "autoencoder_tiny": net("AutoencoderTiny", LATENT, options=dict(  # its forward rounds the latents to bytes
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))).calling("decode"),
    "autoencoder_dc": net("AutoencoderDC", PICTURE, options=dict(
        in_channels=3, latent_channels=4, attention_head_dim=4, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)))),
    "autoencoder_wan": net("AutoencoderKLWan", floats(3, 5, 16, 16), options=dict(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4)),
    "autoencoder_cogvideox": net("AutoencoderKLCogVideoX", floats(3, 5, 16, 16), options=dict(
        down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4)),
    "autoencoder_ltx": net("AutoencoderKLLTXVideo", floats(3, 9, 32, 32), options=dict(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1), patch_size=1,
        decoder_block_out_channels=(8, 8, 8, 8), decoder_layers_per_block=(1, 1, 1, 1, 1))),
    "autoencoder_oobleck": net("AutoencoderOobleck", floats(2, 64), options=dict(
        encoder_hidden_size=8, downsampling_ratios=[2, 2], channel_multiples=[1, 2], decoder_channels=8,
        decoder_input_channels=4)),
    "vq": net("VQModel", PICTURE, options=BLOCKS | dict(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=16)),
    "dit": net("DiTTransformer2DModel", LATENT, STEP, CLASS, options=HEADS | dict(
        num_layers=2, sample_size=16, num_embeds_ada_norm=100, norm_num_groups=4)),
    "pixart": net("PixArtTransformer2DModel", LATENT, TEXT, STEP, options=HEADS | dict(
        num_layers=2, sample_size=16, cross_attention_dim=24, caption_channels=24, norm_num_groups=4)),
    "transformer_2d": net("Transformer2DModel", LATENT, TEXT, options=HEADS | dict(
        num_layers=1, in_channels=4, norm_num_groups=2, cross_attention_dim=24)),
    "transformer_temporal": net("TransformerTemporalModel", floats(8, 4, 4), num_frames=2, options=HEADS | dict(
        num_layers=1, in_channels=8, norm_num_groups=2)),
    "prior": net("PriorTransformer", floats(24), STEP, floats(24), floats(6, 24), options=HEADS | dict(
        num_layers=2, embedding_dim=24, num_embeddings=6)),
    "flux": net("FluxTransformer2DModel", options=JOINT | dict(
        in_channels=4, num_single_layers=2, pooled_projection_dim=16, axes_dims_rope=(4, 4, 4)),
        hidden_states=floats(16, 4), encoder_hidden_states=TEXT, pooled_projections=floats(16), timestep=floats(),
        img_ids=floats(16, 3).whole(), txt_ids=floats(6, 3).whole()),
    "sd3": net("SD3Transformer2DModel", LATENT, TEXT, floats(16), STEP, options=JOINT | dict(
        sample_size=16, in_channels=4, out_channels=4, caption_projection_dim=24, pooled_projection_dim=16,
        pos_embed_max_size=16)),
    "sd3_dual": net("SD3Transformer2DModel", LATENT, TEXT, floats(16), STEP, options=JOINT | dict(
        sample_size=16, in_channels=4, out_channels=4, caption_projection_dim=24, pooled_projection_dim=16,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm")),
    "auraflow": net("AuraFlowTransformer2DModel", LATENT, TEXT, floats(), options=HEADS | dict(
        sample_size=16, num_mmdit_layers=1, num_single_dit_layers=1, joint_attention_dim=24, caption_projection_dim=24,
        pos_embed_max_size=64)),
    "wan": net("WanTransformer3DModel", floats(4, 3, 8, 8), STEP, TEXT, options=dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=24, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32)),
    "ltx": net("LTXVideoTransformer3DModel", floats(32, 4), TEXT, STEP, ones(6, dtype="int64"), 2, 4, 4, options=dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=24)),
    "hunyuan_video": net("HunyuanVideoTransformer3DModel", floats(4, 1, 8, 8), STEP, TEXT, ones(6, dtype="int64"),
                         floats(16), options=HEADS | dict(
        in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, num_refiner_layers=1, guidance_embeds=False,
        text_embed_dim=24, pooled_projection_dim=16, rope_axes_dim=(4, 4, 4))),
    "sana": net("SanaTransformer2DModel", LATENT, TEXT, STEP, options=HEADS | dict(
        in_channels=4, out_channels=4, num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=12,
        cross_attention_dim=24, caption_channels=24, sample_size=16)),
    "qwen_image": net("QwenImageTransformer2DModel", floats(16, 16), TEXT, ones(6, dtype="int64"), floats(),
                      [[(1, 4, 4)]] * 2, options=JOINT | dict(
        in_channels=16, out_channels=4, axes_dims_rope=(4, 4, 4))),
    "lumina2": net("Lumina2Transformer2DModel", LATENT, floats(), TEXT, ones(6), options=dict(
        sample_size=16, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(32, 32, 32), cap_feat_dim=24)),
    "mochi": net("MochiTransformer3DModel", floats(4, 2, 8, 8), TEXT, STEP, ones(6), options=HEADS | dict(
        num_layers=2, pooled_projection_dim=16, in_channels=4, text_embed_dim=24, time_embed_dim=8,
        max_sequence_length=6)),
    "cogvideox": net("CogVideoXTransformer3DModel", floats(2, 4, 8, 8), TEXT, STEP, options=dict(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=24, num_layers=2, sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=6)),
    "cogview4": net("CogView4Transformer2DModel", LATENT, TEXT, STEP, floats(2), floats(2), floats(2),
                    options=HEADS | dict(
        in_channels=4, out_channels=4, num_layers=2, text_embed_dim=24, time_embed_dim=16, condition_dim=8,
        pos_embed_max_size=16, sample_size=16, rope_axes_dim=(6, 6))),
    "latte": net("LatteTransformer3DModel", VIDEO, STEP, TEXT, options=HEADS | dict(
        in_channels=4, out_channels=4, num_layers=1, sample_size=8, patch_size=2, caption_channels=24, video_length=3,
        cross_attention_dim=24, norm_type="ada_norm_single", num_embeds_ada_norm=100, norm_elementwise_affine=False)),
    "stable_audio": net("StableAudioDiTModel", floats(4, 16), STEP, TEXT, floats(1, 16), options=dict(
        sample_size=16, in_channels=4, num_layers=2, attention_head_dim=12, num_attention_heads=2, out_channels=4,
        num_key_value_attention_heads=1, cross_attention_dim=24, time_proj_dim=8, global_states_input_dim=16,
        cross_attention_input_dim=24)),
    "t5_film": net("T5FilmDecoder", [(floats(6, 24), ones(6, dtype="int64"))], floats(8, 5), floats(), options=dict(
        input_dims=5, targets_length=8, d_model=24, num_layers=2, num_heads=2, d_kv=12, d_ff=32)),
}
DIFFUSERS = Package("diffusers", "diffusers", RECIPES, needs=("requests",))
# fmt: on
