"""The cases of `fxgrad.zoo.transformers` for images, videos, sound and time series, with or without text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxgrad.zoo._tiny import (
    BART,
    BATCH,
    KV,
    PLACEHOLDER,
    Case,
    case,
    given,
    ids,
    image,
    image_in_text,
    large_image,
    one_of_images,
    ones,
    text,
    text_image,
    tiny,
    to_text,
    typed_text,
    unmasked_text,
    video,
    waveform,
)

# fmt: off
SWIN: dict[str, Any] = dict(
    embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, patch_size=2, image_size=[32, 32])
PYRAMID: dict[str, Any] = dict(
    hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2, 2, 2, 2],
    sr_ratios=[4, 2, 2, 1], patch_sizes=[7, 3, 3, 3], strides=[4, 2, 2, 2], num_encoder_blocks=4,
    decoder_hidden_size=16)
CONV: dict[str, Any] = dict(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, embedding_size=8)
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN_BACKBONE: dict[str, Any] = dict(
    model_type="swin", image_size=64, embed_dim=16, depths=[1] * 4, num_heads=[2] * 4, window_size=4, patch_size=4,
    out_features=STAGES)
DINO_BACKBONE = tiny("dinov2", image_size=64, num_hidden_layers=4, out_features=STAGES, reshape_hidden_states=False)
NECK: dict[str, Any] = dict(neck_hidden_sizes=[8] * 4, fusion_hidden_size=8)
DETR: dict[str, Any] = dict(BART, encoder_layers=1, num_queries=5, backbone_config=dict(
    model_type="resnet", embedding_size=8, hidden_sizes=[16, 32, 48, 64], depths=[1] * 4, layer_type="basic",
    out_features=["stage4"]))
MULTISCALE: dict[str, Any] = dict(
    num_feature_levels=3, backbone_config=DETR["backbone_config"] | dict(out_features=STAGES[1:]))
RT_DETR: dict[str, Any] = dict(
    backbone_config=dict(model_type="rt_detr_resnet", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4,
                         layer_type="basic", out_features=STAGES[1:]),
    encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32], feat_strides=[8, 16, 32], encoder_layers=1,
    encoder_ffn_dim=48, encoder_attention_heads=4, encode_proj_layers=[2], d_model=32, num_queries=5,
    decoder_in_channels=[32, 32, 32], decoder_ffn_dim=48, decoder_layers=2, decoder_attention_heads=4,
    decoder_n_points=2, num_denoising=0, hidden_expansion=0.5, eval_size=None, omit=("num_hidden_layers",))
TWO_TOWERS: dict[str, Any] = dict(text_config=tiny(), vision_config=tiny(), projection_dim=32)
OPT: dict[str, Any] = tiny("opt", ffn_dim=48, word_embed_proj_dim=32)
QUERIES: dict[str, Any] = dict(
    vision_config=tiny(), qformer_config=tiny(encoder_hidden_size=32), text_config=OPT, num_query_tokens=3,
    image_token_index=PLACEHOLDER)
SIGLIP: dict[str, Any] = tiny("siglip_vision_model", projection_dim=32, vision_use_head=False)
WAVE: dict[str, Any] = dict(
    conv_dim=(32, 32), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
SPECTROGRAM: dict[str, Any] = dict(
    spec_size=32, num_mel_bins=16, window_size=4, patch_size=4, patch_stride=[4, 4], patch_embeds_hidden_size=16,
    depths=[1, 1], num_attention_heads=[2, 4], hidden_size=32)

PERCEPTION: Mapping[str, Case] = {
    # Images.
    "vit": case("ViTForImageClassification", image),
    "vit_msn": case("ViTMSNForImageClassification", image),
    "vit_mae": case("ViTMAEForPreTraining", lambda: image() | {"noise": torch.rand(BATCH, 16)}, decoder_hidden_size=32,
                    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=48),
    "ijepa": case("IJepaForImageClassification", image),
    "deit": case("DeiTForImageClassificationWithTeacher", image),
    "beit": case("BeitForImageClassification", image, use_relative_position_bias=True, attn_implementation="eager"),
    "data2vec_vision": case("Data2VecVisionForImageClassification", image, use_relative_position_bias=True,
                            attn_implementation="eager"),
    "aimv2": case("Aimv2VisionModel", image),
    "swin": case("SwinForImageClassification", image, **SWIN),
    "swinv2": case("Swinv2ForImageClassification", image, **SWIN),
    "donut_swin": case("DonutSwinModel", image, **SWIN),
    "swin2sr": case("Swin2SRForImageSuperResolution", image, embed_dim=16, depths=[2], num_heads=[2], window_size=4,
                    upscale=2, patch_size=1),
    "dinov2": case("Dinov2ForImageClassification", image),
    "dinov2_with_registers": case("Dinov2WithRegistersForImageClassification", image, use_swiglu_ffn=True),
    "dinov3_vit": case("DINOv3ViTModel", image),
    "dinov3_convnext": case("DINOv3ConvNextModel", large_image, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4),
    "segformer": case("SegformerForSemanticSegmentation", large_image, **PYRAMID),
    "glpn": case("GLPNForDepthEstimation", large_image, **PYRAMID),
    "pvt": case("PvtForImageClassification", large_image, **PYRAMID | {"patch_sizes": [4, 2, 2, 2], "image_size": 64}),
    "pvt_v2": case("PvtV2ForImageClassification", large_image, **PYRAMID),
    "convnext": case("ConvNextForImageClassification", large_image, **CONV),
    "convnextv2": case("ConvNextV2ForImageClassification", large_image, **CONV),
    "resnet": case("ResNetForImageClassification", large_image, **CONV),
    "regnet": case("RegNetForImageClassification", large_image, omit=("num_hidden_layers",), groups_width=8, **CONV),
    "bit": case("BitForImageClassification", large_image, omit=("num_hidden_layers",), num_groups=1, **CONV),
    "hgnet_v2": case("HGNetV2ForImageClassification", large_image, embedding_size=16, stem_channels=[3, 8, 16],
                     hidden_sizes=[16, 32], depths=[1, 1], stage_in_channels=[16, 16], stage_mid_channels=[8, 8],
                     stage_out_channels=[16, 32], stage_num_blocks=[1, 1], stage_downsample=[False, True],
                     stage_light_block=[False, True], stage_kernel_size=[3, 5], stage_numb_of_layers=[2, 2]),
    "efficientnet": case("EfficientNetForImageClassification", large_image, width_coefficient=0.25,
                         depth_coefficient=0.1, hidden_dim=320),
    "mobilenet_v1": case("MobileNetV1ForImageClassification", large_image, depth_multiplier=0.25, min_depth=4),
    "mobilenet_v2": case("MobileNetV2ForImageClassification", large_image, depth_multiplier=0.25, min_depth=4),
    "mobilevit": case("MobileViTForImageClassification", large_image, hidden_sizes=[16, 24, 32], patch_size=2,
                      neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64]),
    "mobilevitv2": case("MobileViTV2ForImageClassification", large_image, width_multiplier=0.125, patch_size=2,
                        n_attn_blocks=[1, 1, 1]),
    "poolformer": case("PoolFormerForImageClassification", large_image, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4),
    "levit": case("LevitForImageClassificationWithTeacher", large_image, image_size=64, patch_size=16,
                  hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1] * 3, key_dim=[8] * 3,
                  attention_ratio=[2] * 3, mlp_ratio=[2] * 3),
    "swiftformer": case("SwiftFormerForImageClassification", large_image, embed_dims=[8, 16, 16, 32], depths=[1] * 4),
    "focalnet": case("FocalNetForImageClassification", image, embed_dim=16, depths=[1, 1], focal_levels=[2, 2],
                     focal_windows=[3, 3], patch_size=4, use_layerscale=True),
    "hiera": case("HieraForImageClassification", large_image, embed_dim=16, image_size=[64, 64], patch_size=[7, 7],
                  depths=[1, 1], num_heads=[1, 2], query_stride=[2, 2], num_query_pool=1, masked_unit_size=[4, 4]),
    "textnet": case("TextNetForImageClassification", large_image, stem_out_channels=8, hidden_sizes=[8, 8, 16, 16, 16]),
    "mgp_str": case("MgpstrForSceneTextRecognition", given(pixel_values=(3, 32, 128)), image_size=[32, 128],
                    patch_size=4, max_token_length=5, num_character_labels=10, num_bpe_labels=12,
                    num_wordpiece_labels=13),
    "imagegpt": case("ImageGPTForImageClassification", unmasked_text),
    # Dense prediction and detection.
    "dpt": case("DPTForSemanticSegmentation", image, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], **NECK),
    "depth_anything": case("DepthAnythingForDepthEstimation", large_image, backbone_config=DINO_BACKBONE,
                           reassemble_hidden_size=32, head_hidden_size=8, **NECK),
    "zoedepth": case("ZoeDepthForDepthEstimation", large_image, backbone_config=DINO_BACKBONE, bottleneck_features=8,
                     num_relative_features=8, bin_embedding_dim=8, num_patch_transformer_hidden_size=32, **NECK),
    "upernet": case("UperNetForSemanticSegmentation", large_image, backbone_config=SWIN_BACKBONE, hidden_size=16,
                    pool_scales=[1, 2], auxiliary_in_channels=64, auxiliary_channels=16),
    "mask2former": case("Mask2FormerForUniversalSegmentation", large_image, backbone_config=SWIN_BACKBONE,
                        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=48,
                        dim_feedforward=48, encoder_layers=1, decoder_layers=2, num_queries=5),
    "maskformer": case("MaskFormerForInstanceSegmentation", large_image, backbone_config=SWIN_BACKBONE,
                       decoder_config=DETR | {"model_type": "detr"}, fpn_feature_size=32, mask_feature_size=32),
    "vitdet": case("VitDetModel", image, window_size=2, window_block_indices=[0], use_relative_position_embeddings=True,
                   pretrain_image_size=32),
    "vitmatte": case("VitMatteForImageMatting", given(pixel_values=(4, 32, 32)), fusion_hidden_sizes=[16, 8, 8, 8],
                     backbone_config=tiny("vitdet", num_channels=4, out_features=["stage2"], patch_size=16),
                     convstream_hidden_sizes=[8, 8, 8]),
    "vitpose": case("VitPoseForPoseEstimation", image, num_labels=4, backbone_config=tiny(
        "vitpose_backbone", image_size=[32, 32], patch_size=[8, 8], out_features=["stage2"])),
    "seggpt": case("SegGptForImageSegmentation", given(
        pixel_values=(3, 32, 32), prompt_pixel_values=(3, 32, 32), prompt_masks=(3, 32, 32)), image_size=[64, 32],
        num_hidden_layers=4, intermediate_hidden_state_indices=[0, 1, 2, 3], merge_index=0, decoder_hidden_size=8,
        pretrain_image_size=32),
    "sam": case("SamModel", lambda: image() | {"input_points": torch.rand(BATCH, 1, 2, 2) * 32},
                vision_config=tiny(
                    output_channels=16, window_size=2, global_attn_indexes=[1], num_pos_feats=8, mlp_dim=48),
                prompt_encoder_config=dict(hidden_size=16, image_size=32, patch_size=8, mask_input_channels=4),
                mask_decoder_config=dict(hidden_size=16, mlp_dim=24, num_attention_heads=2, iou_head_hidden_dim=16)),
    "yolos": case("YolosForObjectDetection", image, image_size=[32, 32], num_detection_tokens=5),
    "detr": case("DetrForObjectDetection", large_image, **DETR),
    "conditional_detr": case("ConditionalDetrForObjectDetection", large_image, **DETR),
    "table_transformer": case("TableTransformerForObjectDetection", large_image, **DETR),
    "deformable_detr": case("DeformableDetrForObjectDetection", large_image, **DETR | MULTISCALE),
    "dab_detr": case("DabDetrForObjectDetection", large_image, **DETR),
    "rt_detr": case("RTDetrForObjectDetection", large_image, **RT_DETR),
    "rt_detr_v2": case("RTDetrV2ForObjectDetection", large_image, **RT_DETR),
    # Videos.
    "timesformer": case("TimesformerForVideoClassification", video, num_frames=4),
    "videomae": case("VideoMAEForVideoClassification", video, num_frames=4),
    "vivit": case("VivitForVideoClassification", video, num_frames=4, tubelet_size=[2, 8, 8]),
    "vjepa2": case("VJEPA2ForVideoClassification", given(pixel_values_videos=(4, 3, 32, 32)), crop_size=32,
                   frames_per_clip=4, pred_hidden_size=32, pred_num_attention_heads=4, pred_num_hidden_layers=1,
                   num_pooler_layers=1),
    # Images and text.
    "clip": case("CLIPModel", text_image, **TWO_TOWERS),
    "siglip": case("SiglipModel", text_image, **TWO_TOWERS),
    "siglip2": case("Siglip2VisionModel", lambda: given(pixel_values=(16, 192))() | {
        "pixel_attention_mask": ones(16), "spatial_shapes": 4 * ones(2)}, num_patches=16),
    "altclip": case("AltCLIPModel", text_image, **TWO_TOWERS | {"text_config": tiny(project_dim=32)}),
    "chinese_clip": case("ChineseCLIPModel", text_image, **TWO_TOWERS),
    "metaclip_2": case("MetaClip2Model", text_image, **TWO_TOWERS),
    "align": case("AlignModel", text_image, text_config=tiny(), projection_dim=80, vision_config=dict(
        image_size=32, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=80)),
    "groupvit": case("GroupViTModel", text_image, text_config=tiny(), projection_dim=16, vision_config=tiny(
        depths=[1, 1], num_group_tokens=[4, 2], num_output_groups=[4, 2]), projection_intermediate_dim=16),
    "clipseg": case("CLIPSegForImageSegmentation", text_image, extract_layers=[0, 1], reduce_dim=16,
                    through_no_grad=True,  # it freezes its CLIP
                    decoder_num_attention_heads=2, decoder_intermediate_size=24, **TWO_TOWERS),
    "owlvit": case("OwlViTForObjectDetection", text_image, **TWO_TOWERS),
    "owlv2": case("Owlv2ForObjectDetection", text_image, **TWO_TOWERS),
    "x_clip": case("XCLIPModel", lambda: text() | video(), text_config=tiny(), projection_dim=32,
                   prompt_num_attention_heads=4, vision_config=tiny(
                       num_frames=4, mit_hidden_size=32, mit_intermediate_size=48, mit_num_hidden_layers=1,
                       mit_num_attention_heads=4)),
    "flava": case("FlavaModel", text_image, text_config=tiny(), image_config=tiny(), multimodal_config=tiny(),
                  image_codebook_config={}, projection_dim=16),
    "blip": case("BlipForImageTextRetrieval", text_image, image_text_hidden_size=16, **TWO_TOWERS),
    "blip_captions": case("BlipForConditionalGeneration", text_image, **TWO_TOWERS),
    "blip_2": case("Blip2Model", image_in_text(3), **QUERIES),
    "instructblip": case("InstructBlipForConditionalGeneration", image_in_text(3, qformer_input_ids=ids), **QUERIES),
    "git": case("GitForCausalLM", text_image, vision_config=tiny()),
    "pix2struct": case("Pix2StructForConditionalGeneration", to_text(lambda: {"flattened_patches": torch.cat(
        [1 + torch.arange(4.0)[:, None].expand(BATCH, 4, 2), torch.randn(BATCH, 4, 192)], -1)}),
        text_config=tiny(d_kv=8, d_ff=48, num_layers=1, num_heads=4),
        vision_config=tiny(d_kv=8, d_ff=48, patch_embed_hidden_size=192, seq_len=8)),
    "vision_encoder_decoder": case("VisionEncoderDecoderModel", to_text(image), encoder=tiny("vit"),
                                   decoder=tiny("bert", is_decoder=True, add_cross_attention=True)),
    "vision_text_dual_encoder": case("VisionTextDualEncoderModel", text_image, vision_config=tiny("vit"),
                                     text_config=tiny("bert"), projection_dim=16),
    "visual_bert": case("VisualBertForQuestionAnswering", lambda: typed_text() | given(visual_embeds=(4, 16))() | {
        "visual_attention_mask": ones(4), "visual_token_type_ids": ones(4)}, visual_embedding_dim=16),
    "lxmert": case("LxmertModel", lambda: typed_text() | given(visual_feats=(4, 16), visual_pos=(4, 4))(),
                   visual_feat_dim=16, l_layers=1, r_layers=1, x_layers=1),
    "layoutlmv3": case("LayoutLMv3ForSequenceClassification", lambda: text_image() | {"bbox": ones(7, 4)},
                       coordinate_size=4, shape_size=8, input_size=32),
    "llava": case("LlavaForConditionalGeneration", image_in_text(16), vision_config=tiny("clip_vision_model"),
                  text_config=tiny("llama", **KV), image_token_index=PLACEHOLDER, vision_feature_layer=-1),
    "paligemma": case("PaliGemmaForConditionalGeneration", image_in_text(16, token_type_ids=lambda: 0 * ones(21)),
                      vision_config=SIGLIP, text_config=tiny("gemma", **KV), image_token_index=PLACEHOLDER,
                      projection_dim=32),
    "gemma3_images": case("Gemma3ForConditionalGeneration", image_in_text(4, token_type_ids=lambda: 0 * ones(9)),
                          vision_config=SIGLIP, text_config=tiny("gemma3_text", **KV), mm_tokens_per_image=4,
                          image_token_index=PLACEHOLDER),
    "idefics2": case("Idefics2ForConditionalGeneration", one_of_images(4), vision_config=tiny(),
                     text_config=tiny("mistral", **KV), image_token_id=PLACEHOLDER, perceiver_config=dict(
                         resampler_n_latents=4, resampler_depth=1, resampler_n_heads=4, resampler_head_dim=8,
                         num_key_value_heads=2, hidden_size=32)),
    "idefics3": case("Idefics3ForConditionalGeneration", one_of_images(4), vision_config=tiny(), scale_factor=2,
                     text_config=tiny("llama", **KV), image_token_id=PLACEHOLDER),
    "smolvlm": case("SmolVLMForConditionalGeneration", one_of_images(4), vision_config=tiny(), scale_factor=2,
                    text_config=tiny("llama", **KV), image_token_id=PLACEHOLDER),
    "internvl": case("InternVLForConditionalGeneration", image_in_text(4), downsample_ratio=0.5,
                     vision_config=tiny(image_size=[32, 32], patch_size=[8, 8]), text_config=tiny("qwen2", **KV),
                     image_token_id=PLACEHOLDER),
    "mllama": case("MllamaForConditionalGeneration", lambda: text() | given(pixel_values=(1, 2, 3, 32, 32))() | {
        "aspect_ratio_ids": ones(1), "aspect_ratio_mask": ones(1, 2), "cross_attention_mask": ones(7, 1, 2)},
        text_config=tiny(cross_attention_layers=[1], **KV), image_token_index=PLACEHOLDER, vision_config=tiny(
            attention_heads=4, num_global_layers=1, max_num_tiles=2, intermediate_layers_indices=[0],
            vision_output_dim=64, supported_aspect_ratios=[[1, 1], [1, 2]])),
    # Sound.
    "whisper": case("WhisperForConditionalGeneration", to_text(given(input_features=(16, 24))), num_mel_bins=16,
                    max_source_positions=12, max_target_positions=16, **BART),
    "wav2vec2": case("Wav2Vec2ForCTC", waveform, **WAVE),
    "wav2vec2_stable": case("Wav2Vec2ForSequenceClassification", lambda: waveform() | {"attention_mask": ones(800)},
                            do_stable_layer_norm=True, feat_extract_norm="layer", **WAVE),
    "wav2vec2_conformer": case("Wav2Vec2ConformerForCTC", waveform, **WAVE),
    "wav2vec2_bert": case("Wav2Vec2BertForCTC", given(input_features=(12, 16)), feature_projection_input_dim=16),
    "hubert": case("HubertForCTC", waveform, **WAVE),
    "wavlm": case("WavLMForCTC", waveform, **WAVE),
    "unispeech": case("UniSpeechForSequenceClassification", waveform, **WAVE),
    "unispeech_sat": case("UniSpeechSatForSequenceClassification", waveform, **WAVE),
    "sew": case("SEWForCTC", waveform, **WAVE),
    "sew_d": case("SEWDForCTC", waveform, position_buckets=8, **WAVE),
    "data2vec_audio": case("Data2VecAudioForCTC", waveform, **WAVE),
    "speecht5": case("SpeechT5ForSpeechToText", to_text(waveform), **WAVE | BART),
    "speech_to_text": case("Speech2TextForConditionalGeneration", to_text(given(input_features=(24, 16))),
                           input_feat_per_channel=16, conv_channels=16, **BART),
    "moonshine": case("MoonshineForConditionalGeneration", to_text(given(input_values=(2000,))),
                      encoder_num_hidden_layers=1, decoder_num_hidden_layers=1, encoder_num_attention_heads=4,
                      decoder_num_attention_heads=4),
    "qwen2_audio": case("Qwen2AudioEncoder", given(input_features=(16, 24)), num_mel_bins=16, max_source_positions=12,
                        **BART),
    "audio_spectrogram_transformer": case("ASTForAudioClassification", given(input_values=(24, 16)), max_length=24,
                                          num_mel_bins=16, frequency_stride=8, time_stride=8),
    "clap": case("ClapModel", lambda: text() | given(input_features=(1, 32, 16))(), text_config=tiny(),
                 audio_config=tiny(**SPECTROGRAM), projection_dim=16),
    "univnet": case("UnivNetModel", given(input_features=(6, 16), noise_sequence=(6, 8)), model_in_channels=8,
                    model_hidden_channels=8, num_mel_bins=16, resblock_stride_sizes=[2, 2, 2],
                    kernel_predictor_hidden_channels=8),
    # Series.
    "patchtst": case("PatchTSTForPrediction", given(past_values=(16, 3)), num_input_channels=3, context_length=16,
                     patch_length=4, patch_stride=4, d_model=32, ffn_dim=48, prediction_length=4),
    "patchtsmixer": case("PatchTSMixerForPrediction", given(past_values=(16, 3)), num_input_channels=3,
                         context_length=16, patch_length=4, patch_stride=4, d_model=16, num_layers=2,
                         prediction_length=4),
    "timesfm": case("TimesFmModel", lambda: given(past_values=(16,))() | {
        "past_values_padding": torch.zeros(BATCH, 16), "freq": 0 * ones(1)}, patch_length=4, context_length=16,
        horizon_length=4, head_dim=8),
    "decision_transformer": case("DecisionTransformerModel", lambda: given(
        states=(4, 5), actions=(4, 3), rewards=(4, 1), returns_to_go=(4, 1))() | {
        "timesteps": torch.arange(4).repeat(BATCH, 1), "attention_mask": torch.ones(BATCH, 4)}, state_dim=5, act_dim=3,
        max_ep_len=16),
    "time_series_transformer": case("TimeSeriesTransformerModel", lambda: given(
        past_values=(19,), past_time_features=(19, 2), future_values=(4,), future_time_features=(4, 2))() | {
        "past_observed_mask": torch.ones(BATCH, 19)}, prediction_length=4, context_length=12, lags_sequence=[1, 7],
        num_time_features=2, **BART),
}
# fmt: on
