"""What batch norm and layer norm share: arrays as rows, the backward over rows, and the backward that users call."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.kernels.types import NormGradients

# backward(dy, dgamma, dbeta) overwrites the gradients given to it and returns (dx, dresidual); without want_dx dx is None
NormBackward = Callable[..., tuple[Any, Any]]


def as_rows(a: np.ndarray) -> np.ndarray:
    """An array (..., C) as contiguous rows (M, C)."""
    return check.contiguous(a).reshape(prod(a.shape[:-1]), a.shape[-1])


def rows_backward(
    op: str, y: np.ndarray, xs: np.ndarray, has_residual: bool, differentiate: Callable[[Any, NormGradients], None]
) -> NormBackward:
    """The backward of y from the rows xs. differentiate(dys, gradients) runs the kernel over rows."""

    def backward(dy: Any, dgamma: np.ndarray, dbeta: np.ndarray, want_dx: bool = True) -> tuple[Any, Any]:
        dys = check.upstream(op, dy, y).reshape(xs.shape)
        dz = empty(xs.shape, xs) if has_residual else None
        dx = empty(xs.shape, xs) if want_dx else None
        differentiate(dys, NormGradients(dz, dx, dgamma, dbeta))
        return dx if dx is None else dx.reshape(y.shape), dz if dz is None else dz.reshape(y.shape)

    return backward


def full_backward(backward: NormBackward, affine: Any) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """The backward that users call: the gradients of x, gamma and beta, and of a residual."""

    def full(dy: np.ndarray) -> tuple[np.ndarray, ...]:
        dgamma, dbeta = empty(affine.gamma.shape, affine.gamma), empty(affine.beta.shape, affine.beta)
        dx, dresidual = backward(dy, dgamma, dbeta)
        return (dx, dgamma, dbeta) if dresidual is None else (dx, dgamma, dbeta, dresidual)

    return full
