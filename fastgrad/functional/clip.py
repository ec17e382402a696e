"""Clipping: gradients by norm, by value and by the size of their weights; and weights themselves. All in place.

Each takes an array or a list of arrays of one dtype and any shapes and layouts, which may not overlap. Where a call raises, none has been
written.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import check
from fastgrad.core.array_list import ArrayList, check_same_shapes
from fastgrad.core.errstate import silent
from fastgrad.functional.units import array_norms, scale_arrays, scales_to, unit_counts

ON_NONFINITE = "raise", "skip", "ignore"
PER = "all", "array", "unit"
# PyTorch's term, which keeps a norm of 0 from dividing
EPS = 1e-6


class Clipped(NamedTuple):
    """What clip_grad_norm returns.

    Args:
        norm: The norm of all values, before.
        scale: What they were multiplied by.
        norms: The norm of each array before, float64 (n,).
        nonfinite: Names of the arrays with NaN or infinity.
    """

    norm: float
    scale: float
    norms: np.ndarray
    nonfinite: list[str]


def clip_grad_norm(
    grads: Any,
    max_norm: float,
    norm_type: float = 2.0,
    names: Sequence[str] | None = None,
    on_nonfinite: str = "raise",
) -> Clipped:
    """Scale all gradients so that their norm, of all values together, is at most max_norm.

    grads *= min(1, max_norm / (norm + 1e-6)), norm = (sum |g|^p)^(1/p)

    As torch.nn.utils.clip_grad_norm_, in place.

    Args:
        grads: An array or a list of arrays of one dtype, any shapes and layouts, which may not overlap.
        max_norm: The largest norm, above 0.
        norm_type: p: 1, 2, infinity ("inf" too) or any other number above 0.
        names: The name of each array, for errors; without them "0", "1", ...
        on_nonfinite: What to do for NaN or infinity in an array. "raise" raises and "skip" only returns the names;
            neither writes. "ignore" takes the norm as it is: infinity makes zeros and NaN, and NaN makes all NaN.

    Returns:
        (norm, scale, norms, nonfinite): the norm before, what the gradients were multiplied by, the norm of each array
        before (n,), and the names of the arrays with NaN or infinity.

    Raises:
        FloatingPointError: An array has NaN or infinity, and on_nonfinite is "raise".
        ValueError: A setting is out of its range, an array is read-only or twice in the list, or names are of another
            number.
        TypeError: grads are no arrays of one floating dtype, or a setting is no number.

    Example:
        >>> grads = [np.array([3.0]), np.array([4.0])]
        >>> clipped = fg.clip_grad_norm(grads, max_norm=1.0)
        >>> clipped.norm, [g.round(3).tolist() for g in grads]
        (5.0, [[0.6], [0.8]])

    References:
        Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """
    op = "clip_grad_norm"
    return clip_together(op, ArrayList(op, "grads", grads), max_norm, norm_type, names, on_nonfinite)


def clip_together(
    op: str, arrays: Any, max_norm: float, norm_type: float, names: Sequence[str] | None, on_nonfinite: str
) -> Clipped:
    """clip_grad_norm of an ArrayList, or of an object like it: torch/ops/clip.py has one."""
    max_norm = check.number(op, "max_norm", max_norm, zero=False)
    p = _norm_type(op, norm_type)
    check.choice(op, "on_nonfinite", on_nonfinite, ON_NONFINITE)
    if names is not None:
        check.sequence(op, "names", names, len(arrays.flat))
    norms, counts = array_norms(arrays, p)
    norm = arrays.kernels.joint_norm(norms, p)
    bad = [str(i) if names is None else names[i] for i in np.flatnonzero(counts).tolist()] if counts.any() else []
    if bad and on_nonfinite == "raise":
        raise FloatingPointError(f"{op}: grads must be finite, got NaN or infinity in {', '.join(bad)}")
    scale = max_norm / (norm + EPS)
    if scale >= 1 or (bad and on_nonfinite == "skip"):
        return Clipped(norm, 1.0, norms, bad)
    scale_arrays(arrays, None, np.full(len(norms), scale))
    return Clipped(norm, scale, norms, bad)


def clip_grad_norm_each(grads: Any, max_norm: float, norm_type: float = 2.0) -> np.ndarray:
    """clip_grad_norm of each array by itself, in place. NaN in a norm leaves the array as it is.

    g *= min(1, max_norm / (norm of g + 1e-6)) for each array g

    Args:
        grads: An array or a list of arrays of one dtype, any shapes and layouts, which may not overlap.
        max_norm: The largest norm, above 0.
        norm_type: p of the norm (sum |g|^p)^(1/p): 1, 2, infinity ("inf" too) or any other number above 0.

    Returns:
        The norm of each array before, float64 (n,).

    Raises:
        ValueError: A setting is out of its range, or an array is read-only or twice in the list.
        TypeError: grads are no arrays of one floating dtype, or a setting is no number.

    Example:
        >>> grads = [np.array([3.0, 4.0]), np.array([0.5])]
        >>> fg.clip_grad_norm_each(grads, max_norm=1.0).tolist()
        [5.0, 0.5]
        >>> [g.round(3).tolist() for g in grads]
        [[0.6, 0.8], [0.5]]
    """
    op = "clip_grad_norm_each"
    max_norm, p = check.number(op, "max_norm", max_norm, zero=False), _norm_type(op, norm_type)
    arrays = ArrayList(op, "grads", grads)
    norms, _ = array_norms(arrays, p)
    scale_arrays(arrays, None, scales_to(max_norm, norms + EPS))
    return norms


def clip_grad_value(grads: Any, limit: float) -> None:
    """Hold each value to -limit .. limit, in place; NaN stays. As torch.nn.utils.clip_grad_value_.

    Args:
        grads: An array or a list of arrays of one dtype, any shapes and layouts, which may not overlap.
        limit: The largest magnitude, at least 0.

    Raises:
        ValueError: limit is negative or not finite, or an array is read-only or twice in the list.
        TypeError: grads are no arrays of one floating dtype, or limit is no number.

    Example:
        >>> grads = np.array([0.5, -3.0])
        >>> fg.clip_grad_value(grads, limit=1.0)
        >>> grads.tolist()
        [0.5, -1.0]
    """
    _clamp("clip_grad_value", "grads", grads, limit)


def clip_weights(params: Any, limit: float) -> None:
    """Hold each weight to -limit .. limit, in place; NaN stays.

    Args:
        params: An array or a list of arrays of one dtype, any shapes and layouts, which may not overlap.
        limit: The largest magnitude, at least 0.

    Raises:
        ValueError: limit is negative or not finite, or an array is read-only or twice in the list.
        TypeError: params are no arrays of one floating dtype, or limit is no number.

    Example:
        >>> w = np.array([0.005, -0.3])
        >>> fg.clip_weights(w, limit=0.01)
        >>> w.tolist()
        [0.005, -0.01]

    References:
        Arjovsky et al. 2017, "Wasserstein GAN", algorithm 1.
    """
    _clamp("clip_weights", "params", params, limit)


@silent
def clip_grad_adaptive(grads: Any, params: Any, clipping: float = 0.01, eps: float = 1e-3) -> None:
    """Scale each unit's gradient where it is too large for the unit's weights, in place.

    g *= min(1, clipping max(||w||, eps) / ||g||) for the gradient g and the weights w of each unit

    Units are an array's last axis: the columns of a dense w (C_in, C_out), the filters of a conv w (kh, kw, C_in,
    C_out), also where C_in is 1. An array of one axis is one unit. NaN in a norm leaves the unit as it is. The paper
    does not clip the last layer: leave it out of the lists.

    Args:
        grads: An array or a list of arrays of one dtype with 1, 2 or 4 axes, which may not overlap.
        params: The weights, like grads. Not written.
        clipping: The largest share of the weights' norm that a gradient's may be, above 0.
        eps: The least norm that weights count with, above 0.

    Raises:
        ValueError: A setting is out of its range, params are of other shapes, an array has not 1, 2 or 4 axes, or one
            of grads is read-only or twice in the list.
        TypeError: grads and params are no arrays of one floating dtype, or a setting is no number.

    Example:
        >>> w, grad = np.array([[3.0], [4.0]]), np.array([[6.0], [8.0]])
        >>> fg.clip_grad_adaptive(grad, w, clipping=0.1)
        >>> grad.round(3).tolist()
        [[0.3], [0.4]]

    References:
        Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization", eq. 3.
    """
    op = "clip_grad_adaptive"
    clipping, eps = check.number(op, "clipping", clipping, zero=False), check.number(op, "eps", eps, zero=False)
    arrays = ArrayList(op, "grads", grads)
    weights = ArrayList(op, "params", params, arrays.flat[0], written=False)
    check_same_shapes(op, "grads", arrays.flat, "params", weights.flat)
    widths = unit_counts(op, "grads", arrays.flat)
    (norms, _), (sizes, _) = array_norms(arrays, 2.0, widths), array_norms(weights, 2.0, widths)
    scale_arrays(arrays, widths, scales_to(clipping * np.maximum(sizes, eps), norms))


def project_weights(params: Any, max_norm: float, per: str = "all") -> None:
    """Scale weights to the norm max_norm where theirs is larger, in place.

    w *= min(1, max_norm / ||w||)

    NaN in a norm leaves its weights as they are.

    Args:
        params: An array or a list of arrays of one dtype, which may not overlap; for units with 1, 2 or 4 axes.
        max_norm: The largest norm, above 0.
        per: Whose norm: "all" arrays together, each "array", or each "unit", as of clip_grad_adaptive.

    Raises:
        ValueError: max_norm is not above 0 and finite, per is unknown, an array has no units, or one is read-only or
            twice in the list.
        TypeError: params are no arrays of one floating dtype, or max_norm is no number.

    Example:
        >>> w = np.array([[3.0, 0.3], [4.0, 0.4]])
        >>> fg.project_weights(w, max_norm=1.0, per="unit")
        >>> w.round(3).tolist()
        [[0.6, 0.3], [0.8, 0.4]]

    References:
        Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", section 5.1: per
        unit.
    """
    op = "project_weights"
    max_norm = check.number(op, "max_norm", max_norm, zero=False)
    check.choice(op, "per", per, PER)
    arrays = ArrayList(op, "params", params)
    widths = unit_counts(op, "params", arrays.flat) if per == "unit" else None
    norms, _ = array_norms(arrays, 2.0, widths)
    if per == "all":
        norms = np.full(len(norms), arrays.kernels.joint_norm(norms, 2.0))
    scale_arrays(arrays, widths, scales_to(max_norm, norms))


def _norm_type(op: str, value: float) -> float:
    """p, for which PyTorch too takes "inf"; a number that is too large for a float is no infinity that was asked for."""
    infinite = value == "inf" if isinstance(value, str) else isinstance(value, float | np.floating) and value == np.inf
    return np.inf if infinite else check.number(op, "norm_type", value, zero=False)


def _clamp(op: str, name: str, value: Any, limit: float) -> None:
    limit = check.number(op, "limit", limit)
    arrays = ArrayList(op, name, value)
    arrays.kernels.clamp_arrays(arrays.flat, limit)
    arrays.write()
