"""The singular vectors of a map that is known by its products only."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fxgrad.errors import InputError

FEW = 10
"""A map with at most so many outputs for each singular vector asked for is written down, which takes fewer passes."""


class Product(Protocol):
    """A linear map."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def T(self) -> Product: ...
    def __matmul__(self, x: Tensor) -> Tensor: ...
    def dense(self) -> Tensor: ...


class SVD(NamedTuple):
    """Singular vectors, those with the largest values first; W is about U diag(S) Vh. All are float64.

    Attributes:
        U: (outputs, rank); the element of each column that is largest in size is positive.
        S: (rank,).
        Vh: (rank, inputs).
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


def singular(map: Product, rank: int, like: Tensor, dense: bool | None = None) -> SVD:
    """The singular vectors of a map with the largest singular values.

    Args:
        map: any.
        rank: how many.
        like: of the dtype and device that the map takes.
        dense: whether by its matrix; None: if it has few outputs.

    Raises:
        InputError: it has not so many, or SciPy is needed and not installed.
    """
    if not 0 < rank <= min(map.shape):
        raise InputError(f"a map of shape {map.shape} has 1 to {min(map.shape)} singular vectors, not {rank}.")
    few = map.shape[0] <= FEW * rank if dense is None else dense
    if few or rank == min(map.shape):  # ARPACK finds fewer than all
        U, S, Vh = torch.linalg.svd(map.dense().double(), full_matrices=False)
    else:
        U, S, Vh = (t.to(like.device) for t in _searched(map, rank, like))
    U, S, Vh = U[:, :rank], S[:rank], Vh[:rank]
    signs = U.gather(0, U.abs().argmax(0, keepdim=True)).sign()
    return SVD(U * signs, S, Vh * signs.mT)


def _searched(map: Product, rank: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By products with the map and its transpose: ARPACK."""
    try:
        from scipy.sparse.linalg import LinearOperator, svds
    except ImportError as error:
        raise InputError(f'singular vectors need SciPy ({error}): pip install "fxgrad[linear]"') from error

    def by(factor: Product) -> Any:
        return lambda x: (factor @ torch.from_numpy(np.ascontiguousarray(x)).to(like)).double().cpu().numpy()

    pairs = {"matvec": by(map), "matmat": by(map), "rmatvec": by(map.T), "rmatmat": by(map.T)}
    operator = LinearOperator(map.shape, dtype=np.float64, **pairs)
    start = np.random.default_rng(0).standard_normal(min(map.shape))
    rounding = 0 if like.dtype == torch.float64 else torch.finfo(like.dtype).eps
    U, S, Vh = svds(operator, k=rank, v0=start, tol=rounding)
    order = np.argsort(-S)
    return torch.from_numpy(U[:, order]), torch.from_numpy(S[order]), torch.from_numpy(Vh[order])
