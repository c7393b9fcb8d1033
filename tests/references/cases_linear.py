"""Cases of the contract test, continued: the linear and piecewise linear kinds, whose own gradient is right.

Where a reference is given, it is the same function written in another way; where not, it is the op itself
under plain autograd, and the check of completeness is what vouches for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.references.cases import Case, case
from tests.references.textbook import affine, batch_norm, unfolded_conv2d

aten = torch.ops.aten

IMAGE = "n 3 6 7"
INDEX = torch.tensor([2, 0, 2, 1])
KEEP = torch.tensor([True, False, True, True])

LAYERS = [
    case("linear", "linear", "n a 4", nn.Linear(4, 3), lambda m, x: affine(x, m.weight, m.bias)),
    case("linear_no_bias", "linear", "n a 4", nn.Linear(4, 3, bias=False), lambda m, x: affine(x, m.weight, None)),
    case("conv1d", "conv1d", "n 4 9", nn.Conv1d(4, 6, 3, stride=2, groups=2, dilation=2)),
    case("conv2d", "conv2d", IMAGE, nn.Conv2d(3, 2, 3, stride=2, padding=1),
         lambda m, x: unfolded_conv2d(x, m.weight, m.bias, stride=2, padding=1)),
    case("conv2d_same", "conv2d", IMAGE, nn.Conv2d(3, 3, 3, padding="same", groups=3)),
    case("conv2d_reflect", "conv2d pad", IMAGE, nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect", bias=False),
         lambda m, x: unfolded_conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), m.weight, None)),
    case("conv3d", "conv3d", "n 2 4 4 4", nn.Conv3d(2, 3, 2)),
    case("conv_transpose1d", "conv_transpose1d", "n 2 5", nn.ConvTranspose1d(2, 3, 3, stride=2)),
    case("conv_transpose2d", "conv_transpose2d", "n 2 4 5", nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1)),
    case("conv_transpose3d", "conv_transpose3d", "n 2 3 3 3", nn.ConvTranspose3d(2, 3, 2)),
    case("batch_norm_1d", "_native_batch_norm_legit_no_training", "n 3", nn.BatchNorm1d(3),
         lambda m, x: batch_norm(x, m)),
    case("batch_norm_2d", "_native_batch_norm_legit_no_training", IMAGE, nn.BatchNorm2d(3),
         lambda m, x: batch_norm(x, m)),
]  # fmt: skip


class GridSample(nn.Module):
    """Reads an image at fixed places."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.zeros(1, 2, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, self.grid.expand(x.shape[0], 2, 3, 2) - 1, align_corners=False)


def copied(x: Tensor) -> Tensor:
    """Every view as a copy; `turned` is what comes out."""
    x = aten.t_copy(aten.alias_copy(x))
    x = aten.transpose_copy.int(aten.permute_copy(aten.unsqueeze_copy(x, 0), [0, 2, 1]), 1, 2)
    x = aten.squeeze_copy(aten.expand_copy(x, [1, 4, 3]))
    x = aten.as_strided_copy(aten.view_copy(x, [12]), [4, 3], [3, 1], 0)
    first, second = aten.split_with_sizes_copy(x, [1, 3])
    rows = aten.unbind_copy.int(second)
    x = torch.cat([first, torch.stack([aten.slice_copy.Tensor(row, 0, 0, 3) for row in rows])])
    diagonal = aten.diagonal_copy(aten.narrow_copy(x, 0, 1, 3))
    return x * 2 + diagonal + aten.select_copy.int(aten.unfold_copy(x, 1, 2, 1), 2, 0).sum(1, True)


def turned(x: Tensor) -> Tensor:
    x = x.T
    return x * 2 + torch.stack([x[1, 0], x[2, 1], x[3, 2]]) + x[:, :2].sum(1, True)


UNPOOL = torch.tensor([[0, 2, 4], [12, 14, 16]])


def spread(x: Tensor) -> Tensor:
    """Zeros between the pixels of a picture, behind and below each one."""
    y = torch.zeros(*x.shape[:-2], 2 * x.shape[-2], 2 * x.shape[-1], dtype=x.dtype)
    y[..., ::2, ::2] = x
    return y


SUMS = [
    case("add", "add", "n a b, n 1 b", lambda x, y: torch.add(x, y, alpha=2), lambda x, y: x + 2 * y),
    case("add_number", "add", "n a", lambda x: x + 2.5, lambda x: x + 2.5 * torch.ones_like(x)),
    case("sub", "sub", "n a, n a", torch.sub, lambda x, y: x + -y),
    case("rsub", "rsub neg", "n a", lambda x: torch.rsub(-x, 2.0), lambda x: x + 2.0),
    case("mean", "mean", "n a b", lambda x: x.mean((1, 2)), lambda x: x.flatten(1).sum(1) / x[0].numel()),
    case("sum", "sum", "n a b", lambda x: x.sum(1), lambda x: torch.einsum("nab->nb", x)),
    case("cumsum", "cumsum", "n 4", lambda x: x.cumsum(1), lambda x: x @ torch.ones(4, 4).double().triu()),
    case("avg_pool1d", "avg_pool1d", "n 3 6", lambda x: F.avg_pool1d(x, 2), lambda x: x.unflatten(-1, (3, 2)).mean(-1)),
    case("avg_pool2d", "avg_pool2d", IMAGE, lambda x: F.avg_pool2d(x, 3, 2, padding=1)),
    case("avg_pool3d", "avg_pool3d", "n 2 4 4 4", lambda x: F.avg_pool3d(x, 2)),
    case("adaptive_avg_pool1d", "adaptive_avg_pool1d", "n 3 7", lambda x: F.adaptive_avg_pool1d(x, 3)),
    case("adaptive_avg_pool2d", "adaptive_avg_pool2d", IMAGE, lambda x: F.adaptive_avg_pool2d(x, (2, 3))),
    case("adaptive_avg_pool3d", "adaptive_avg_pool3d", "n 2 4 4 4", lambda x: F.adaptive_avg_pool3d(x, 3)),
    case("upsample_nearest", "upsample_nearest2d.vec", IMAGE, lambda x: F.interpolate(x, scale_factor=2)),
    case("upsample_bilinear", "upsample_bilinear2d.vec", IMAGE, lambda x: F.interpolate(x, (9, 8), mode="bilinear")),
    case("upsample_bicubic", "upsample_bicubic2d.vec", IMAGE, lambda x: F.interpolate(x, (9, 8), mode="bicubic")),
    case("grid_sample", "grid_sampler_2d", IMAGE, GridSample()),
    case("nansum", "nansum", "n a b", lambda x: x.nansum(1), lambda x: x.sum(1)),
    case("lerp", "lerp.Scalar", "n a, n a", lambda x, y: torch.lerp(x, y, 0.25), lambda x, y: 0.75 * x + 0.25 * y),
    case("lerp_weights", "lerp.Tensor", "n 4, n 4", lambda x, y: torch.lerp(x, y, torch.full_like(x, 0.75)),
         lambda x, y: x + 0.75 * (y - x)),
    case("degrees", "deg2rad rad2deg", "n a", lambda x: torch.deg2rad(x) + torch.rad2deg(x)),
    case("ldexp", "ldexp", "n a", lambda x: torch.ldexp(x, torch.tensor(3)), lambda x: 8 * x),
    case("xlogy", "xlogy special_xlog1py", "n a, n a : positive", lambda x, y: torch.xlogy(x, y) + torch.special.xlog1py(x, y),
         lambda x, y: x * y.log().detach() + x * y.log1p().detach(), loose=2),
    case("affine_grid", "affine_grid_generator", "n 2 3", lambda x: F.affine_grid(x, [x.shape[0], 1, 4, 5], False)),
    case("upsample_1d", "upsample_linear1d _upsample_nearest_exact1d", "n 2 5",
         lambda x: aten.upsample_linear1d(x, [8], True) + aten._upsample_nearest_exact1d(x, [8])),
    case("upsample_2d", "_upsample_nearest_exact2d", IMAGE, lambda x: aten._upsample_nearest_exact2d(x, [4, 5])),
    case("upsample_3d", "upsample_nearest3d _upsample_nearest_exact3d upsample_trilinear3d", "n 2 3 4 5",
         lambda x: aten.upsample_nearest3d(x, [6, 7, 8]) + aten._upsample_nearest_exact3d(x, [6, 7, 8])
         + aten.upsample_trilinear3d(x, [6, 7, 8], False), loose=4),
    case("max_unpool2d", "max_unpool2d", "n 2 2 3", lambda x: F.max_unpool2d(x, UNPOOL.expand(x.shape), 2), spread),
    case("max_unpool3d", "max_unpool3d", "n 2 1 2 3",
         lambda x: F.max_unpool3d(x, UNPOOL.expand(x.shape), (1, 2, 2)), spread),
]  # fmt: skip


def reshaped(x: Tensor) -> Tensor:
    """(n, 3, 6, 7), through every way to say so."""
    y = x.flatten(1).unflatten(1, (3, 42)).reshape(x.shape[0], 3, 6, 7)
    y = y.permute(0, 2, 3, 1).transpose(1, 2).movedim(1, 2).contiguous().view(-1, 42, 3).mT
    y = y.unsqueeze(1).squeeze(1).clone().reshape(x.shape)
    return y.repeat(1, 1, 1, 2).repeat_interleave(2, dim=2).tile(1, 2, 1, 1)


def reordered(x: Tensor) -> Tensor:
    y = x.flip(1).roll(2, -1).rot90(2, (2, 3))
    y = F.pixel_unshuffle(F.pixel_shuffle(y.repeat(1, 4, 1, 1), 2), 2)
    y = F.channel_shuffle(y, 3).tril() + y.triu()
    return y.diagonal(dim1=-2, dim2=-1).diag_embed().expand_as(y[..., :6, :6])


def scattered(x: Tensor, y: Tensor) -> Tensor:
    """Copies y into x by every kind of writing; (n, 4, 3) both."""
    x = torch.slice_scatter(x, y[:, :2], 1, 1, 3)
    x = torch.select_scatter(x, y[:, 3], 1, 0)
    x = x.index_put((torch.tensor(0), torch.tensor([1, 2])), y[0, :2])
    x = x.index_add(1, INDEX, y).scatter(2, torch.zeros_like(x[..., :1]).long(), y[..., 1:2])
    x = x.scatter(2, torch.ones_like(x[..., :1]).long(), 0.75)
    return x.scatter_add(1, INDEX.reshape(1, 4, 1).expand(x.shape), y)


def scattered_more(x: Tensor, y: Tensor) -> Tensor:
    x = torch.diagonal_scatter(x, y[:, 0], 0, dim1=1, dim2=2).index_fill(1, torch.tensor([1]), 0.25)
    x = x.masked_scatter(torch.tensor([[True], [False], [False], [True]]).expand(x.shape), y)
    x = aten._unsafe_index_put(x, [None, INDEX[:2]], y[:, 2:], True)
    x = x.index_copy(1, INDEX[:2], y[:, 1:3])
    return x.put(torch.tensor([0, 5]), y[0, 0, :2]) + torch.fill(y, 0.5)


def selected(x: Tensor) -> Tensor:
    return x[:, 1] + x[:, 1:3, :].sum(1) + x[:, INDEX][:, 0] + x[:, KEEP][:, 2] + x.index_select(1, INDEX).sum(1)


PLUMBING = [
    case("reshaped", "reshape permute transpose unsqueeze clone repeat", IMAGE, reshaped,
         lambda x: x.repeat_interleave(2, 2).repeat(1, 2, 1, 2)),
    case("reordered", "flip roll rot90 pixel_shuffle pixel_unshuffle tril triu diagonal diag_embed", IMAGE, reordered),
    case("patches", "im2col col2im", IMAGE, lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 7), 3, padding=1)),
    case("unfold", "unfold", "n 3 9", lambda x: x.unfold(-1, 4, 2),
         lambda x: torch.stack([x[..., 0:4], x[..., 2:6], x[..., 4:8]], -2)),
    case("cat", "cat", "n 3, n 2", lambda x, y: torch.cat([x, y, torch.ones_like(x), x], 1)),
    case("stack", "stack", "n 3, n 3", lambda x, y: torch.stack([x, y, x], 1)),
    case("split", "split split_with_sizes add cat", "n 6",
         lambda x: torch.cat([*x.split(4, 1), sum(x.split([3, 3], 1))], 1)),
    case("chunk", "mul add sub", "n 6",
         lambda x: x.chunk(2, 1)[0] * 2 + x.tensor_split(3, 1)[1].sum(1, True) - x.unbind(1)[2][:, None]),
    case("select", "slice.Tensor select.int index.Tensor index_select", "n 4 3", selected),
    case("gather", "gather", "n 4", lambda x: x.gather(1, INDEX.expand(x.shape)), lambda x: x[:, INDEX]),
    case("take_along_dim", "take_along_dim", "3 4", lambda x: x.take_along_dim(INDEX[None], 1), lambda x: x[:, INDEX]),
    case("embedding", "embedding", "n 3", lambda x: F.embedding(torch.tensor([0, 0]), x), lambda x: x[[0, 0]]),
    case("scattered", "slice_scatter select_scatter index_put index_add scatter.src scatter.value scatter_add",
         "n 4 3, n 4 3", scattered),
    case("scattered_more", "diagonal_scatter index_fill masked_scatter _unsafe_index_put index_copy put",
         "n 4 3, n 4 3", scattered_more),
    case("selected_more", "_unsafe_index masked_select take as_strided unsafe_split", "3 4",
         lambda x: aten._unsafe_index(x, [None, INDEX])[0] + torch.cat([x]).as_strided([4], [2], 1) + x.take(INDEX)
         + x[:1].masked_select(KEEP[None]).sum() + aten.unsafe_split(x, 1)[2][0],
         lambda x: x[0, INDEX] + x.flatten()[[1, 3, 5, 7]] + x[0, INDEX] + x[0, KEEP].sum() + x[2]),
    case("copies", "alias_copy as_strided_copy diagonal_copy expand_copy narrow_copy permute_copy select_copy.int slice_copy.Tensor"
         " split_with_sizes_copy squeeze_copy t_copy transpose_copy.int unbind_copy.int unfold_copy unsqueeze_copy view_copy",
         "3 4", copied, turned),
    case("block_diag", "block_diag", "a b, b a", torch.block_diag),
    case("pads", "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
         "2 3 4 5", lambda x: aten.reflection_pad1d(x[0], [1, 2]).sum() + aten.reflection_pad2d(x, [1, 1, 0, 2])[..., :5]
         .sum() + aten.replication_pad1d(x[1], [1, 2])[:, 2, :5] + aten.replication_pad2d(x, [1, 1, 0, 2])[0, :, 4, 2:]
         + aten.reflection_pad3d(x, [1, 1, 0, 2, 1, 1])[0, 1:4, 1, 2:]
         + aten.replication_pad3d(x, [1, 1, 0, 2, 1, 1])[1, 1:4, 1, 2:]),
    case("where", "where.self", "n a, n a", lambda x, y: torch.where(x > 0.3, x, y)),
    case("where_number", "where.ScalarOther where.ScalarSelf", "n a",
         lambda x: torch.where(x > 0.3, x, 2.0) + torch.where(x > 0.3, -1.0, x)),
    case("masked_fill", "masked_fill", "n a", lambda x: x.masked_fill(x < 0, -3.0),
         lambda x: torch.where(x < 0, -3.0, x)),
    case("pad_value", "pad", "n 3", lambda x: F.pad(x, (1, 2), value=1.5), lambda x: F.pad(x - 1.5, (1, 2)) + 1.5),
    case("constant_pad_nd", "constant_pad_nd", "n 3", lambda x: aten.constant_pad_nd(x, [1, 2], 1.5),
         lambda x: F.pad(x - 1.5, (1, 2)) + 1.5),
    case("pad_replicate", "pad", IMAGE, lambda x: F.pad(x, (1, 2, 0, 1), "replicate")),
]  # fmt: skip


def softshrink(x: Tensor) -> Tensor:
    return torch.where(x > 0.5, x - 0.5, torch.where(x < -0.5, x + 0.5, 0 * x))


PIECEWISE = [
    case("relu", "relu", "n a", F.relu, lambda x: torch.where(x > 0, x, 0.0)),
    case("leaky_relu", "leaky_relu", "n a", lambda x: F.leaky_relu(x, 0.2), lambda x: torch.where(x > 0, x, 0.2 * x)),
    case("prelu", "prelu", "n 3 a", nn.PReLU(3), lambda m, x: torch.where(x > 0, x, m.weight[:, None] * x)),
    case("rrelu", "rrelu", "n a", nn.RReLU(), lambda m, x: torch.where(x > 0, x, (m.lower + m.upper) / 2 * x)),
    case("clamp", "clamp", "n a", lambda x: x.clamp(-0.5, 0.8),
         lambda x: torch.where((x >= -0.5) & (x <= 0.8), x, x.detach().clamp(-0.5, 0.8))),
    case("clamp_low", "clamp", "n a", lambda x: x.clamp(min=-0.5), lambda x: torch.where(x > -0.5, x, -0.5)),
    case("clamp_min", "clamp_min", "n a", lambda x: torch.clamp_min(x, 0.5), lambda x: torch.where(x > 0.5, x, 0.5)),
    case("clamp_max", "clamp_max", "n a", lambda x: torch.clamp_max(x, 0.5), lambda x: torch.where(x < 0.5, x, 0.5)),
    case("hardtanh", "hardtanh", "n a", F.hardtanh, lambda x: torch.where(x.abs() < 1, x, x.detach().sign())),
    case("relu6", "relu6", "n a", lambda x: F.relu6(4 * x),
         lambda x: torch.where((x > 0) & (x < 1.5), 4 * x, 6.0 * (x > 0))),
    case("threshold", "threshold", "n a", lambda x: F.threshold(x, 0.3, -2.0), lambda x: torch.where(x > 0.3, x, -2.0)),
    case("hardshrink", "", "n a", F.hardshrink, lambda x: x * (x.abs() > 0.5)),
    case("softshrink", "", "n a", F.softshrink, softshrink),
    case("abs", "abs", "n a", torch.abs, lambda x: x * x.sign().detach()),
    case("maximum_constant", "maximum", "n a", lambda x: torch.maximum(x, torch.full_like(x, 0.2)),
         lambda x: torch.where(x > 0.2, x, 0.2)),
    case("maximum", "maximum minimum", "n a b, n 1 b", lambda x, y: torch.maximum(x, y) - 2 * torch.minimum(x, y)),
    case("amax", "amax amin", "n a b", lambda x: x.amax(-1) - x.amin((1, 2))[:, None]),
    case("max_dim", "max", "n a", lambda x: x.max(1).values + 2 * x.min(1).values),
    case("sort", "sort", "n 5", lambda x: x.sort(1).values * torch.arange(1.0, 6.0),
         lambda x: x.gather(1, x.argsort(1)) * torch.arange(1.0, 6.0)),
    case("topk", "topk", "n 5", lambda x: x.topk(2, 1).values.sum(1)),
    case("median", "median", "n 5", lambda x: x.median(1).values),
    case("max_pool1d", "max_pool1d", "n 3 6", lambda x: F.max_pool1d(x, 2)),
    case("max_pool2d", "max_pool2d", IMAGE, lambda x: F.max_pool2d(x, 3, 2, padding=1)),
    case("max_pool3d", "max_pool3d", "n 2 4 4 4", lambda x: F.max_pool3d(x, 2)),
    case("adaptive_max_pool2d", "adaptive_max_pool2d", IMAGE, lambda x: F.adaptive_max_pool2d(x, 2)),
    case("adaptive_max_pool3d", "adaptive_max_pool3d", "n 2 4 4 4", lambda x: F.adaptive_max_pool3d(x, 2)),
    case("fractional_max_pool2d", "fractional_max_pool2d", IMAGE, lambda x: aten.fractional_max_pool2d(
        x, [2, 2], [3, 3], torch.full_like(x[:, :, :2, 0], 0.3))[0]),
    case("fractional_max_pool3d", "fractional_max_pool3d", "3 2 4 4 4", lambda x: aten.fractional_max_pool3d(
        x, [2, 2, 2], [2, 2, 2], torch.full_like(x[:, :, :3, 0, 0], 0.3))[0]),
    case("fmod", "fmod remainder.Tensor remainder.Scalar", "n a, n a : nonzero", lambda x, y: torch.fmod(x, 0.75) + torch.remainder(2 * x, y) - torch.remainder(x, 0.75),
         lambda x, y: 2 * x - 0.75 * ((x / 0.75).trunc() - (x / 0.75).floor()).detach() - y * (2 * x / y).detach().floor(), 50, loose=8),
    case("frac", "frac", "n a", torch.frac, lambda x: x - x.detach().trunc()),
    case("copysign", "copysign.Tensor copysign.Scalar", "n a, n a : nonzero",
         lambda x, y: torch.copysign(x, y) + torch.copysign(x, -1.0),
         lambda x, y: x * x.sign() * y.sign().detach() - x * x.sign()),
    case("nan_to_num", "nan_to_num", "n a", torch.nan_to_num, lambda x: 1.0 * x),
    case("fmax", "fmax fmin", "n a b, n 1 b", lambda x, y: torch.fmax(x, y) - 2 * torch.fmin(x, y)),
    case("cummax", "cummax cummin", "n 5", lambda x: x.cummax(1).values - 2 * x.cummin(1).values),
    # Where values are equal, any of them may get the gradient.
    case("order_statistics", "kthvalue nanmedian mode", "n 5",
         lambda x: x.kthvalue(2, 1).values + 2 * x.nanmedian(1).values + x.mode(1).values),
    case("_prelu_kernel", "_prelu_kernel", "n a", lambda x: aten._prelu_kernel(x, torch.full_like(x, 0.2)),
         lambda x: torch.where(x > 0, x, 0.2 * x)),
    # A step is a constant: a signed root keeps its whole attribution.
    case("signed_root", "abs mul", "n a : nonzero", lambda x: x.sign() * x.abs().sqrt(),
         lambda x: x * x.abs().rsqrt().detach()),
    case("steps", "mul", "n a", lambda x: x * (x.floor() + x.ceil() + x.round() + x.trunc()),
         lambda x: x * (x.floor() + x.ceil() + x.round() + x.trunc()).detach()),
]  # fmt: skip

LINEAR: list[Case] = [*LAYERS, *SUMS, *PLUMBING, *PIECEWISE]
