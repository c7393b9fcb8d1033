"""Packages for tables, graphs, points with symmetries, and self-supervised heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxgrad.zoo.packages.recipe import Package, Recipe, floats, ints, itself, make, recipe

# fmt: off
NUMBERS = floats(6)
CATEGORIES = ints(2, below=4)
BLOCKS: dict[str, Any] = dict(d_in=6, d_out=3, n_blocks=2)
FT: dict[str, Any] = dict(
    d_out=3, n_blocks=2, d_block=16, attention_n_heads=2, attention_dropout=0.0, ffn_d_hidden_multiplier=4 / 3,
    ffn_dropout=0.0, residual_dropout=0.0)
RTDL = Package("rtdl_revisiting_models", "rtdl_revisiting_models", {
    "mlp": recipe(make("rtdl_revisiting_models:MLP", **BLOCKS, d_block=16, dropout=0.1), NUMBERS),
    "resnet": recipe(make("rtdl_revisiting_models:ResNet", **BLOCKS, d_block=16, d_hidden_multiplier=2.0, dropout1=0.1,
                          dropout2=0.0), NUMBERS),
    "ft_transformer": recipe(make("rtdl_revisiting_models:FTTransformer", n_cont_features=6, cat_cardinalities=[4, 4],
                                  **FT), NUMBERS, CATEGORIES),
    "ft_transformer_numbers": recipe(make("rtdl_revisiting_models:FTTransformer", n_cont_features=6,
                                          cat_cardinalities=[], **FT), NUMBERS, None),
    "ft_transformer_linformer": recipe(make("rtdl_revisiting_models:FTTransformer", n_cont_features=6,
        cat_cardinalities=[4, 4], linformer_kv_compression_ratio=0.5, linformer_kv_compression_sharing="headwise",
        **FT), NUMBERS, CATEGORIES),
})
TABM_SIZES: dict[str, Any] = dict(n_num_features=6, cat_cardinalities=[4, 4], d_out=3, n_blocks=2, d_block=16,
                                  dropout=0.1, k=4)
BINS = [make("torch:linspace", -2.0, 2.0, 5)] * 6
TABM = Package("tabm", "tabm", {
    **{kind: recipe(make("tabm:TabM.make", arch_type=kind, **TABM_SIZES), NUMBERS, CATEGORIES)
       for kind in ("tabm", "tabm-mini", "tabm-packed")},
    "tabm_piecewise": recipe(make("tabm:TabM.make", **TABM_SIZES, num_embeddings=make(
        "rtdl_num_embeddings:PiecewiseLinearEmbeddings", BINS, 8, activation=False, version="B")), NUMBERS, CATEGORIES),
}, needs=("rtdl_num_embeddings",))
NUM_EMBEDDINGS = Package("rtdl_num_embeddings", "rtdl_num_embeddings", {
    "linear_relu": recipe(make("rtdl_num_embeddings:LinearReLUEmbeddings", 6, 8), NUMBERS),
    "periodic": recipe(make("rtdl_num_embeddings:PeriodicEmbeddings", 6, 8, n_frequencies=4, lite=False), NUMBERS),
    "periodic_lite": recipe(make("rtdl_num_embeddings:PeriodicEmbeddings", 6, 8, n_frequencies=4, lite=True), NUMBERS),
    "piecewise_a": recipe(make("rtdl_num_embeddings:PiecewiseLinearEmbeddings", BINS, 8, activation=True, version="A"),
                          NUMBERS),
    "piecewise_encoding": recipe(make("rtdl_num_embeddings:PiecewiseLinearEncoding", BINS), NUMBERS),
})
TABNET = Package("pytorch-tabnet", "pytorch_tabnet", {
    mask: recipe(make("pytorch_tabnet.tab_network:TabNet", 6, 3, n_d=4, n_a=4, mask_type=mask, cat_idxs=[0, 1],
                      cat_dims=[4, 4], cat_emb_dim=[2, 2], group_attention_matrix=make("torch:eye", 6)),
                 make("torch:tensor", [[1.0, 2.0, 0.3, -0.4, 0.5, 0.6], [0.0, 3.0, -0.3, 0.8, 0.1, -0.2]]))
    for mask in ("sparsemax", "entmax")
})

NODES, EDGES, FEATURES = 6, 12, 8
X, E = floats(NODES, FEATURES).whole(), ints(2, EDGES, below=NODES).whole()
POINTS = floats(NODES, 3).whole()
BATCH = make("torch:tensor", [0, 0, 0, 1, 1, 1])
MLP = make("torch.nn:Sequential", make("torch.nn:Linear", FEATURES, 8), make("torch.nn:ReLU"),
           make("torch.nn:Linear", 8, 8))
NETS = ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN")
CONVOLUTIONS: Mapping[str, Mapping[str, Any]] = {
    "GCNConv": {}, "SAGEConv": {}, "GATConv": dict(heads=2), "GATv2Conv": dict(heads=2),
    "TransformerConv": dict(heads=2, beta=True), "ChebConv": dict(K=3), "SGConv": dict(K=2), "TAGConv": {},
    "ARMAConv": dict(num_stacks=2, num_layers=2), "GraphConv": {}, "ResGatedGraphConv": {}, "FeaStConv": dict(heads=2),
    "SuperGATConv": dict(heads=2), "FiLMConv": {}, "EGConv": {}, "GeneralConv": {}, "ClusterGCNConv": {}, "LEConv": {},
    "MFConv": {}, "SSGConv": dict(alpha=0.1), "LGConv": {}, "GENConv": {}, "HypergraphConv": {}, "MixHopConv": {},
}
BARE = ("LGConv",)
AGGREGATIONS: Mapping[str, tuple[Any, ...]] = {
    "MeanAggregation": (), "MaxAggregation": (), "SoftmaxAggregation": (), "PowerMeanAggregation": (),
    "StdAggregation": (), "MedianAggregation": (), "MulAggregation": (), "Set2Set": (FEATURES, 2),
    "LSTMAggregation": (FEATURES, 4), "SortAggregation": (2,), "GraphMultisetTransformer": (FEATURES, 2),
    "SetTransformerAggregation": (FEATURES, 2), "AttentionalAggregation": (make("torch.nn:Linear", FEATURES, 1),),
}


def graph(path: str, /, *args: Any, inputs: tuple[Any, ...] = (X, E), **options: Any) -> Recipe:
    return recipe(make(f"torch_geometric.nn:{path}", *args, **options), *inputs)


GEOMETRIC = Package("torch-geometric", "torch_geometric", {
    **{f"model/{name}": graph(name, FEATURES, 8, num_layers=2, out_channels=3) for name in NETS},
    "model/GAT_v2": graph("GAT", FEATURES, 8, num_layers=2, out_channels=3, v2=True, heads=2, jk="cat"),
    "model/GCN_normed": graph("GCN", FEATURES, 8, num_layers=2, out_channels=3, norm="batch", act="gelu", jk="lstm"),
    "model/PNA": graph("PNA", FEATURES, 8, num_layers=2, out_channels=3, aggregators=["mean", "max", "std"],
                       scalers=["identity", "amplification"], deg=make("torch:tensor", [0, 2, 4])),
    "model/LightGCN": graph("LightGCN", NODES, 8, 2, inputs=(E, None, make("torch:rand", EDGES))),
    "model/DeepGCN": graph("DeepGCNLayer", make("torch_geometric.nn:GENConv", FEATURES, FEATURES),
                           make("torch.nn:LayerNorm", FEATURES), make("torch.nn:ReLU"), block="res+"),
    "model/MLP": graph("MLP", [FEATURES, 8, 3], inputs=(X,)),
    "model/AttentiveFP": graph("AttentiveFP", FEATURES, 8, 3, edge_dim=4, num_layers=2, num_timesteps=2,
                               inputs=(X, E, floats(EDGES, 4).whole(), BATCH)),
    "model/LINKX": graph("LINKX", NODES, FEATURES, 8, 3, 2),
    "model/GraphUNet": graph("GraphUNet", FEATURES, 8, 3, depth=2),
    "model/GPS": recipe(make("torch_geometric.nn:GPSConv", FEATURES, make("torch_geometric.nn:GCNConv", FEATURES,
                             FEATURES), heads=2), X, E, BATCH),
    **{f"conv/{name}": graph(name, *(() if name in BARE else (FEATURES, 8)), **options)
       for name, options in CONVOLUTIONS.items()},
    "conv/DirGNNConv": graph("DirGNNConv", make("torch_geometric.nn:SAGEConv", FEATURES, 8)),
    "conv/GINConv": graph("GINConv", MLP),
    "conv/GINEConv": graph("GINEConv", MLP, edge_dim=4, inputs=(X, E, floats(EDGES, 4).whole())),
    "conv/APPNP": graph("APPNP", K=3, alpha=0.1),
    "conv/GatedGraphConv": graph("GatedGraphConv", 8, 2),
    "conv/AGNNConv": graph("AGNNConv"),
    "conv/NNConv": graph("NNConv", FEATURES, 8, make("torch.nn:Linear", 4, FEATURES * 8),
                         inputs=(X, E, floats(EDGES, 4).whole())),
    "conv/CGConv": graph("CGConv", FEATURES, dim=4, inputs=(X, E, floats(EDGES, 4).whole())),
    "conv/GATConv_edges": graph("GATConv", FEATURES, 8, edge_dim=4, inputs=(X, E, floats(EDGES, 4).whole())),
    "conv/EdgeConv": graph("EdgeConv", make("torch.nn:Linear", 2 * FEATURES, 8)),
    "conv/GCN2Conv": graph("GCN2Conv", FEATURES, 0.1, inputs=(X, X, E)),
    "conv/AntiSymmetricConv": graph("AntiSymmetricConv", FEATURES),
    "conv/RGCNConv": graph("RGCNConv", FEATURES, 8, 3, inputs=(X, E, ints(EDGES, below=3).whole())),
    "conv/RGATConv": graph("RGATConv", FEATURES, 8, 3, inputs=(X, E, ints(EDGES, below=3).whole())),
    "conv/PointNetConv": graph("PointNetConv", make("torch.nn:Linear", FEATURES + 3, 8), inputs=(X, POINTS, E)),
    "conv/PointTransformerConv": graph("PointTransformerConv", FEATURES, 8, inputs=(X, POINTS, E)),
    "conv/PPFConv": graph("PPFConv", make("torch.nn:Linear", FEATURES + 4, 8), inputs=(X, POINTS, POINTS, E)),
    "conv/GMMConv": graph("GMMConv", FEATURES, 8, 2, 3, inputs=(X, E, floats(EDGES, 2).whole())),
    "conv/DenseGCNConv": graph("DenseGCNConv", FEATURES, 8, inputs=(floats(NODES, FEATURES), floats(NODES, NODES))),
    "conv/DenseGINConv": graph("DenseGINConv", MLP, inputs=(floats(NODES, FEATURES), floats(NODES, NODES))),
    "conv/DenseSAGEConv": graph("DenseSAGEConv", FEATURES, 8,
                                inputs=(floats(NODES, FEATURES), floats(NODES, NODES))),
    **{f"pool/{name}": graph(name, *args, inputs=(X, BATCH)) for name, args in AGGREGATIONS.items()},
    "pool/TopKPooling": graph("TopKPooling", FEATURES, inputs=(X, E)),
    "pool/SAGPooling": graph("SAGPooling", FEATURES, inputs=(X, E)),
    "norm/GraphNorm": graph("GraphNorm", FEATURES, inputs=(X, BATCH)),
    "norm/PairNorm": graph("PairNorm", inputs=(X, BATCH)),
    "norm/DiffGroupNorm": graph("DiffGroupNorm", FEATURES, 2, inputs=(X,)),
    "norm/MessageNorm": graph("MessageNorm", True, inputs=(X, X)),
}, needs=("requests",))

IRREPS = "4x0e + 2x1o"
E3NN = Package("e3nn", "e3nn", {
    "linear": recipe(make("e3nn.o3:Linear", IRREPS, "3x0e + 1x1o"), floats(10)),
    "tensor_product": recipe(make("e3nn.o3:FullyConnectedTensorProduct", IRREPS, "1x0e + 1x1o", "2x0e + 1x1o"),
                             floats(10), floats(4)),
    "full_tensor_product": recipe(make("e3nn.o3:FullTensorProduct", IRREPS, "1x1o"), floats(10), floats(3)),
    "norm": recipe(make("e3nn.o3:Norm", IRREPS), floats(10)),
    "spherical_harmonics": recipe(make("e3nn.o3:SphericalHarmonics", [0, 1, 2], True), floats(3)),
    "gate": recipe(make("e3nn.nn:Gate", "4x0e", [itself("torch:tanh")], "2x0e", [itself("torch:sigmoid")], "2x1o"),
                   floats(12)),
    "activation": recipe(make("e3nn.nn:Activation", "4x0e", [itself("torch.nn.functional:silu")]), floats(4)),
    "norm_activation": recipe(make("e3nn.nn:NormActivation", IRREPS, itself("torch:sigmoid")), floats(10)),
    "batch_norm": recipe(make("e3nn.nn:BatchNorm", IRREPS), floats(10)),
    "fully_connected": recipe(make("e3nn.nn:FullyConnectedNet", [6, 8, 3], itself("torch.nn.functional:silu")),
                              floats(6)),
}, needs=("opt-einsum-fx", "opt_einsum"))

HEADS: Mapping[str, tuple[Any, ...]] = {
    "BarlowTwinsProjectionHead": (16, 16, 8), "BYOLProjectionHead": (16, 16, 8), "BYOLPredictionHead": (16, 16, 8),
    "MoCoProjectionHead": (16, 16, 8), "NNCLRProjectionHead": (16, 16, 8), "SimCLRProjectionHead": (16, 16, 8),
    "SimSiamProjectionHead": (16, 16, 8), "SwaVProjectionHead": (16, 16, 8), "SMoGProjectionHead": (16, 16, 8),
    "DINOProjectionHead": (16, 16, 8, 12),
    "DenseCLProjectionHead": (16, 16, 8),
}
LIGHTLY = Package("lightly", "lightly", {
    **{name: recipe(make(f"lightly.models.modules:{name}", *sizes), floats(16)) for name, sizes in HEADS.items()},
    "resnet": recipe(make("lightly.models:ResNetGenerator", "resnet-9", 0.25), floats(3, 32, 32)),
    "swav_prototypes": recipe(make("lightly.models.modules:SwaVPrototypes", 16, [5, 4]), floats(16)),
})
# fmt: on
