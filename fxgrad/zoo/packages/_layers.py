"""Small packages of one idea each: other attentions, mixers, memories, recurrences, quantisers, implicit functions."""

from __future__ import annotations

from typing import Any

from fxgrad.zoo.packages.recipe import Draw, Package, Recipe, flags, floats, ints, make, recipe

# fmt: off
WIDTH, LENGTH, WORDS, SIDE = 32, 16, 50, 32
SEQUENCE, IDS = floats(LENGTH, WIDTH), ints(LENGTH, below=WORDS)
PICTURE, MAP, VIDEO = floats(3, SIDE, SIDE), floats(WIDTH, 8, 8), floats(4, 3, SIDE, SIDE)
HEADS: dict[str, Any] = dict(heads=2, dim_head=16)
TEXT: dict[str, Any] = dict(num_tokens=WORDS, dim=WIDTH, depth=2, max_seq_len=LENGTH, **HEADS)
PATCHES: dict[str, Any] = dict(image_size=SIDE, patch_size=8, dim=WIDTH, depth=2, num_classes=5)


def one(path: str, /, *inputs: Draw, **options: Any) -> Recipe:
    return recipe(make(path, **options), *inputs or (SEQUENCE,))


LAYERS = (
    Package("aft-pytorch", "aft_pytorch", {
        "full": one("aft_pytorch:AFTFull", max_seqlen=LENGTH, dim=WIDTH, hidden_dim=16),
        "simple": one("aft_pytorch:AFTSimple", max_seqlen=LENGTH, dim=WIDTH, hidden_dim=16),
        "local": one("aft_pytorch:AFTLocal", max_seqlen=LENGTH, dim=WIDTH, hidden_dim=16, s=4),
    }),
    Package("axial-attention", "axial_attention", {
        "attention": one("axial_attention:AxialAttention", MAP, dim=WIDTH, dim_index=1, heads=2),
        "image_transformer": one("axial_attention:AxialImageTransformer", MAP, dim=WIDTH, depth=2, heads=2,
                                 reversible=False),
        "image_transformer_reversible": one("axial_attention:AxialImageTransformer", MAP, dim=WIDTH, depth=2, heads=2,
                                            axial_pos_emb_shape=(8, 8)),
    }),
    Package("block-recurrent-transformer-pytorch", "block_recurrent_transformer_pytorch", {
        "transformer": one("block_recurrent_transformer_pytorch:BlockRecurrentTransformer", IDS, **TEXT | dict(
            block_width=8, num_state_vectors=4, recurrent_layers=(2,))),
    }),
    Package("bottleneck-transformer-pytorch", "bottleneck_transformer_pytorch", {
        "stack": one("bottleneck_transformer_pytorch:BottleStack", MAP, dim=WIDTH, fmap_size=8, dim_out=32,
                     num_layers=2, **HEADS),
        "stack_relative": one("bottleneck_transformer_pytorch:BottleStack", MAP, dim=WIDTH, fmap_size=8, dim_out=32,
                              num_layers=1, rel_pos_emb=True, **HEADS),
    }),
    Package("charformer-pytorch", "charformer_pytorch", {
        "gbst": one("charformer_pytorch:GBST", IDS, num_tokens=WORDS, dim=WIDTH, max_block_size=4, downsample_factor=4),
        "gbst_blocks": one("charformer_pytorch:GBST", IDS, num_tokens=WORDS, dim=WIDTH, downsample_factor=2,
                           blocks=((4, 0), (4, 2), (2, 1)), score_consensus_attn=False),
    }),
    Package("coca-pytorch", "coca_pytorch", {
        "coca": recipe(make("coca_pytorch:CoCa", dim=WIDTH, num_tokens=WORDS, unimodal_depth=1, multimodal_depth=1,
                            image_dim=16, num_img_queries=4, **HEADS), IDS, image_tokens=floats(9, 16)),
    }),
    Package("compositional-attention-pytorch", "compositional_attention_pytorch", {
        "attention": one("compositional_attention_pytorch:CompositionalAttention", dim=WIDTH, dim_head=16,
                         num_searches=2),
    }),
    Package("compressive-transformer-pytorch", "compressive_transformer_pytorch", {
        "transformer": one("compressive_transformer_pytorch:CompressiveTransformer", IDS, num_tokens=WORDS, dim=WIDTH,
                           seq_len=LENGTH, depth=2, heads=2, memory_layers=[1]),
    }),
    Package("conformer", "conformer", {
        "conformer": one("conformer:Conformer", dim=WIDTH, depth=2, conv_kernel_size=5, **HEADS),
        "causal": one("conformer:Conformer", dim=WIDTH, depth=1, conv_kernel_size=5, conv_causal=True, **HEADS),
    }),
    Package("egnn-pytorch", "egnn_pytorch", {
        "egnn": one("egnn_pytorch:EGNN", floats(6, 12), floats(6, 3), dim=12),
        "egnn_neighbours": one("egnn_pytorch:EGNN", floats(6, 12), floats(6, 3), dim=12, num_nearest_neighbors=3,
                               norm_coors=True, soft_edges=True, m_pool_method="mean"),
        "network": one("egnn_pytorch:EGNN_Network", ints(6, below=9), floats(6, 3), depth=2, dim=12, num_tokens=9,
                       num_positions=6),
        "network_masked": recipe(make("egnn_pytorch:EGNN_Network", depth=2, dim=12, num_tokens=9, norm_coors=True),
                                 ints(6, below=9), floats(6, 3), mask=flags(6)),
    }),
    Package("enformer-pytorch", "enformer_pytorch", {
        "enformer": recipe(make("enformer_pytorch:Enformer", make("enformer_pytorch:EnformerConfig", dim=96, depth=1,
            heads=2, output_heads=dict(human=5), target_length=8, num_downsamples=3, dim_divisible_by=4,
            attn_dim_key=8)), floats(64, 4)),
    }),
    Package("etsformer-pytorch", "etsformer_pytorch", {
        "forecast": recipe(make("etsformer_pytorch:ETSFormer", time_features=4, model_dim=24, layers=2, heads=2, K=2),
                           floats(16, 4), num_steps_forecast=4),
        "classify": recipe(make("etsformer_pytorch:ClassificationWrapper", num_classes=5, heads=2, dim_head=8,
            etsformer=make("etsformer_pytorch:ETSFormer", time_features=1, model_dim=24, layers=2, heads=2, K=2)),
                           floats(16)),
    }),
    Package("flash-pytorch", "flash_pytorch", {
        "gau": one("flash_pytorch:GAU", dim=WIDTH, query_key_dim=16),
        "gau_laplace": one("flash_pytorch:GAU", dim=WIDTH, query_key_dim=16, causal=True, laplace_attn_fn=True,
                           rel_pos_bias=True),
        "flash": one("flash_pytorch:FLASH", dim=WIDTH, group_size=8, query_key_dim=16, causal=True),
        "transformer": one("flash_pytorch:FLASHTransformer", IDS, num_tokens=WORDS, dim=WIDTH, depth=2, group_size=8,
                           query_key_dim=16),
    }),
    Package("g-mlp-pytorch", "g_mlp_pytorch", {
        "text": one("g_mlp_pytorch:gMLP", IDS, num_tokens=WORDS, dim=WIDTH, depth=2, seq_len=LENGTH),
        "text_causal": one("g_mlp_pytorch:gMLP", IDS, num_tokens=WORDS, dim=WIDTH, depth=2, seq_len=LENGTH, causal=True,
                           attn_dim=8, heads=2, circulant_matrix=True, act=make("torch.nn:Tanh")),
        "vision": one("g_mlp_pytorch:gMLPVision", PICTURE, **PATCHES),
    }),
    Package("glom-pytorch", "glom_pytorch", {
        "glom": recipe(make("glom_pytorch:Glom", dim=WIDTH, levels=3, image_size=SIDE, patch_size=8), PICTURE, iters=2),
    }),
    Package("halonet-pytorch", "halonet_pytorch", {
        "attention": one("halonet_pytorch:HaloAttention", MAP, dim=WIDTH, block_size=4, halo_size=2, **HEADS),
    }),
    Package("h-transformer-1d", "h_transformer_1d", {
        "transformer": one("h_transformer_1d:HTransformer1D", IDS, **TEXT, block_size=4, causal=False),
        "transformer_causal": one("h_transformer_1d:HTransformer1D", IDS, **TEXT, block_size=4, causal=True,
                                  shift_tokens=True),
    }),
    Package("hourglass-transformer-pytorch", "hourglass_transformer_pytorch", {
        "language": one("hourglass_transformer_pytorch:HourglassTransformerLM", IDS, **TEXT | dict(
            depth=(1, 1, 1), shorten_factor=2)),
        "language_linear": one("hourglass_transformer_pytorch:HourglassTransformerLM", IDS, **TEXT | dict(
            depth=(1, 1, 1), shorten_factor=2, updown_sample_type="linear", attn_resampling=False)),
    }),
    Package("itransformer", "iTransformer", {
        "inverted": one("iTransformer:iTransformer", floats(12, 5), num_variates=5, lookback_len=12, depth=2, dim=24,
                        pred_length=(3, 6), heads=2, dim_head=8),
        "inverted_normalised": one("iTransformer:iTransformer", floats(12, 5), num_variates=5, lookback_len=12, depth=1,
                                   dim=24, pred_length=3, heads=2, dim_head=8, use_reversible_instance_norm=True,
                                   num_tokens_per_variate=2),
        "two_axes": one("iTransformer:iTransformer2D", floats(12, 5), num_variates=5, lookback_len=12, depth=2, dim=24,
                        num_time_tokens=4, pred_length=3, heads=2, dim_head=8),
        "fourier": one("iTransformer:iTransformerFFT", floats(12, 5), num_variates=5, lookback_len=12, depth=2, dim=24,
                       pred_length=3, heads=2, dim_head=8),
    }),
    Package("lambda-networks", "lambda_networks", {
        "global": one("lambda_networks:LambdaLayer", MAP, dim=WIDTH, dim_out=32, n=8, dim_k=8, heads=2, dim_u=1),
        "local": one("lambda_networks:LambdaLayer", MAP, dim=WIDTH, dim_out=32, r=3, dim_k=8, heads=2, dim_u=2),
    }),
    Package("linformer", "linformer", {
        "transformer": one("linformer:Linformer", dim=WIDTH, seq_len=LENGTH, depth=2, k=4, heads=2, one_kv_head=True,
                           share_kv=True),
        "reversible": one("linformer:Linformer", dim=WIDTH, seq_len=LENGTH, depth=2, k=4, heads=2, reversible=True),
        "language": one("linformer:LinformerLM", IDS, num_tokens=WORDS, dim=WIDTH, seq_len=LENGTH, depth=2, k=4,
                        heads=2),
    }),
    Package("linear-attention-transformer", "linear_attention_transformer", {
        "language": one("linear_attention_transformer:LinearAttentionTransformerLM", IDS, **TEXT),
        "language_causal": one("linear_attention_transformer:LinearAttentionTransformerLM", IDS, **TEXT, causal=True,
                               n_local_attn_heads=1, local_attn_window_size=4),
        "reversible": one("linear_attention_transformer:LinearAttentionTransformer", dim=WIDTH, depth=2, heads=2,
                          max_seq_len=LENGTH, reversible=True, ff_glu=True),
        "memory": one("linear_attention_transformer:LinearAttentionTransformerLM", IDS, **TEXT, pkm_layers=(2,),
                      pkm_num_keys=8),
    }, needs=("local-attention", "product-key-memory", "axial-positional-embedding", "linformer")),
    Package("local-attention", "local_attention", {
        "transformer": one("local_attention:LocalTransformer", IDS, **TEXT, local_attn_window_size=4),
        "transformer_xpos": one("local_attention:LocalTransformer", IDS, **TEXT, local_attn_window_size=4,
                                use_xpos=True, use_dynamic_pos_bias=True),
        "attention": one("local_attention:LocalMHA", dim=WIDTH, window_size=4, qk_rmsnorm=True, **HEADS),
    }),
    Package("long-short-transformer", "long_short_transformer", {
        "causal": one("long_short_transformer:LongShortTransformer", IDS, **TEXT, window_size=4, r=2, segment_size=4),
        "both_ways": one("long_short_transformer:LongShortTransformer", IDS, **TEXT, window_size=4, r=2, causal=False),
    }),
    Package("megabyte-pytorch", "MEGABYTE_pytorch", {
        "megabyte": one("MEGABYTE_pytorch:MEGABYTE", IDS, num_tokens=WORDS, dim=(24, 16), depth=(1, 1),
                        max_seq_len=(4, 4), dim_head=8, heads=2),
    }),
    Package("mega-pytorch", "mega_pytorch", {
        "mega": one("mega_pytorch:Mega", IDS, dim=WIDTH, num_tokens=WORDS, depth=1, ema_heads=2, attn_dim_qk=8,
                    attn_dim_value=16, laplacian_attn_fn=True),
        "layer": one("mega_pytorch:MegaLayer", dim=WIDTH, ema_heads=2, attn_dim_qk=8, attn_dim_value=16),
    }),
    Package("mixture-of-experts", "mixture_of_experts", {
        "experts": one("mixture_of_experts:MoE", dim=WIDTH, num_experts=4, hidden_dim=16, second_policy_eval="all"),
        "hierarchical": one("mixture_of_experts:HeirarchicalMoE", dim=WIDTH, num_experts=(2, 2), hidden_dim=16,
                            second_policy_eval="all"),
    }),
    Package("mlp-mixer-pytorch", "mlp_mixer_pytorch", {
        "mixer": one("mlp_mixer_pytorch:MLPMixer", PICTURE, channels=3, **PATCHES),
        "mixer_3d": one("mlp_mixer_pytorch:MLPMixer3D", floats(3, 4, SIDE, SIDE), image_size=SIDE, time_size=4,
                        time_patch_size=2, channels=3, patch_size=8, dim=WIDTH, depth=2, num_classes=5),
        "permutator": one("mlp_mixer_pytorch:Permutator", PICTURE, segments=4, **PATCHES),
    }),
    Package("nystrom-attention", "nystrom_attention", {
        "nystromformer": one("nystrom_attention:Nystromformer", dim=WIDTH, depth=2, num_landmarks=4, **HEADS),
        "nystromformer_masked": recipe(make("nystrom_attention:Nystromformer", dim=WIDTH, depth=1, num_landmarks=4,
                                            **HEADS), SEQUENCE, mask=flags(LENGTH)),
    }),
    Package("palm-pytorch", "palm_pytorch", {
        "palm": recipe(make("palm_pytorch:PaLM", num_tokens=WORDS, dim=WIDTH, depth=2, heads=2, dim_head=16), IDS),
    }),
    Package("point-transformer-pytorch", "point_transformer_pytorch", {
        "layer": one("point_transformer_pytorch:PointTransformerLayer", floats(8, 16), floats(8, 3), dim=16,
                     pos_mlp_hidden_dim=8, attn_mlp_hidden_mult=2, num_neighbors=4),
        "heads": one("point_transformer_pytorch:MultiheadPointTransformerLayer", floats(8, 16), floats(8, 3), dim=16,
                     heads=2, dim_head=8, pos_mlp_hidden_dim=8),
    }),
    Package("product-key-memory", "product_key_memory", {
        "memory": one("product_key_memory:PKM", dim=WIDTH, heads=2, num_keys=8, topk=4, dim_head=16),
    }),
    Package("reformer-pytorch", "reformer_pytorch", {
        "language": one("reformer_pytorch:ReformerLM", IDS, **TEXT, bucket_size=4, n_hashes=2, use_full_attn=True,
                        ff_chunks=1),
        "reversible": one("reformer_pytorch:ReformerLM", IDS, **TEXT, bucket_size=4, n_hashes=2, ff_chunks=2),
    }, needs=("axial-positional-embedding", "product-key-memory", "local-attention")),
    Package("res-mlp-pytorch", "res_mlp_pytorch", {
        "resmlp": recipe(make("res_mlp_pytorch:ResMLP", **PATCHES), PICTURE),
    }),
    Package("performer-pytorch", "performer_pytorch", {
        "language": one("performer_pytorch:PerformerLM", IDS, **TEXT, nb_features=8),
        "relu_features": one("performer_pytorch:Performer", dim=WIDTH, depth=2, generalized_attention=True,
                             nb_features=8, **HEADS),
        "local_heads": one("performer_pytorch:Performer", dim=WIDTH, depth=1, local_attn_heads=1, local_window_size=4,
                           nb_features=8, use_scalenorm=True, **HEADS),
        "no_projection": one("performer_pytorch:Performer", dim=WIDTH, depth=1, no_projection=True, use_rezero=True,
                             **HEADS),
    }, needs=("local-attention", "axial-positional-embedding")),
    Package("perceiver-pytorch", "perceiver_pytorch", {
        "perceiver": one("perceiver_pytorch:Perceiver", floats(8, 8, 3), num_freq_bands=2, depth=2, max_freq=4.0,
                         num_latents=6, latent_dim=24, latent_heads=2, cross_dim_head=8, latent_dim_head=8,
                         num_classes=5),
        "perceiver_tied": one("perceiver_pytorch:Perceiver", floats(8, 8, 3), num_freq_bands=2, depth=2, max_freq=4.0,
                              num_latents=6, latent_dim=24, latent_heads=2, cross_dim_head=8, latent_dim_head=8,
                              num_classes=5, weight_tie_layers=True, self_per_cross_attn=2),
        "io": recipe(make("perceiver_pytorch:PerceiverIO", dim=16, queries_dim=16, logits_dim=5, depth=2, num_latents=6,
                          latent_dim=24, latent_heads=2, cross_dim_head=8, latent_dim_head=8), floats(9, 16),
                     queries=floats(4, 16)),
    }),
    Package("slot-attention", "slot_attention", {
        "slots": one("slot_attention:SlotAttention", num_slots=4, dim=WIDTH, hidden_dim=32),
        "heads": one("slot_attention:MultiHeadSlotAttention", num_slots=4, dim=WIDTH, heads=2, dim_head=16,
                     hidden_dim=32),
    }),
    Package("vector-quantize-pytorch", "vector_quantize_pytorch", {
        "vq": one("vector_quantize_pytorch:VectorQuantize", dim=WIDTH, codebook_size=16),
        "vq_cosine": one("vector_quantize_pytorch:VectorQuantize", dim=WIDTH, codebook_size=16, use_cosine_sim=True,
                         codebook_dim=8),
        "vq_heads": one("vector_quantize_pytorch:VectorQuantize", dim=WIDTH, codebook_size=16, heads=2, codebook_dim=16,
                        separate_codebook_per_head=True),
        "vq_maps": one("vector_quantize_pytorch:VectorQuantize", MAP, dim=WIDTH, codebook_size=16,
                       accept_image_fmap=True),
        "residual": one("vector_quantize_pytorch:ResidualVQ", dim=WIDTH, codebook_size=16, num_quantizers=2),
        "grouped": one("vector_quantize_pytorch:GroupedResidualVQ", dim=WIDTH, codebook_size=16, num_quantizers=2,
                       groups=2),
        "random_projection": one("vector_quantize_pytorch:RandomProjectionQuantizer", dim=WIDTH, num_codebooks=2,
                                 codebook_dim=8, codebook_size=16),
        "finite_scalar": one("vector_quantize_pytorch:FSQ", floats(LENGTH, 4), levels=[8, 5, 5, 5]),
        "residual_finite_scalar": one("vector_quantize_pytorch:ResidualFSQ", dim=WIDTH, levels=[8, 5, 5],
                                      num_quantizers=2),
        "lookup_free": one("vector_quantize_pytorch:LFQ", floats(LENGTH, 4), dim=4, codebook_size=16),
        "simvq": one("vector_quantize_pytorch:SimVQ", dim=WIDTH, codebook_size=16),
    }),
    Package("mambapy", "mambapy", {
        "mamba": recipe(make("mambapy.mamba:Mamba", make("mambapy.mamba:MambaConfig", d_model=24, n_layers=2,
                             d_state=4)), floats(LENGTH, 24)),
        "mamba_sequential": recipe(make("mambapy.mamba:Mamba", make("mambapy.mamba:MambaConfig", d_model=24, n_layers=1,
                                        d_state=4, pscan=False)), floats(8, 24)),
        "vision": recipe(make("mambapy.vim:VMamba", make("mambapy.vim:MambaConfig", d_model=24, n_layers=1, d_state=4)),
                         floats(LENGTH, 24)),
        "jamba": recipe(make("mambapy.jamba:JambaLM", make("mambapy.jamba:JambaLMConfig", d_model=24, n_layers=2,
            vocab_size=WORDS, mlp_size=32, d_state=4, num_attention_heads=2, num_key_value_heads=1, num_experts=2,
            num_experts_per_tok=1, attn_layer_offset=0, attn_layer_period=2)), IDS),
    }),
)
# fmt: on
