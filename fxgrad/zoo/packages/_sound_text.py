"""Packages for sound, proteins, sentences, and object detectors from configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxgrad.zoo.packages.recipe import Package, Recipe, floats, ints, make, ones, recipe

# fmt: off
MEL, WAVE = floats(20, 16), floats(1, 800)
LENGTHS, FRAMES = ints(below=17, start=12), make("torch:tensor", [20, 17])
WAV2VEC: dict[str, Any] = dict(
    extractor_mode="group_norm", extractor_conv_layer_config=[(16, 10, 5), (16, 3, 2)], extractor_conv_bias=False,
    encoder_embed_dim=24, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=8, encoder_pos_conv_groups=2,
    encoder_num_layers=2, encoder_num_heads=2, encoder_attention_dropout=0.0, encoder_ff_interm_features=32,
    encoder_ff_interm_dropout=0.0, encoder_dropout=0.0, encoder_layer_norm_first=False, encoder_layer_drop=0.0,
    aux_num_out=5)
CONFORMER: dict[str, Any] = dict(input_dim=16, num_heads=2, ffn_dim=32, num_layers=2, depthwise_conv_kernel_size=5)
EMFORMER: dict[str, Any] = dict(input_dim=16, num_heads=2, ffn_dim=32, num_layers=2, segment_length=4)


def sound(name: str, /, *args: Any, options: Mapping[str, Any], **inputs: Any) -> Recipe:
    return recipe(make(f"torchaudio.{name}", **options), *args, **inputs)


TORCHAUDIO = Package("torchaudio", "torchaudio", {
    "conformer": sound("models:Conformer", MEL, FRAMES, options=CONFORMER),
    "conformer_convolution_first": sound("models:Conformer", MEL, FRAMES, options=CONFORMER | dict(
        convolution_first=True, use_group_norm=True)),
    "conv_tasnet": sound("models:ConvTasNet", WAVE, options=dict(
        num_sources=2, enc_num_feats=16, msk_num_feats=8, msk_num_hidden_feats=16, msk_num_layers=2, msk_num_stacks=1)),
    "conv_tasnet_relu": sound("models:ConvTasNet", WAVE, options=dict(
        num_sources=2, enc_num_feats=16, msk_num_feats=8, msk_num_hidden_feats=16, msk_num_layers=2, msk_num_stacks=1,
        msk_activate="relu")),
    "deepspeech": sound("models:DeepSpeech", floats(1, 20, 16), options=dict(n_feature=16, n_hidden=24, n_class=5)),
    "emformer": sound("models:Emformer", MEL, LENGTHS, options=EMFORMER | dict(right_context_length=4)),
    "emformer_memory": sound("models:Emformer", MEL, LENGTHS, options=EMFORMER | dict(
        right_context_length=4, left_context_length=4, max_memory_size=2, tanh_on_mem=True)),
    "hdemucs": sound("models:HDemucs", floats(2, 2048), options=dict(
        sources=["a", "b"], channels=8, nfft=256, depth=3, norm_starts=2, dconv_attn=4, dconv_lstm=4)),
    "rnnt": sound("models:emformer_rnnt_model", floats(20, 8), LENGTHS, ints(4, below=9), ints(below=5, start=4),
                  options=dict(
        input_dim=8, encoding_dim=16, num_symbols=9, segment_length=4, right_context_length=4,
        time_reduction_input_dim=8, time_reduction_stride=4, transformer_num_heads=2, transformer_ffn_dim=32,
        transformer_num_layers=1, transformer_dropout=0.0, transformer_activation="gelu",
        transformer_left_context_length=2, transformer_max_memory_size=0, transformer_tanh_on_mem=True,
        transformer_weight_init_scale_strategy="depthwise", symbol_embedding_dim=8, num_lstm_layers=1,
        lstm_layer_norm=True, lstm_layer_norm_epsilon=1e-3, lstm_dropout=0.0)),
    "wav2letter": sound("models:Wav2Letter", floats(16, 80), options=dict(num_classes=5, input_type="mfcc",
                                                                          num_features=16)),
    "wav2vec2": sound("models:wav2vec2_model", floats(800), options=WAV2VEC),
    "wav2vec2_lengths": sound("models:wav2vec2_model", floats(800), ints(below=800, start=600), options=WAV2VEC),
    "wav2vec2_norm_first": sound("models:wav2vec2_model", floats(800), options=WAV2VEC | dict(
        extractor_mode="layer_norm", encoder_layer_norm_first=True)),
    "wavlm": sound("models:wavlm_model", floats(800), options=WAV2VEC | dict(
        encoder_num_buckets=8, encoder_max_distance=16)),
    "wavernn": sound("models:WaveRNN", floats(1, 48), floats(1, 16, 16), options=dict(
        upsample_scales=[2, 2], n_classes=8, hop_length=4, n_res_block=1, n_rnn=16, n_fc=16, n_freq=16, n_hidden=16,
        n_output=16)),
    "mel_spectrogram": sound("transforms:MelSpectrogram", floats(800), options=dict(n_fft=64, n_mels=8)),
    "spectrogram_db": recipe(make("torch.nn:Sequential", make("torchaudio.transforms:Spectrogram", n_fft=64),
                                  make("torchaudio.transforms:AmplitudeToDB")), floats(800)),
    "mfcc": sound("transforms:MFCC", floats(800), options=dict(n_mfcc=6, melkwargs=dict(n_fft=64, n_mels=8))),
    "resample": sound("transforms:Resample", floats(80), options=dict(orig_freq=4, new_freq=3)),
    "deltas": sound("transforms:ComputeDeltas", floats(8, 20), options={}),
    "spectral_centroid": sound("transforms:SpectralCentroid", floats(800), options=dict(sample_rate=100, n_fft=64)),
})

ALPHABET = make("esm.data:Alphabet.from_architecture", "ESM-1b")
OLD: dict[str, Any] = dict(
    layers=2, embed_dim=24, attention_heads=2, ffn_embed_dim=32, logit_bias=True, max_positions=32,
    final_bias=True, emb_layer_norm_before=True, token_dropout=True)
RESIDUES = ints(9, start=4, below=24)
ESM = Package("fair-esm", "esm", {
    "esm2": recipe(make("esm.model.esm2:ESM2", num_layers=2, embed_dim=24, attention_heads=2, alphabet=ALPHABET),
                   RESIDUES),
    "esm2_no_token_dropout": recipe(make("esm.model.esm2:ESM2", num_layers=2, embed_dim=24, attention_heads=2,
                                         alphabet=ALPHABET, token_dropout=False), RESIDUES),
    "esm2_contacts": recipe(make("esm.model.esm2:ESM2", num_layers=2, embed_dim=24, attention_heads=2,
                                 alphabet=ALPHABET), RESIDUES, repr_layers=[2], return_contacts=True),
    "esm1b": recipe(make("esm.model.esm1:ProteinBertModel", make("argparse:Namespace", arch="roberta_large", **OLD),
                         ALPHABET), RESIDUES),
    "msa": recipe(make("esm.model.msa_transformer:MSATransformer", make("argparse:Namespace", **OLD | dict(
        embed_positions_msa=True, embed_positions_msa_dim=24, dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, max_tokens=1024, max_tokens_per_msa=1024)),
        make("esm.data:Alphabet.from_architecture", "MSA Transformer")), ints(3, 9, start=4, below=24)),
})

STEPS = "sentence_transformers.sentence_transformer.modules"
FEATURES = dict(token_embeddings=floats(6, 16), attention_mask=ones(6, dtype="int64"))


def sentence(path: str, /, *args: Any, **options: Any) -> Recipe:
    return recipe(make(f"{STEPS}:{path}", *args, **options), FEATURES)


SENTENCES = Package("sentence-transformers", "sentence_transformers", {
    **{f"pooling_{mode}": sentence("Pooling", 16, pooling_mode=mode)
       for mode in ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")},
    "cnn": sentence("CNN", in_word_embedding_dimension=16, out_channels=8, kernel_sizes=[1, 3]),
    "lstm": recipe(make(f"{STEPS}:LSTM", word_embedding_dimension=16, hidden_dim=8), dict(
        FEATURES, sentence_lengths=ints(below=7, start=6))),
    "weighted_layers": recipe(make(f"{STEPS}:WeightedLayerPooling", 16, num_hidden_layers=3, layer_start=1), dict(
        FEATURES, all_layer_embeddings=[floats(6, 16)] * 4)),
    "dense": recipe(make("sentence_transformers.base.modules:Dense", 16, 8), dict(sentence_embedding=floats(16))),
    "pipeline": recipe(make("torch.nn:Sequential", make(f"{STEPS}:Pooling", 16), make(
        "sentence_transformers.base.modules:Dense", 16, 8), make("sentence_transformers.base.modules:Normalize")),
                       FEATURES),
})

TASKS = "ultralytics.nn.tasks"


def yolo(kind: str, file: str, side: int = 64, **options: Any) -> Recipe:
    return recipe(make(f"{TASKS}:{kind}", file, ch=3, nc=4, verbose=False, **options), floats(3, side, side))


ULTRALYTICS = Package("ultralytics", "ultralytics", {
    "yolov3-tiny": yolo("DetectionModel", "yolov3-tiny.yaml"),
    "yolov5n": yolo("DetectionModel", "yolov5n.yaml"),
    "yolov6n": yolo("DetectionModel", "yolov6n.yaml"),
    "yolov8n": yolo("DetectionModel", "yolov8n.yaml"),
    "yolov8n-ghost": yolo("DetectionModel", "yolov8n-ghost.yaml"),
    "yolov9t": yolo("DetectionModel", "yolov9t.yaml"),
    "yolov10n": yolo("DetectionModel", "yolov10n.yaml"),
    "yolo11n": yolo("DetectionModel", "yolo11n.yaml"),
    "yolo12n": yolo("DetectionModel", "yolo12n.yaml"),
    "yolo26n": yolo("DetectionModel", "yolo26n.yaml"),
    "yolov8n-cls": yolo("ClassificationModel", "yolov8n-cls.yaml"),
    "yolo11n-cls": yolo("ClassificationModel", "yolo11n-cls.yaml"),
    "yolo11n-seg": yolo("SegmentationModel", "yolo11n-seg.yaml"),
    "yolo11n-pose": yolo("PoseModel", "yolo11n-pose.yaml", data_kpt_shape=(5, 3)),
    "yolo11n-obb": yolo("OBBModel", "yolo11n-obb.yaml"),
    "yolo26n-seg": yolo("SegmentationModel", "yolo26n-seg.yaml"),
    "rtdetr-resnet50": yolo("RTDETRDetectionModel", "rtdetr-resnet50.yaml"),
    "yolov8s-world": yolo("WorldModel", "yolov8s-world.yaml"),
}, needs=("requests",))

FNO: dict[str, Any] = dict(n_modes=(4, 4), in_channels=2, out_channels=1, hidden_channels=8, n_layers=2)


def operator(name: str, /, *inputs: Any, **options: Any) -> Recipe:
    return recipe(make(f"neuralop.models:{name}", **options), *inputs or (floats(2, 12, 12),))


NEURALOP = Package("neuraloperator", "neuralop", {
    "fno": operator("FNO", **FNO),
    "fno_1d": operator("FNO", floats(2, 16), **FNO | dict(n_modes=(4,))),
    "fno_3d": operator("FNO", floats(2, 6, 6, 6), **FNO | dict(n_modes=(2, 2, 2))),
    "fno_norm": operator("FNO", **FNO, norm="instance_norm", use_channel_mlp=False),
    "fno_no_grid": operator("FNO", **FNO, positional_embedding=None, fno_skip="soft-gating"),
    "fno_padded": operator("FNO", **FNO, domain_padding=0.25),
    "fno_separable": operator("FNO", **FNO, separable=True),
    "tfno": operator("TFNO", **FNO, factorization="Tucker", rank=0.5),
    "tfno_cp": operator("TFNO", **FNO, factorization="CP", rank=0.5, implementation="reconstructed"),
    "uno": operator("UNO", in_channels=2, out_channels=1, hidden_channels=8, lifting_channels=8, projection_channels=8,
                    n_layers=3, uno_out_channels=[8, 8, 8], channel_mlp_skip="linear", uno_n_modes=[[4, 4]] * 3,
                    uno_scalings=[[1.0, 1.0], [0.5, 0.5], [2.0, 2.0]]),
    "codano": operator("CODANO", floats(2, 12, 12), n_layers=2, n_modes=[[4, 4]] * 2, hidden_variable_codimension=4,
                       lifting_channels=8, projection_channels=8, n_heads=[2, 2], attention_scaling_factors=[1, 1],
                       per_layer_scaling_factors=[[1, 1]] * 2, output_variable_codimension=1),
    "uqno": operator("UQNO", base_model=make("neuralop.models:FNO", **FNO)),
}, needs=("tensorly", "tensorly-torch", "opt_einsum", "configmypy", "zencfg"))
# fmt: on
