"""Initial weights scaled by their fans and by the gain of the activation: PyTorch's default, Xavier, He, LeCun; and orthogonal ones."""

import math

import numpy as np
from numpy.typing import DTypeLike

from fastgrad.core import check
from fastgrad.core.backend import kernels
from fastgrad.core.random import draw_key
from fastgrad.init.distributions import Rng, checked_generator, draw_normal, draw_uniform, empty_weights
from fastgrad.init.gains import Shape, fan_of, fans_of, gain_of

Form = str | tuple[str, float]


def fan_in_uniform(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, c: float = 1.0) -> np.ndarray:
    """Uniform on +-c / sqrt(fan_in): with c = 1 what PyTorch draws for linear layers and convolutions.

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        c: The factor, at least 0. As a model's init: ("fan_in_uniform", c).

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, c is negative or not finite, or the dtype is another one.
        TypeError: c is no number, an axis no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.fan_in_uniform((100, 10), 0)
        >>> bool((abs(w) <= 0.1).all())
        True
    """
    op = "fan_in_uniform"
    return draw_uniform(op, shape, rng, dtype, check.number(op, "c", c) / math.sqrt(fans_of(op, shape)[0]))


def xavier_uniform(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, activation: Form = "identity", gates: int = 1
) -> np.ndarray:
    """Uniform on +-gain sqrt(6 / (fan_in + fan_out)).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        activation: The activation that follows, by whose gain the values are scaled.
        gates: How many matrices lie side by side in the last axis: 4 for an LSTM's w_ih and w_hh, 3 for a GRU's.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, gates does not divide its last axis, the activation has no known gain,
            or the dtype is another one.
        TypeError: gates or an axis is no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.xavier_uniform((20, 40), 0, activation="tanh")
        >>> bool((abs(w) <= 5 / 3 * np.sqrt(6 / 60)).all())
        True

    References:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 16.
    """
    op = "xavier_uniform"
    return draw_uniform(op, shape, rng, dtype, gain_of(op, activation) * math.sqrt(6 / sum(fans_of(op, shape, gates))))


def xavier_normal(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, activation: Form = "identity", gates: int = 1
) -> np.ndarray:
    """Normal with standard deviation gain sqrt(2 / (fan_in + fan_out)).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        activation: The activation that follows, by whose gain the values are scaled.
        gates: How many matrices lie side by side in the last axis: 4 for an LSTM's w_ih and w_hh, 3 for a GRU's.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, gates does not divide its last axis, the activation has no known gain,
            or the dtype is another one.
        TypeError: gates or an axis is no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.xavier_normal((8, 32), 0, np.float32, gates=4)
        >>> w.shape, w.dtype
        ((8, 32), dtype('float32'))

    References:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 12.
    """
    op = "xavier_normal"
    return draw_normal(op, shape, rng, dtype, gain_of(op, activation) * math.sqrt(2 / sum(fans_of(op, shape, gates))))


def he_uniform(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, activation: Form = "relu", mode: str = "fan_in"
) -> np.ndarray:
    """Uniform on +-gain sqrt(3 / fan).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        activation: The activation that follows, by whose gain the values are scaled.
        mode: "fan_in", which keeps the spread of outputs, or "fan_out", that of gradients. As a model's init:
            ("he_uniform", "fan_out").

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, the activation has no known gain, mode is unknown, or the dtype is
            another one.
        TypeError: An axis is no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.he_uniform((24, 5), 0)
        >>> bool((abs(w) <= 0.5).all())
        True

    References:
        He et al. 2015, "Delving Deep into Rectifiers", eq. 10; "fan_out": eq. 14.
    """
    op = "he_uniform"
    return draw_uniform(op, shape, rng, dtype, gain_of(op, activation) * math.sqrt(3 / fan_of(op, shape, mode)))


def he_normal(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, activation: Form = "relu", mode: str = "fan_in"
) -> np.ndarray:
    """Normal with standard deviation gain / sqrt(fan).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        activation: The activation that follows, by whose gain the values are scaled.
        mode: "fan_in", which keeps the spread of outputs, or "fan_out", that of gradients. As a model's init:
            ("he_normal", "fan_out").

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, the activation has no known gain, mode is unknown, or the dtype is
            another one.
        TypeError: An axis is no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.he_normal((3, 3, 16, 32), 0, np.float32)
        >>> w.shape, w.dtype
        ((3, 3, 16, 32), dtype('float32'))

    References:
        He et al. 2015, "Delving Deep into Rectifiers", eq. 10; "fan_out": eq. 14.
    """
    op = "he_normal"
    return draw_normal(op, shape, rng, dtype, gain_of(op, activation) / math.sqrt(fan_of(op, shape, mode)))


def lecun_uniform(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Uniform on +-sqrt(3 / fan_in).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, or the dtype is another one.
        TypeError: An axis is no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.lecun_uniform((12, 5), 0)
        >>> bool((abs(w) <= 0.5).all())
        True

    References:
        LeCun et al. 1998, "Efficient BackProp", section 4.6.
    """
    return draw_uniform("lecun_uniform", shape, rng, dtype, math.sqrt(3 / fans_of("lecun_uniform", shape)[0]))


def lecun_normal(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Normal with standard deviation 1 / sqrt(fan_in).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, or the dtype is another one.
        TypeError: An axis is no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.lecun_normal((100, 100), 0)
        >>> abs(float(w.std()) - 0.1) < 0.01
        True

    References:
        LeCun et al. 1998, "Efficient BackProp", section 4.6.
        Klambauer et al. 2017, "Self-Normalizing Neural Networks": the weights of their nets of selu.
    """
    return draw_normal("lecun_normal", shape, rng, dtype, 1 / math.sqrt(fans_of("lecun_normal", shape)[0]))


def orthogonal(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, gain: float = 1.0, gates: int = 1
) -> np.ndarray:
    """gain times orthonormal columns, or rows where they are fewer, of the matrix of all axes but the last by the last.

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        gain: The factor, at least 0. As a model's init: ("orthogonal", gain).
        gates: How many matrices lie side by side in the last axis, each drawn apart: 4 for an LSTM's w_ih and w_hh,
            3 for a GRU's.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, gates does not divide its last axis, gain is negative or not finite,
            or the dtype is another one.
        TypeError: gain is no number, gates or an axis no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.orthogonal((6, 4), 0)
        >>> bool(np.allclose(w.T @ w, np.eye(4)))
        True

    References:
        Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks".
    """
    op = "orthogonal"
    gain, (fan_in, _) = check.number(op, "gain", gain), fans_of(op, shape, gates)
    out, source = empty_weights(op, shape, dtype), checked_generator(op, rng)
    # (gates, fan_in, C_out / gates)
    for matrix in out.reshape(fan_in, gates, -1).swapaxes(0, 1):
        kernels().orthogonal(matrix, draw_key(source), gain)
    return out
