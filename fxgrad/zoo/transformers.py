"""Hugging Face transformers: one tiny model per family, with the library's own code and random weights.

A case names a class, its inputs, and its configuration in addition to `TINY`. If there is a head that gives logits, the
case has it. This file has the models of text only; `fxgrad.zoo._perception` has the others. Options that some cases
need:

- `experts_implementation="batched_mm"`: the default, grouped_mm, has no float64, and the eager one loops over the
  experts that got a token.
- `attn_implementation="eager"` for BEiT: only while tracing, transformers makes a mask of ones, and BEiT adds it to the
  position bias: the same attention, but rounded differently.
- `use_mems_eval=False`, `rescale_every=0`: XLNet's memory is an output; RWKV divides its weights as it runs.

Left out, because the original models fail in float64: Canine, FSMT, Kosmos-2, MRA, ProphetNet, XGLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxgrad.zoo._perception import PERCEPTION
from fxgrad.zoo._tiny import BART, KV, Case, case, ids, ones, seq2seq, text, tiny, typed_text, unmasked_text

# fmt: off
MOE: dict[str, Any] = dict(
    KV, num_local_experts=4, num_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
    n_group=1, topk_group=1, first_k_dense_replace=1, experts_implementation="batched_mm")
MLA: dict[str, Any] = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8)
LATENT_MOE: dict[str, Any] = {k: v for k, v in MOE.items() if k not in KV} | MLA
SSM: dict[str, Any] = dict(mamba_d_state=4, mamba_n_heads=8, mamba_d_head=8, mamba_chunk_size=4)
DELTA: dict[str, Any] = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"])
GEMMA: dict[str, Any] = dict(KV, query_pre_attn_scalar=8, sliding_window=4)
MROPE: dict[str, Any] = dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]})
T5: dict[str, Any] = dict(d_kv=8, d_ff=48, decoder_start_token_id=0)
XLM: dict[str, Any] = dict(emb_dim=32, n_layers=2, n_heads=4, n_words=99)
DEBERTA: dict[str, Any] = dict(
    relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False, type_vocab_size=2)
TEXT: Mapping[str, Case] = {
    # Encoders of text.
    "bert": case("BertForSequenceClassification", typed_text),
    "roberta": case("RobertaForSequenceClassification", text),
    "roberta_prelayernorm": case("RobertaPreLayerNormForSequenceClassification", text),
    "xlm_roberta": case("XLMRobertaForTokenClassification", text),
    "xlm_roberta_xl": case("XLMRobertaXLForSequenceClassification", text),
    "distilbert": case("DistilBertForSequenceClassification", text, hidden_dim=48),
    "deberta": case("DebertaForSequenceClassification", typed_text, **DEBERTA),
    "deberta_v2": case("DebertaV2ForSequenceClassification", typed_text, **DEBERTA, position_buckets=8,
                       share_att_key=True, norm_rel_ebd="layer_norm", conv_kernel_size=3),
    "albert": case("AlbertForSequenceClassification", typed_text, embedding_size=16),
    "electra": case("ElectraForSequenceClassification", typed_text, embedding_size=16),
    "modernbert": case("ModernBertForSequenceClassification", text, global_attn_every_n_layers=2, local_attention=4,
                       cls_token_id=1, sep_token_id=2),
    "mpnet": case("MPNetForSequenceClassification", text),
    "xlnet": case("XLNetForSequenceClassification", typed_text, omit=("max_position_embeddings",), d_inner=48,
                  d_head=8, use_mems_eval=False),
    "fnet": case("FNetForMaskedLM", unmasked_text),
    "convbert": case("ConvBertForSequenceClassification", typed_text, embedding_size=16),
    "mobilebert": case("MobileBertForSequenceClassification", typed_text, embedding_size=32,
                       intra_bottleneck_size=16, true_hidden_size=16),
    "roformer": case("RoFormerForSequenceClassification", typed_text, embedding_size=16),
    "nystromformer": case("NystromformerForSequenceClassification", typed_text, num_landmarks=7,
                          segment_means_seq_len=7),
    "esm": case("EsmForMaskedLM", text, position_embedding_type="rotary", mask_token_id=98, token_dropout=True),
    "funnel": case("FunnelForSequenceClassification", typed_text, omit=("num_hidden_layers",), block_sizes=[1, 1],
                   d_head=8, d_inner=48),
    "squeezebert": case("SqueezeBertForSequenceClassification", typed_text, embedding_size=32),
    "xlm": case("XLMForSequenceClassification", text, **XLM),
    "flaubert": case("FlaubertForSequenceClassification", text, **XLM),
    "ernie": case("ErnieForSequenceClassification", typed_text),
    "megatron_bert": case("MegatronBertForSequenceClassification", typed_text),
    "rembert": case("RemBertForSequenceClassification", typed_text, input_embedding_size=16),
    "roc_bert": case("RoCBertForSequenceClassification",
                     lambda: typed_text() | {"input_shape_ids": ids(below=20),
                                             "input_pronunciation_ids": ids(below=20)},
                     shape_vocab_size=20, pronunciation_vocab_size=20, shape_embed_dim=8, pronunciation_embed_dim=8),
    "ibert": case("IBertForSequenceClassification", text),
    "yoso": case("YosoForSequenceClassification", typed_text, type_vocab_size=2),
    "big_bird": case("BigBirdForSequenceClassification", typed_text, attention_type="original_full"),
    "luke": case("LukeModel", text, entity_vocab_size=10, entity_emb_size=8),
    "layoutlm": case("LayoutLMForSequenceClassification", typed_text),
    "lilt": case("LiltForSequenceClassification", lambda: text() | {"bbox": ones(7, 4)}, channel_shrink_ratio=4,
                 hidden_size=48),
    "tapas": case("TapasForSequenceClassification", lambda: text() | {"token_type_ids": 0 * ones(7, 7)}),
    "splinter": case("SplinterModel", typed_text),
    "nomic_bert": case("NomicBertModel", text, **KV),
    "eurobert": case("EuroBertForSequenceClassification", text, **KV),
    "data2vec_text": case("Data2VecTextForSequenceClassification", text),
    "xmod": case("XmodForSequenceClassification", text, languages=["en_XX"], default_language="en_XX"),
    "dpr": case("DPRQuestionEncoder", typed_text),
    "reformer": case("ReformerModel", text, attn_layers=["local", "local"], local_attn_chunk_length=7,
                     axial_pos_shape=[1, 7], axial_pos_embds_dim=[16, 16], feed_forward_size=48, is_decoder=False,
                     through_no_grad=True),  # its reversible layers run under its own no_grad
    "perceiver": case("PerceiverForSequenceClassification", lambda: {"inputs": ids()}, num_latents=4, d_latents=32,
                      d_model=16, num_blocks=1, num_self_attends_per_block=1, num_self_attention_heads=2,
                      num_cross_attention_heads=2),
    # Encoders and decoders.
    "t5": case("T5ForConditionalGeneration", seq2seq, **T5),
    "t5_encoder": case("T5EncoderModel", text, **T5),
    "mt5": case("MT5ForConditionalGeneration", seq2seq, **T5),  # with a gated GELU
    "umt5": case("UMT5ForConditionalGeneration", seq2seq, **T5),
    "longt5": case("LongT5ForConditionalGeneration", seq2seq, local_radius=2, **T5),
    "longt5_global": case("LongT5EncoderModel", text, local_radius=2, global_block_size=2,
                          encoder_attention_type="transient-global", **T5),
    "t5gemma": case("T5GemmaForConditionalGeneration", lambda: seq2seq() | {"use_cache": False}, encoder=tiny(**GEMMA),
                    decoder=tiny(cross_attention_hidden_size=32, **GEMMA)),
    "bart": case("BartForConditionalGeneration", seq2seq, **BART),
    "bart_encoder": case("BartModel", text, part="encoder", **BART),
    "mbart": case("MBartForConditionalGeneration", seq2seq, **BART),
    "plbart": case("PLBartForConditionalGeneration", seq2seq, **BART),
    "mvp": case("MvpForConditionalGeneration", seq2seq, **BART),
    "pegasus": case("PegasusForConditionalGeneration", seq2seq, **BART),
    "pegasus_x": case("PegasusXForConditionalGeneration", seq2seq, block_size=4, num_global_tokens=2, **BART),
    "bigbird_pegasus": case("BigBirdPegasusForConditionalGeneration", seq2seq, attention_type="original_full", **BART),
    "marian": case("MarianMTModel", seq2seq, decoder_vocab_size=99, **BART),
    "blenderbot": case("BlenderbotForConditionalGeneration", seq2seq, **BART),
    "m2m_100": case("M2M100ForConditionalGeneration", seq2seq, **BART),
    "seamless_m4t": case("SeamlessM4TForTextToText", seq2seq, **BART),
    "encoder_decoder": case("EncoderDecoderModel", seq2seq, encoder=tiny("bert"),
                            decoder=tiny("bert", is_decoder=True, add_cross_attention=True)),
    # Decoders.
    "gpt2": case("GPT2LMHeadModel", text, n_positions=32),
    "gpt_neox": case("GPTNeoXForCausalLM", text),
    "gpt_neo": case("GPTNeoForCausalLM", text, attention_types=[[["global", "local"], 1]], window_size=4),
    "gptj": case("GPTJForCausalLM", text, n_positions=32, rotary_dim=4),
    "gpt_bigcode": case("GPTBigCodeForCausalLM", text, n_positions=32),
    "codegen": case("CodeGenForCausalLM", text, n_positions=32, rotary_dim=4),
    "openai": case("OpenAIGPTLMHeadModel", text, n_positions=32),
    "ctrl": case("CTRLLMHeadModel", text, n_positions=32, dff=48),
    "opt": case("OPTForCausalLM", text, ffn_dim=48, word_embed_proj_dim=32),
    "bloom": case("BloomForCausalLM", text),
    "mpt": case("MptForCausalLM", text, max_seq_len=32),
    "biogpt": case("BioGptForCausalLM", text),
    "trocr": case("TrOCRForCausalLM", text, **BART),
    "musicgen": case("MusicgenForCausalLM", lambda: {"input_ids": ids().repeat(2, 1)}, ffn_dim=48, num_codebooks=2),
    "bark": case("BarkSemanticModel", text, input_vocab_size=99, output_vocab_size=99, num_layers=2, num_heads=4,
                 block_size=32),
    "llama": case("LlamaForCausalLM", text, **KV),
    "mistral": case("MistralForCausalLM", text, sliding_window=4, **KV),
    "qwen2": case("Qwen2ForCausalLM", text, **KV),
    "qwen3": case("Qwen3ForCausalLM", text, **KV),
    "gemma": case("GemmaForCausalLM", text, **KV),
    "gemma2": case("Gemma2ForCausalLM", text, **GEMMA),
    "gemma3": case("Gemma3ForCausalLM", text, sliding_window_pattern=2, **GEMMA),
    "gemma3n": case("Gemma3nForCausalLM", text, hidden_size_per_layer_input=8, vocab_size_per_layer_input=99,
                    laurel_rank=4, altup_num_inputs=2, num_kv_shared_layers=0, activation_sparsity_pattern=[0.5, 0.0],
                    layer_types=["sliding_attention", "full_attention"], **GEMMA),
    "gemma4": case("Gemma4ForCausalLM", text, sliding_window=4, hidden_size_per_layer_input=8, global_head_dim=8,
                   vocab_size_per_layer_input=99, num_kv_shared_layers=0,
                   layer_types=["sliding_attention", "full_attention"], **KV),
    "vaultgemma": case("VaultGemmaForCausalLM", text, **GEMMA),
    "phi": case("PhiForCausalLM", text),
    "phi3": case("Phi3ForCausalLM", text, **KV),
    "phi4_multimodal": case("Phi4MultimodalForCausalLM", text, **KV, vision_config=tiny(image_size=56), audio_config={
        "hidden_size": 32, "intermediate_size": 48, "num_blocks": 1, "num_attention_heads": 4, "nemo_conv_channels": 8,
        "ext_pw_out_channel": 32}),
    "falcon": case("FalconForCausalLM", text),
    "falcon_alibi": case("FalconForCausalLM", text, alibi=True, new_decoder_architecture=True, num_kv_heads=2),
    "stablelm": case("StableLmForCausalLM", text, **KV),
    "persimmon": case("PersimmonForCausalLM", text),
    "nemotron": case("NemotronForCausalLM", text, **KV),
    "starcoder2": case("Starcoder2ForCausalLM", text, **KV),
    "olmo": case("OlmoForCausalLM", text, **KV),
    "olmo2": case("Olmo2ForCausalLM", text, **KV),
    "olmo3": case("Olmo3ForCausalLM", text, sliding_window=4, **KV),
    "cohere": case("CohereForCausalLM", text, **KV),
    "cohere2": case("Cohere2ForCausalLM", text, sliding_window=4, **KV),
    "granite": case("GraniteForCausalLM", text, **KV),
    "smollm3": case("SmolLM3ForCausalLM", text, **KV),
    "glm": case("GlmForCausalLM", text, **KV),
    "glm4": case("Glm4ForCausalLM", text, **KV),
    "diffllama": case("DiffLlamaForCausalLM", text, **KV),
    "exaone4": case("Exaone4ForCausalLM", text, sliding_window=4, **KV),
    "helium": case("HeliumForCausalLM", text, **KV),
    "bitnet": case("BitNetForCausalLM", text, **KV),
    "arcee": case("ArceeForCausalLM", text, **KV),
    "apertus": case("ApertusForCausalLM", text, **KV),
    "seed_oss": case("SeedOssForCausalLM", text, **KV),
    "ernie4_5": case("Ernie4_5ForCausalLM", text, **KV),
    "hunyuan_dense": case("HunYuanDenseV1ForCausalLM", text, **KV),
    "nanochat": case("NanoChatForCausalLM", text, **KV),
    "doge": case("DogeForCausalLM", text, keep_window_size=4, **KV),
    "minicpm3": case("MiniCPM3ForCausalLM", text, **MLA),
    "modernbert_decoder": case("ModernBertDecoderForCausalLM", text, global_attn_every_n_layers=2, local_attention=4),
    # Mixtures of experts.
    "mixtral": case("MixtralForCausalLM", text, **MOE),
    "qwen2_moe": case("Qwen2MoeForCausalLM", text, shared_expert_intermediate_size=24, **MOE),
    "qwen3_moe": case("Qwen3MoeForCausalLM", text, **MOE),
    "gpt_oss": case("GptOssForCausalLM", text, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **MOE),
    "deepseek_v2": case("DeepseekV2ForCausalLM", text, **LATENT_MOE),
    "deepseek_v3": case("DeepseekV3ForCausalLM", text, **LATENT_MOE | {"n_group": 2}),
    "glm4_moe": case("Glm4MoeForCausalLM", text, **MOE),
    "glm4_moe_lite": case("Glm4MoeLiteForCausalLM", text, **LATENT_MOE),
    "olmoe": case("OlmoeForCausalLM", text, **MOE),
    "flex_olmo": case("FlexOlmoForCausalLM", text, **MOE),
    "granitemoe": case("GraniteMoeForCausalLM", text, **MOE),
    "llama4": case("Llama4ForCausalLM", text, moe_layers=[1], interleave_moe_layer_step=2, intermediate_size_mlp=48,
                   **MOE),
    "jetmoe": case("JetMoeForCausalLM", text, kv_channels=8, **MOE),
    "phimoe": case("PhimoeForCausalLM", text, **MOE),
    "ernie4_5_moe": case("Ernie4_5_MoeForCausalLM", text, moe_num_experts=4, moe_k=2, **MOE),
    "afmoe": case("AfmoeForCausalLM", text, sliding_window=4, num_dense_layers=1, **MOE),
    # Recurrences and state spaces.
    "mamba": case("MambaForCausalLM", text, state_size=4),
    "mamba2": case("Mamba2ForCausalLM", text, state_size=4, num_heads=8, head_dim=8, n_groups=2, chunk_size=4),
    "falcon_mamba": case("FalconMambaForCausalLM", text, state_size=4),
    "rwkv": case("RwkvForCausalLM", text, rescale_every=0),
    "recurrent_gemma": case("RecurrentGemmaForCausalLM", text, num_hidden_layers=3, attention_window_size=4,
                            lru_width=32, **KV),
    "xlstm": case("xLSTMForCausalLM", text, num_blocks=2, num_heads=4),
    "jamba": case("JambaForCausalLM", text, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1, **MOE),
    "bamba": case("BambaForCausalLM", text, attn_layer_indices=[1], **SSM, **KV),
    "falcon_h1": case("FalconH1ForCausalLM", text, mamba_d_ssm=64, **SSM, **KV),
    "granitemoehybrid": case("GraniteMoeHybridForCausalLM", text, layer_types=["mamba", "attention"],
                             shared_intermediate_size=24, **SSM, **MOE),
    "zamba2": case("Zamba2ForCausalLM", text, mamba_d_state=4, n_mamba_heads=4, mamba_ngroups=1, chunk_size=4,
                   layers_block_type=["mamba", "hybrid"], hybrid_layer_ids=[1], num_mem_blocks=1,
                   attention_hidden_size=64, attention_head_dim=16),
    "nemotron_h": case("NemotronHForCausalLM", text, ssm_state_size=4, mamba_num_heads=8, mamba_head_dim=8, n_groups=2,
                       chunk_size=4, moe_shared_expert_intermediate_size=24, **MOE),
    "minimax": case("MiniMaxForCausalLM", text, block_size=4, layer_types=["linear_attention", "full_attention"],
                    **MOE),
    "lfm2": case("Lfm2ForCausalLM", text, layer_types=["conv", "full_attention"], **KV),
    "lfm2_moe": case("Lfm2MoeForCausalLM", text, layer_types=["conv", "full_attention"], num_dense_layers=1, **MOE),
}
# fmt: on

CASES: Mapping[str, Case] = {**TEXT, **PERCEPTION}
"""Name -> case, which builds (model, args, kwargs)."""
