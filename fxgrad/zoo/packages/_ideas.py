"""More small packages of one idea each; see `_layers`."""

from __future__ import annotations

from typing import Any

from fxgrad.zoo.packages._layers import (
    HEADS,
    IDS,
    LENGTH,
    MAP,
    PATCHES,
    PICTURE,
    SEQUENCE,
    SIDE,
    TEXT,
    WIDTH,
    WORDS,
    one,
)
from fxgrad.zoo.packages.recipe import Package, floats, ints, itself, make, ones, recipe

# fmt: off
STEP = ints(below=9)
SCALED: dict[str, Any] = dict(dim=8, dim_mults=(1, 2), channels=3)

IDEAS = (
    Package("tab-transformer-pytorch", "tab_transformer_pytorch", {
        "tab": one("tab_transformer_pytorch:TabTransformer", ints(2, below=4), floats(5), categories=(4, 4),
                   num_continuous=5, dim=16, depth=2, heads=2, dim_head=8, mlp_act=make("torch.nn:ReLU")),
        "ft": one("tab_transformer_pytorch:FTTransformer", ints(2, below=4), floats(5), categories=(4, 4),
                  num_continuous=5, dim=16, depth=2, heads=2, dim_head=8),
    }, needs=("hyper-connections", "x-mlps-pytorch", "discrete-continuous-embed-readout")),
    Package("timesformer-pytorch", "timesformer_pytorch", {
        "video": one("timesformer_pytorch:TimeSformer", floats(4, 3, SIDE, SIDE), num_frames=4, **PATCHES, **HEADS),
        "video_shifted": one("timesformer_pytorch:TimeSformer", floats(4, 3, SIDE, SIDE), num_frames=4,
                             shift_tokens=True, rotary_emb=False, **PATCHES, **HEADS),
    }),
    Package("uformer-pytorch", "uformer_pytorch", {
        "uformer": one("uformer_pytorch:Uformer", PICTURE, dim=8, stages=2, num_blocks=1, window_size=4, dim_head=8,
                       heads=2),
    }),
    Package("uniformer-pytorch", "uniformer_pytorch", {
        "video": one("uniformer_pytorch:Uniformer", floats(3, 4, SIDE, SIDE), num_classes=5, dims=(8, 8, 16, 16),
                     depths=(1, 1, 1, 1), dim_head=8),
    }),
    Package("x-clip", "x_clip", {
        "clip": one("x_clip:CLIP", IDS, PICTURE, dim_text=16, dim_image=16, dim_latent=16, num_text_tokens=WORDS,
                    text_enc_depth=1, text_seq_len=LENGTH, text_heads=2, text_dim_head=8, visual_enc_depth=1,
                    visual_image_size=SIDE, visual_patch_size=8, visual_heads=2, visual_dim_head=8),
    }),
    Package("x-unet", "x_unet", {
        "unet": one("x_unet:XUnet", PICTURE, num_blocks_per_stage=(1, 1), num_self_attn_per_stage=(0, 1),
                    nested_unet_depths=(1, 0), nested_unet_dim=8, attn_heads=2, attn_dim_head=8, **SCALED),
    }),
    Package("denoising-diffusion-pytorch", "denoising_diffusion_pytorch", {
        "unet": one("denoising_diffusion_pytorch:Unet", PICTURE, STEP, attn_dim_head=8, attn_heads=2, **SCALED),
        "unet_1d": one("denoising_diffusion_pytorch:Unet1D", floats(3, 32), STEP, attn_dim_head=8, attn_heads=2,
                       **SCALED),
        "karras": one("denoising_diffusion_pytorch.karras_unet:KarrasUnet", floats(4, SIDE, SIDE), floats(),
                      image_size=SIDE, dim=16, dim_max=16, num_downsamples=1, num_blocks_per_stage=1, attn_res=(16,),
                      attn_dim_head=8),
    }, needs=("ema-pytorch", "pytorch-fid")),
    Package("gateloop-transformer", "gateloop_transformer", {
        "full": one("gateloop_transformer:CausalFullAttention", dim=WIDTH, rotary_emb=True, **HEADS),
        "looped": one("gateloop_transformer:GateLoopedAttention", dim=WIDTH, heads=2),
        "simple": one("gateloop_transformer:SimpleGateLoopLayer", dim=WIDTH),
    }),
    Package("infini-transformer-pytorch", "infini_transformer_pytorch", {
        "transformer": one("infini_transformer_pytorch:InfiniTransformer", IDS, num_tokens=WORDS, dim=WIDTH, depth=2,
                           **HEADS),
    }),
    Package("recurrent-memory-transformer-pytorch", "recurrent_memory_transformer_pytorch", {
        "transformer": one("recurrent_memory_transformer_pytorch:RecurrentMemoryTransformer", IDS, dim=WIDTH,
                           num_tokens=WORDS, depth=1, num_memory_tokens=2, seq_len=LENGTH, **HEADS),
    }),
    Package("feedback-transformer-pytorch", "feedback_transformer_pytorch", {
        "transformer": one("feedback_transformer_pytorch:FeedbackTransformer", ints(6, below=WORDS), num_tokens=WORDS,
                           dim=WIDTH, depth=1, mem_len=4, seq_len=2, **HEADS),
    }),
    Package("fast-transformer-pytorch", "fast_transformer_pytorch", {
        "transformer": recipe(make("fast_transformer_pytorch:FastTransformer", **TEXT), IDS, mask=ones(LENGTH)),
    }),
    Package("memformer", "memformer", {
        "encoder_decoder": one("memformer:Memformer", IDS, IDS, dim=WIDTH, num_memory_slots=4, enc_num_tokens=WORDS,
            enc_depth=1, enc_heads=2, enc_max_seq_len=LENGTH, dec_num_tokens=WORDS, dec_depth=1, dec_heads=2,
            dec_max_seq_len=LENGTH),
    }),
    Package("omninet-pytorch", "omninet_pytorch", {
        "omninet": one("omninet_pytorch:Omninet", dim=WIDTH, depth=2, **HEADS),
        "causal": one("omninet_pytorch:OmninetCausal", dim=WIDTH, depth=2, **HEADS),
    }),
    Package("gated-state-spaces-pytorch", "gated_state_spaces_pytorch", {
        "gss": one("gated_state_spaces_pytorch:GatedStateSpacesLM", IDS, num_tokens=WORDS, dim=16, depth=1,
                   dss_kernel_N=8, dss_kernel_H=8),
        "dsconv": one("gated_state_spaces_pytorch:GatedDsConvLM", IDS, num_tokens=WORDS, dim=16, depth=1, heads=2,
                      dim_dsconv=8),
        "smoothing": one("gated_state_spaces_pytorch:GatedExponentialSmoothingLM", IDS, num_tokens=WORDS, dim=16,
                         depth=1, heads=2, dim_mhesa=8),
    }),
    Package("token-shift-gpt", "token_shift_gpt", {
        "gpt": one("token_shift_gpt:TokenShiftGPT", IDS, num_tokens=WORDS, dim=WIDTH, max_seq_len=LENGTH, depth=2),
    }),
    Package("isab-pytorch", "isab_pytorch", {
        "latents": one("isab_pytorch:ISAB", dim=WIDTH, heads=2, num_latents=4, latent_self_attend=True),
    }),
    Package("gsa-pytorch", "gsa_pytorch", {
        "attention": one("gsa_pytorch:GSA", MAP, dim=WIDTH, dim_out=16, dim_key=8, heads=2, rel_pos_length=8),
    }),
    Package("protein-bert-pytorch", "protein_bert_pytorch", {
        "bert": one("protein_bert_pytorch:ProteinBERT", ints(LENGTH, below=21), floats(7), num_tokens=21,
                    num_annotation=7, dim=16, dim_global=8, depth=1, attn_heads=2, attn_dim_head=8),
    }),
    Package("siren-pytorch", "siren_pytorch", {
        "net": one("siren_pytorch:SirenNet", floats(9, 2), dim_in=2, dim_hidden=16, dim_out=3, num_layers=3),
    }),
    Package("colt5-attention", "colt5_attention", {
        "feed_forward": one("colt5_attention:ConditionalRoutedFeedForward", dim=WIDTH, num_heavy_tokens=4),
        "block": one("colt5_attention:ConditionalRoutedTransformerBlock", dim=WIDTH, num_heavy_attn_tokens_q=4,
                     num_heavy_attn_tokens_kv=4, num_heavy_ff_tokens=4, light_dim_head=8, light_heads=2,
                     light_window_size=4, heavy_dim_head=8, heavy_heads=2),
    }),
    Package("bidirectional-cross-attention", "bidirectional_cross_attention", {
        "transformer": one("bidirectional_cross_attention:BidirectionalCrossAttentionTransformer", SEQUENCE,
                           floats(6, 24), dim=WIDTH, depth=1, context_dim=24, **HEADS),
    }),
    Package("agent-attention-pytorch", "agent_attention_pytorch", {
        "attention": one("agent_attention_pytorch:AgentSelfAttention", dim=WIDTH, num_agent_tokens=4, **HEADS),
        "transformer": one("agent_attention_pytorch:AgentTransformer", dim=WIDTH, num_agent_tokens=4, depth=2, **HEADS),
    }),
    Package("mogrifier", "mogrifier", {
        "mogrifier": one("mogrifier:Mogrifier", SEQUENCE, SEQUENCE, dim=WIDTH, iters=5, factorize_k=8),
    }),
    Package("soft-moe-pytorch", "soft_moe_pytorch", {
        "slots": one("soft_moe_pytorch:SoftMoE", dim=WIDTH, seq_len=LENGTH, num_experts=2, expert_mult=2),
        "dynamic": one("soft_moe_pytorch:DynamicSlotsSoftMoE", dim=WIDTH, num_experts=2, geglu=True, expert_mult=2),
    }),
    Package("st-moe-pytorch", "st_moe_pytorch", {
        "experts": one("st_moe_pytorch:MoE", dim=WIDTH, num_experts=4, expert_hidden_mult=2),
    }),
    Package("stam-pytorch", "stam_pytorch", {
        "video": one("stam_pytorch:STAM", floats(4, 3, SIDE, SIDE), dim=WIDTH, image_size=SIDE, patch_size=8,
                     num_frames=4, num_classes=5, space_depth=1, space_heads=2, space_mlp_dim=32, time_depth=1,
                     time_heads=2, time_mlp_dim=32),
    }),
    Package("segformer-pytorch", "segformer_pytorch", {
        "segformer": one("segformer_pytorch:Segformer", floats(3, 64, 64), dims=(8, 8, 16, 16), heads=(1, 1, 2, 2),
                         num_layers=1, decoder_dim=16),
    }),
    Package("transformer-in-transformer", "transformer_in_transformer", {
        "tnt": one("transformer_in_transformer:TNT", PICTURE, image_size=SIDE, patch_dim=24, pixel_dim=8, patch_size=8,
                   pixel_size=2, depth=2, num_classes=5, **HEADS),
    }),
    Package("taylor-series-linear-attention", "taylor_series_linear_attention", {
        "attention": one("taylor_series_linear_attention:TaylorSeriesLinearAttn", dim=WIDTH, dim_head=8, heads=2),
    }),
    Package("invariant-point-attention", "invariant_point_attention", {
        "block": recipe(make("invariant_point_attention:IPABlock", dim=WIDTH, heads=2, require_pairwise_repr=False),
                        floats(8, WIDTH), rotations=floats(8, 3, 3), translations=floats(8, 3)),
    }),
    Package("efficientnet-pytorch", "efficientnet_pytorch", {
        "b0": recipe(make("efficientnet_pytorch:EfficientNet.from_name", "efficientnet-b0", num_classes=5),
                     floats(3, 64, 64)),
    }),
    Package("facenet-pytorch", "facenet_pytorch", {
        "pnet": recipe(make("facenet_pytorch:PNet", pretrained=False), floats(3, 32, 32)),
        "rnet": recipe(make("facenet_pytorch:RNet", pretrained=False), floats(3, 24, 24)),
        "onet": recipe(make("facenet_pytorch:ONet", pretrained=False), floats(3, 48, 48)),
    }, needs=("requests",)),
    Package("pytorchcv", "pytorchcv", {
        name: recipe(make("pytorchcv.model_provider:get_model", name, pretrained=False), floats(3, 224, 224))
        for name in ("mobilenet_wd4", "shufflenet_g1_wd4", "squeezenet_v1_0", "shufflenetv2_wd2")
    }),
    Package("pytorch-tcn", "pytorch_tcn", {
        "tcn": recipe(make("pytorch_tcn:TCN", num_inputs=4, num_channels=[8, 8], kernel_size=3), floats(4, 20)),
        "tcn_gated": recipe(make("pytorch_tcn:TCN", num_inputs=4, num_channels=[8, 8], kernel_size=3, causal=False,
                                 use_gate=True, use_skip_connections=True, use_norm="layer_norm"), floats(4, 20)),
    }),
    Package("pykan", "kan", {
        "kan": recipe(make("kan.MultKAN:MultKAN", width=[3, 4, 2], grid=3, k=3, auto_save=False, save_act=False,
                           symbolic_enabled=False), floats(3)),
    }),
    Package("ncps", "ncps", {
        "ltc": recipe(make("ncps.torch:LTC", 4, make("ncps.wirings:AutoNCP", 12, 3)), floats(5, 4)),
        "cfc": recipe(make("ncps.torch:CfC", 4, 8), floats(5, 4)),
    }),
    Package("openunmix", "openunmix", {
        "unmix": recipe(make("openunmix.model:OpenUnmix", nb_bins=17, nb_channels=2, hidden_size=8, nb_layers=1),
                        floats(2, 17, 6)),
    }),
    Package("dynamic-network-architectures", "dynamic_network_architectures", {
        "plain_unet": recipe(make("dynamic_network_architectures.architectures.unet:PlainConvUNet",
            input_channels=1, n_stages=3, features_per_stage=[4, 8, 8],
            conv_op=itself("torch.nn:Conv2d"), kernel_sizes=3, strides=[1, 2, 2],
            n_conv_per_stage=1, num_classes=2, n_conv_per_stage_decoder=1, conv_bias=True), floats(1, 16, 16)),
    }),
    Package("loralib", "loralib", {
        "linear": recipe(make("torch.nn:Sequential", make("loralib:Linear", 8, 8, r=2), make("torch.nn:GELU"),
                              make("loralib:MergedLinear", 8, 6, r=2, enable_lora=[True, False])), floats(8)),
    }),
    Package("yet-another-retnet", "yet_another_retnet", {
        "retnet": recipe(make("yet_another_retnet.retnet:RetNet", num_tokens=WORDS, d_model=16, nhead=2, num_layers=2,
                              dim_feedforward=24), IDS).calling("forward_parallel"),
    }),
    Package("nnaudio", "nnAudio", {
        "stft": recipe(make("nnAudio.features:STFT", n_fft=64, verbose=False), floats(800)),
        "mel": recipe(make("nnAudio.features:MelSpectrogram", sr=800, n_fft=64, n_mels=8, verbose=False), floats(800)),
    }),
    Package("rotary-embedding-torch", "rotary_embedding_torch", {
        "queries": recipe(make("rotary_embedding_torch:RotaryEmbedding", dim=8), floats(2, LENGTH, 16)).calling(
            "rotate_queries_or_keys"),
    }),
)
# fmt: on
