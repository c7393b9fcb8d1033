"""Packages for pictures: segmentation, medical volumes, keypoints, and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxgrad.zoo.packages.recipe import Draw, Package, Recipe, floats, ints, make, recipe

# fmt: off
PICTURE = floats(3, 64, 64)
ENCODERS = ("efficientnet-b0", "mobilenet_v2", "mit_b0", "densenet121", "timm-regnetx_002", "timm-resnest14d",
            "timm-skresnet18", "mobileone_s0", "tu-convnext_atto")
DECODERS = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet",
            "Segformer")


def segmentation(decoder: str, encoder: str = "resnet18", **options: Any) -> Recipe:
    return recipe(make(f"segmentation_models_pytorch:{decoder}", encoder_name=encoder, encoder_weights=None, classes=3,
                       **options), floats(3, 128, 128) if decoder == "PAN" else PICTURE)


SEGMENTATION: Mapping[str, Recipe] = {
    **{f"{name}/resnet18": segmentation(name) for name in DECODERS},
    **{f"Unet/{encoder}": segmentation("Unet", encoder) for encoder in ENCODERS},
    "Unet/attention": segmentation("Unet", decoder_attention_type="scse"),
    "Unet/classified": segmentation("Unet", aux_params=dict(classes=4, dropout=0.1)),
    "Unet/sigmoid": segmentation("Unet", activation="sigmoid"),
    "Unet/softmax": segmentation("Unet", activation="softmax2d"),
    "Unet/no_norm": segmentation("Unet", decoder_use_norm=False),
    "FPN/cat": segmentation("FPN", decoder_merge_policy="cat"),
    "Segformer/mit_b0": segmentation("Segformer", "mit_b0"),
}
SMP = Package("segmentation-models-pytorch", "segmentation_models_pytorch", SEGMENTATION)

FLAT, VOLUME = floats(1, 32, 32), floats(1, 32, 32, 32)
PLANE: dict[str, Any] = dict(spatial_dims=2, in_channels=1, out_channels=2)
NETS = "monai.networks.nets"
UNET: dict[str, Any] = PLANE | dict(channels=(4, 8, 16), strides=(2, 2))
DYNAMIC: dict[str, Any] = PLANE | dict(
    kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[4, 8, 16])
TOKENS: dict[str, Any] = dict(in_channels=1, img_size=32, hidden_size=24, mlp_dim=32, num_heads=2)
DIFFUSION: dict[str, Any] = PLANE | dict(
    num_res_blocks=1, channels=(8, 8, 16), attention_levels=(False, True, True), norm_num_groups=4, num_head_channels=4)


def monai(path: str, /, *inputs: Draw, **options: Any) -> Recipe:
    module = NETS if ":" not in path else f"{NETS}."
    return recipe(make(f"{module}{'' if ':' in path else ':'}{path}", **options), *inputs or (FLAT,))


MONAI = Package("monai", "monai", {
    "ahnet": monai("AHNet", floats(1, 64, 64), layers=(1, 1, 1, 1), spatial_dims=2, psp_block_num=1),
    "attention_unet": monai("AttentionUnet", **UNET),
    "autoencoder": monai("AutoEncoder", **PLANE, channels=(4, 8), strides=(2, 2)),
    "autoencoder_kl": monai("AutoencoderKL", spatial_dims=2, in_channels=1, out_channels=1, num_res_blocks=(1, 1),
                            channels=(8, 8), attention_levels=(False, True), latent_channels=2, norm_num_groups=4),
    "basic_unet": monai("BasicUNet", **PLANE, features=(4, 4, 8, 8, 16, 4)),
    "basic_unet_3d": monai("BasicUNet", VOLUME, spatial_dims=3, features=(4, 4, 8, 8, 16, 4)),
    "basic_unet_plus_plus": monai("BasicUNetPlusPlus", **PLANE, features=(4, 4, 8, 8, 16, 4)),
    "classifier": monai("Classifier", in_shape=(1, 32, 32), classes=3, channels=(4, 8), strides=(2, 2)),
    "discriminator": monai("Discriminator", in_shape=(1, 32, 32), channels=(4, 8), strides=(2, 2)),
    "critic": monai("Critic", in_shape=(1, 32, 32), channels=(4, 8), strides=(2, 2)),
    "controlnet": monai("ControlNet", FLAT, ints(below=9), floats(1, 64, 64), spatial_dims=2, in_channels=1,
                        num_res_blocks=(1, 1), channels=(8, 8), attention_levels=(False, True), norm_num_groups=4,
                        num_head_channels=4, conditioning_embedding_in_channels=1,
                        conditioning_embedding_num_channels=(4, 4)),
    "densenet": monai("DenseNet", **PLANE, init_features=8, growth_rate=4, block_config=(2, 2)),
    "densenet_3d": monai("DenseNet", VOLUME, spatial_dims=3, in_channels=1, out_channels=2, init_features=8,
                         growth_rate=4, block_config=(2, 2)),
    "diffusion_unet": monai("DiffusionModelUNet", FLAT, ints(below=9), **DIFFUSION),
    "dints": recipe(make(f"{NETS}:DiNTS", make(f"{NETS}:TopologyInstance", spatial_dims=2, num_blocks=2, num_depths=2,
        use_downsample=True), spatial_dims=2, in_channels=1, num_classes=2), floats(1, 64, 64)),
    "dyn_unet": monai("DynUNet", **DYNAMIC),
    "dyn_unet_residual": monai("DynUNet", **DYNAMIC, res_block=True, deep_supervision=True, deep_supr_num=1),
    "efficientnet": monai("EfficientNetBN", floats(1, 64, 64), model_name="efficientnet-b0", pretrained=False,
                          spatial_dims=2, in_channels=1, num_classes=3),
    "flexible_unet": monai("FlexibleUNet", floats(1, 64, 64), in_channels=1, out_channels=2, backbone="resnet18",
                           decoder_channels=(32, 16, 8, 8, 8), spatial_dims=2),
    "full_connected": monai("FullyConnectedNet", floats(6), in_channels=6, out_channels=3, hidden_channels=(8, 8)),
    "variational_full_connected": monai("VarFullyConnectedNet", floats(6), in_channels=6, out_channels=6, latent_size=3,
                                        encode_channels=(8,), decode_channels=(8,)),
    "generator": monai("Generator", floats(6), latent_shape=(6,), start_shape=(4, 4, 4), channels=(8, 4, 1),
                       strides=(2, 2, 1)),
    "highresnet": monai("HighResNet", **PLANE, layer_params=(
        dict(name="conv_0", n_features=4, kernel_size=3), dict(name="res_1", n_features=4, kernels=(3, 3),
        repeat=2), dict(name="conv_1", n_features=8, kernel_size=1), dict(name="conv_2", kernel_size=1))),
    "mednext": monai("MedNeXt", **PLANE, init_filters=4, encoder_expansion_ratio=2,
                     decoder_expansion_ratio=2, bottleneck_expansion_ratio=2, blocks_down=(1, 1), blocks_bottleneck=1,
                     blocks_up=(1, 1)),
    "milmodel": monai("MILModel", floats(3, 3, 64, 64), num_classes=2, mil_mode="att_trans", backbone="resnet18",
                      pretrained=False),
    "milmodel_mean": monai("MILModel", floats(3, 3, 64, 64), num_classes=2, mil_mode="mean", pretrained=False,
                           backbone="resnet18"),
    "patchgan": monai("PatchDiscriminator", spatial_dims=2, channels=4, in_channels=1, num_layers_d=2),
    "multi_scale_patchgan": monai("MultiScalePatchDiscriminator", floats(1, 64, 64), num_d=2, num_layers_d=2,
                                  spatial_dims=2, channels=4, in_channels=1, minimum_size_im=64),
    "quicknat": monai("Quicknat", num_classes=3, num_channels=1, num_filters=8),
    "regressor": monai("Regressor", in_shape=(1, 32, 32), out_shape=(2,), channels=(4, 8), strides=(2, 2)),
    "regunet": monai("RegUNet", spatial_dims=2, in_channels=1, num_channel_initial=4, depth=2, out_channels=2),
    "globalnet": monai("GlobalNet", image_size=(32, 32), spatial_dims=2, in_channels=1, num_channel_initial=4, depth=2),
    "localnet": monai("LocalNet", spatial_dims=2, in_channels=1, num_channel_initial=4, out_channels=2,
                      extract_levels=(0, 1)),
    "resnet": monai("ResNet", spatial_dims=2, block="basic", layers=(1, 1, 1, 1), block_inplanes=(4, 8, 8, 16),
                    n_input_channels=1, num_classes=3),
    "resnet_3d": monai("ResNet", VOLUME, spatial_dims=3, block="bottleneck", layers=(1, 1, 1, 1),
                       block_inplanes=(4, 8, 8, 16), n_input_channels=1, num_classes=3),
    "segresnet": monai("SegResNet", **PLANE, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
    "segresnet_vae": monai("SegResNetVAE", input_image_size=(32, 32), vae_estimate_std=False, spatial_dims=2,
                           init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)),
    "segresnet_ds": monai("SegResNetDS", **PLANE, init_filters=8, blocks_down=(1, 1)),
    "senet": monai("SENet", spatial_dims=2, in_channels=1, block="se_resnet_bottleneck", layers=(1, 1, 1, 1), groups=1,
                   reduction=4, inplanes=16, num_classes=3, downsample_kernel_size=1, input_3x3=False),
    "spade_autoencoder": monai("SPADEAutoencoderKL", FLAT, floats(2, 32, 32), spatial_dims=2, label_nc=2,
                               num_res_blocks=(1, 1), channels=(8, 8), attention_levels=(False, False),
                               latent_channels=2, norm_num_groups=4, spade_intermediate_channels=4),
    "spade_diffusion_unet": monai("SPADEDiffusionModelUNet", FLAT, ints(below=9), floats(2, 32, 32), label_nc=2,
                                  spade_intermediate_channels=4, **DIFFUSION),
    "swin_unetr": monai("SwinUNETR", floats(1, 64, 64), in_channels=1, out_channels=2, depths=(1, 1, 1, 1),
                        num_heads=(1, 2, 2, 2), window_size=4, feature_size=12, spatial_dims=2),
    "swin_unetr_v2": monai("SwinUNETR", floats(1, 64, 64), in_channels=1, out_channels=2, depths=(1, 1, 1, 1),
                           num_heads=(1, 2, 2, 2), window_size=4, feature_size=12, spatial_dims=2, use_v2=True),
    "decoder_only": monai("DecoderOnlyTransformer", ints(8, below=20), num_tokens=20, max_seq_len=16,
                          attn_layers_dim=24, attn_layers_depth=2, attn_layers_heads=2),
    "unet": monai("UNet", **UNET, num_res_units=2),
    "unet_3d": monai("UNet", VOLUME, **UNET | dict(spatial_dims=3)),
    "unetr": monai("UNETR", **TOKENS, out_channels=2, feature_size=8, spatial_dims=2),
    "variational_autoencoder": monai("VarAutoEncoder", spatial_dims=2, in_shape=(1, 32, 32), out_channels=1,
                                     latent_size=3, channels=(4, 8), strides=(2, 2)),
    "vit": monai("ViT", **TOKENS, patch_size=8, num_layers=2, spatial_dims=2, classification=True, num_classes=3),
    "vit_sincos": monai("ViT", **TOKENS, patch_size=8, num_layers=2, spatial_dims=2, pos_embed_type="sincos"),
    "vit_autoencoder": monai("ViTAutoEnc", **TOKENS, patch_size=16, num_layers=2, spatial_dims=2),
    "vnet": monai("VNet", floats(1, 32, 32), spatial_dims=2, in_channels=1, out_channels=2),
    "voxelmorph_unet": monai("VoxelMorphUNet", floats(2, 32, 32), spatial_dims=2, in_channels=2, unet_out_channels=4,
                             channels=(4, 4, 8, 8, 4, 4), final_conv_channels=(4,)),
    "voxelmorph": monai("VoxelMorph", FLAT, FLAT, spatial_dims=2, integration_steps=3),
    "vqvae": monai("VQVAE", spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 8), num_res_layers=1,
                   num_res_channels=(4, 8), num_embeddings=8, embedding_dim=4,
                   downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
                   upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0))),
    "torchvision_fc": monai("TorchVisionFCModel", floats(3, 224, 224), model_name="resnet18", num_classes=2),
})

PATCH, GRAY = floats(1, 32, 32), floats(1, 48, 48)


def kornia(path: str, /, *inputs: Draw, **options: Any) -> Recipe:
    return recipe(make(f"kornia.{path}", **options), *inputs or (PATCH,))


VIT: dict[str, Any] = dict(image_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
KORNIA = Package("kornia", "kornia", {
    "hardnet": kornia("feature:HardNet", pretrained=False),
    "hardnet8": kornia("feature:HardNet8", pretrained=False),
    "hynet": kornia("feature:HyNet", pretrained=False),
    "tfeat": kornia("feature:TFeat", pretrained=False),
    "sosnet": kornia("feature:SOSNet", pretrained=False),
    "sift": kornia("feature:SIFTDescriptor", patch_size=32),
    "mkd": kornia("feature:MKDDescriptor", patch_size=32, kernel_type="concat", whitening=None),
    "orinet": kornia("feature:OriNet", pretrained=False),
    "affnet": kornia("feature:LAFAffNetShapeEstimator", floats(3, 2, 3), PATCH, pretrained=False),
    "harris": kornia("feature:CornerHarris", GRAY, k=0.04),
    "gftt": kornia("feature:CornerGFTT", GRAY),
    "hessian": kornia("feature:BlobHessian", GRAY),
    "dog": kornia("feature:BlobDoGSingle", GRAY),
    "key_net": kornia("feature:KeyNet", GRAY, pretrained=False),
    "dedode_descriptor": kornia("feature.dedode.dedode_models:get_descriptor", floats(3, 64, 64), kind="B"),
    "disk_unet": kornia("feature.disk._unets.unet:Unet", floats(3, 32, 32), in_features=3, up=[8, 8], down=[4, 8, 8]),
    "defmo": kornia("feature:DeFMO", floats(6, 64, 64), pretrained=False),
    "loftr_backbone": recipe(make("kornia.feature.loftr.backbone:ResNetFPN_8_2", dict(
        initial_dim=8, block_dims=[8, 12, 16])), floats(1, 64, 64)),
    "vit": kornia("models.vit:VisionTransformer", floats(3, 32, 32), **VIT),
    "tiny_vit": kornia("models.tiny_vit:TinyViT", floats(3, 64, 64), img_size=64, num_classes=3,
                       embed_dims=[8, 16, 16, 24], depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2],
                       window_sizes=[4, 4, 4, 2]),
    "efficient_vit": kornia("models.efficient_vit.backbone:efficientvit_backbone_b0", floats(3, 64, 64)),
    "gaussian_blur": recipe(make("kornia.filters:GaussianBlur2d", (3, 3), (1.0, 1.0)), floats(3, 16, 16)),
    "sobel": kornia("filters:Sobel", floats(3, 16, 16)),
    "laplacian": recipe(make("kornia.filters:Laplacian", 3), floats(3, 16, 16)),
    "median_blur": recipe(make("kornia.filters:MedianBlur", (3, 3)), floats(3, 16, 16)),
    "canny": kornia("filters:Canny", floats(3, 16, 16)),
    "rgb_to_lab": kornia("color:RgbToLab", floats(3, 8, 8)),
    "rgb_to_hsv": kornia("color:RgbToHsv", floats(3, 8, 8)),
    "rgb_to_yuv": kornia("color:RgbToYuv", floats(3, 8, 8)),
    "color_jitter_brightness": recipe(make("kornia.enhance:AdjustBrightness", 0.3), floats(3, 8, 8)),
    "spatial_softmax": kornia("geometry:SpatialSoftArgmax2d", floats(3, 8, 8)),
    "conv_soft_argmax": recipe(make("kornia.geometry:ConvSoftArgmax2d", (3, 3), (1, 1), (1, 1)), floats(1, 8, 8)),
    "pyramid": kornia("geometry.transform:PyrDown", floats(3, 16, 16)),
    "normalize": recipe(make("kornia.enhance:Normalize", 0.5, 0.25), floats(3, 8, 8)),
    "scale_pyramid": kornia("geometry:ScalePyramid", GRAY),
})

SAM_SIZE = 64
SAM_IMAGE = make("segment_anything.modeling:ImageEncoderViT", img_size=SAM_SIZE, patch_size=16, embed_dim=24, depth=2,
                 num_heads=2, out_chans=16, use_rel_pos=True, window_size=2, global_attn_indexes=(1,))
SAM_DECODER = make("segment_anything.modeling:MaskDecoder", num_multimask_outputs=3, transformer_dim=16,
                   transformer=make("segment_anything.modeling:TwoWayTransformer", depth=2, embedding_dim=16,
                                    mlp_dim=24, num_heads=2))
SEGMENT_ANYTHING = Package("segment-anything", "segment_anything", {
    "image_encoder": recipe(SAM_IMAGE, floats(3, SAM_SIZE, SAM_SIZE)),
    "mask_decoder": recipe(SAM_DECODER, image_embeddings=floats(1, 16, 4, 4).whole(), multimask_output=True,
                           image_pe=floats(1, 16, 4, 4).whole(), sparse_prompt_embeddings=floats(2, 16),
                           dense_prompt_embeddings=floats(16, 4, 4)),
    "two_way_transformer": recipe(make("segment_anything.modeling:TwoWayTransformer", depth=2, embedding_dim=16,
                                       mlp_dim=24, num_heads=2), floats(16, 4, 4), floats(16, 4, 4), floats(3, 16)),
})

CLIP: dict[str, Any] = dict(
    embed_dim=16, vision_cfg=dict(image_size=32, layers=2, width=32, head_width=16, patch_size=8),
    text_cfg=dict(context_length=8, vocab_size=50, width=32, heads=2, layers=2))
WORDS = ints(8, below=49)


def clip(kind: str = "CLIP", vision: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None,
         **options: Any) -> Recipe:
    sizes: dict[str, Any] = CLIP | dict(vision_cfg=CLIP["vision_cfg"] | dict(vision or {}),
                                        text_cfg=CLIP["text_cfg"] | dict(text or {}))
    return recipe(make(f"open_clip.model:{kind}", **sizes | options), floats(3, 32, 32), WORDS)


OPEN_CLIP = Package("open-clip-torch", "open_clip", {
    "vit": clip(),
    "vit_quick_gelu": clip(quick_gelu=True),
    "vit_average": clip(vision=dict(pool_type="avg", final_ln_after_pool=True)),
    "vit_attention_pool": clip(vision=dict(attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=4)),
    "vit_layer_scale": clip(vision=dict(ls_init_value=0.1)),
    "vit_sincos": clip(vision=dict(pos_embed_type="sin_cos_2d")),
    "resnet": recipe(make("open_clip.model:CLIP", embed_dim=16, vision_cfg=dict(
        image_size=64, layers=(1, 1, 1, 1), width=8, head_width=16, patch_size=None), text_cfg=CLIP["text_cfg"]),
        floats(3, 64, 64), WORDS),
    "custom_text": clip("CustomTextCLIP"),
    "custom_text_pooled": clip("CustomTextCLIP", text=dict(embed_cls=True, no_causal_mask=True, pool_type="last")),
    "siglip": clip("CustomTextCLIP", init_logit_bias=-10.0, text=dict(no_causal_mask=True, pool_type="last")),
    "timm_tower": clip("CustomTextCLIP", vision=dict(timm_model_name="test_vit", timm_pool="avg", timm_proj="linear",
                                                     image_size=32)),
    "image": recipe(make("open_clip.model:CLIP", **CLIP), floats(3, 32, 32)).calling("encode_image"),
})
# fmt: on
