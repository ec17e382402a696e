"""Initial weights: f(shape, rng, dtype) draws them from a numpy Generator or a seed, with the same bits on every backend and thread count.

A float32 array gets the values of a float64 one, rounded. A model's `init` is a name of these, a pair of the name and its first option
(("normal", 0.01)), or a function of (shape, rng), such as functools.partial(fg.init.he_normal, activation="tanh").

fan_in is how many values go into one output, fan_out how many outputs one value goes into: C_in and C_out of a dense w (C_in, C_out), and
kh kw times as much of a convolution's (kh, kw, C_in / groups, C_out), where C_out counts whole, as in PyTorch. An LSTM's w_ih (C, 4H)
and w_hh (H, 4H) are four matrices side by side: with gates=4, fan_out is H, and orthogonal draws each apart.

Weights from normal with an L2 term in the loss: weight_decay of fg.optim's SGD and Adam is that term,
0.5 * weight_decay * (params**2).sum(), whose gradient is added to the loss's; the loss that is reported is without it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.core.random import draw_key, generator
from fastgrad.kernels import types

__all__ = [
    "constant",
    "fan_in_uniform",
    "fans",
    "gain",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "orthogonal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

Shape = tuple[int, ...]
Rng = np.random.Generator | int
Form = str | tuple[str, float]

# as PyTorch's calculate_gain, for each activation's code; of a leaky relu see gain
GAINS = {types.IDENTITY: 1.0, types.SIGMOID: 1.0, types.TANH: 5 / 3, types.RELU: math.sqrt(2), types.SELU: 0.75}


def fans(shape: Shape, gates: int = 1) -> tuple[int, int]:
    """fan_in and fan_out of an array of this shape.

    fan_in is the product of all axes but the last. fan_out is the last axis, times kh kw for a convolution, divided by
    gates.

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out), each axis at least 1.
        gates: How many matrices lie side by side in the last axis: 4 for an LSTM's w_ih and w_hh.

    Returns:
        (fan_in, fan_out), two integers.

    Raises:
        ValueError: The shape is of another form, or gates does not divide its last axis.
        TypeError: An axis or gates is no integer.

    Example:
        >>> fg.init.fans((3, 3, 16, 32))
        (144, 288)
        >>> fg.init.fans((8, 40), gates=4)
        (8, 10)
    """
    return _fans("fans", shape, gates)


def gain(activation: str | tuple[str, float]) -> float:
    """The factor that keeps the spread of values that pass this activation, as PyTorch's calculate_gain.

    It is 1 for identity and sigmoid, 5/3 for tanh, sqrt(2) for relu, sqrt(2 / (1 + slope^2)) for leaky_relu, and 3/4
    for selu.

    Args:
        activation: One of these names, or a pair of a name and its parameter: ("leaky_relu", 0.2).

    Returns:
        The gain, a number without unit.

    Raises:
        ValueError: The activation is unknown, or one without a known gain.

    Example:
        >>> fg.init.gain("selu")
        0.75
        >>> round(fg.init.gain(("leaky_relu", 0.2)), 4)
        1.3868

    References:
        He et al. 2015, "Delving Deep into Rectifiers", section 2.2: relu and leaky_relu.
    """
    return _gain("gain", activation)


def zeros(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64) -> np.ndarray:
    """An array of zeros; draws nothing.

    Args:
        shape: Any shape.
        rng: Not used; it is there since every function of this module takes it.
        dtype: float32 or float64.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The dtype is another one.

    Example:
        >>> fg.init.zeros((2, 3), 0).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return np.zeros(shape, check.dtype("zeros", dtype))


@silent
def constant(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, value: float = 0.0) -> np.ndarray:
    """An array of one value; draws nothing.

    Args:
        shape: Any shape.
        rng: Not used; it is there since every function of this module takes it.
        dtype: float32 or float64.
        value: The value, a finite number. As a model's init: ("constant", value).

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The value is not finite, or the dtype is another one.
        TypeError: The value is no number.

    Example:
        >>> fg.init.constant((2, 2), 0, value=0.5).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    return np.full(shape, check.finite("constant", "value", value), check.dtype("constant", dtype))


def normal(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, std: float = 0.05, mean: float = 0.0
) -> np.ndarray:
    """Normal with this mean and standard deviation.

    Args:
        shape: Any shape of at least one axis.
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        std: The standard deviation, at least 0. As a model's init: ("normal", std).
        mean: The mean, a finite number.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: std or mean is out of its range, the dtype is another one, or the shape has no axis.
        TypeError: shape is no tuple or list of integers, std or mean no number, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.normal((100, 100), 0, std=0.01)
        >>> abs(float(w.std()) - 0.01) < 1e-3
        True
    """
    return _normal(
        "normal", shape, rng, dtype, check.number("normal", "std", std), check.finite("normal", "mean", mean)
    )


def uniform(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, limit: float = 0.05) -> np.ndarray:
    """Uniform on +-limit.

    Args:
        shape: Any shape of at least one axis.
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        limit: The largest magnitude, at least 0. As a model's init: ("uniform", limit).

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: limit is negative or not finite, the dtype is another one, or the shape has no axis.
        TypeError: shape is no tuple or list of integers, limit no number, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.uniform((4, 3), 0, np.float32, limit=0.1)
        >>> w.shape, w.dtype, bool((abs(w) <= np.float32(0.1)).all())
        ((4, 3), dtype('float32'), True)
    """
    return _uniform("uniform", shape, rng, dtype, check.number("uniform", "limit", limit))


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
    return _uniform(op, shape, rng, dtype, check.number(op, "c", c) / math.sqrt(_fans(op, shape)[0]))


def xavier_uniform(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, activation: Form = "identity", gates: int = 1
) -> np.ndarray:
    """Uniform on +-gain sqrt(6 / (fan_in + fan_out)).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        activation: The one that follows, whose gain is taken: see gain.
        gates: How many matrices lie side by side in the last axis: 4 for an LSTM's w_ih and w_hh.

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
    return _uniform(op, shape, rng, dtype, _gain(op, activation) * math.sqrt(6 / sum(_fans(op, shape, gates))))


def xavier_normal(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, activation: Form = "identity", gates: int = 1
) -> np.ndarray:
    """Normal with standard deviation gain sqrt(2 / (fan_in + fan_out)).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        activation: The one that follows, whose gain is taken: see gain.
        gates: How many matrices lie side by side in the last axis: 4 for an LSTM's w_ih and w_hh.

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
    return _normal(op, shape, rng, dtype, _gain(op, activation) * math.sqrt(2 / sum(_fans(op, shape, gates))))


def he_uniform(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, activation: Form = "relu") -> np.ndarray:
    """Uniform on +-gain sqrt(3 / fan_in).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        activation: The one that follows, whose gain is taken: see gain.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, the activation has no known gain, or the dtype is another one.
        TypeError: An axis is no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.he_uniform((24, 5), 0)
        >>> bool((abs(w) <= 0.5).all())
        True

    References:
        He et al. 2015, "Delving Deep into Rectifiers", eq. 10.
    """
    op = "he_uniform"
    return _uniform(op, shape, rng, dtype, _gain(op, activation) * math.sqrt(3 / _fans(op, shape)[0]))


def he_normal(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, activation: Form = "relu") -> np.ndarray:
    """Normal with standard deviation gain / sqrt(fan_in).

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        activation: The one that follows, whose gain is taken: see gain.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The shape is of another form, the activation has no known gain, or the dtype is another one.
        TypeError: An axis is no integer, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.he_normal((3, 3, 16, 32), 0, np.float32)
        >>> w.shape, w.dtype
        ((3, 3, 16, 32), dtype('float32'))

    References:
        He et al. 2015, "Delving Deep into Rectifiers", eq. 10.
    """
    op = "he_normal"
    return _normal(op, shape, rng, dtype, _gain(op, activation) / math.sqrt(_fans(op, shape)[0]))


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
    return _uniform("lecun_uniform", shape, rng, dtype, math.sqrt(3 / _fans("lecun_uniform", shape)[0]))


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
    return _normal("lecun_normal", shape, rng, dtype, 1 / math.sqrt(_fans("lecun_normal", shape)[0]))


def orthogonal(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, gain: float = 1.0, gates: int = 1
) -> np.ndarray:
    """gain times orthonormal columns, or rows where they are fewer, of the matrix of all axes but the last by the last.

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out).
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        gain: The factor, at least 0. As a model's init: ("orthogonal", gain).
        gates: How many matrices lie side by side in the last axis, each drawn apart: 4 for an LSTM's w_ih and w_hh.

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
    gain, (fan_in, _) = check.number(op, "gain", gain), _fans(op, shape, gates)
    out, rng = _empty(op, shape, dtype), _generator(op, rng)
    # (gates, fan_in, C_out / gates)
    for matrix in out.reshape(fan_in, gates, -1).swapaxes(0, 1):
        kernels().orthogonal(matrix, draw_key(rng), gain)
    return out


INITS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f
    for f in (
        zeros, constant, normal, uniform, fan_in_uniform, xavier_uniform, xavier_normal, he_uniform, he_normal,
        lecun_uniform, lecun_normal, orthogonal,
    )
}  # fmt: skip
# what the second of a pair is
OPTIONS = {"constant": "value", "normal": "std", "uniform": "limit", "fan_in_uniform": "c", "orthogonal": "gain"}


def chosen(op: str, init: Any) -> Callable[..., np.ndarray]:
    """The function of this name, or of this pair of a name and its option, or the caller's own."""
    if callable(init):
        return init
    name, *option = init if isinstance(init, tuple) and len(init) == 2 else (init,)
    check.choice(op, "init", name, INITS)
    if not option:
        return INITS[name]
    if name not in OPTIONS:
        raise ValueError(f"{op}: init {name!r} takes no option; {', '.join(OPTIONS)} do")
    check.finite(op, f"the {OPTIONS[name]} of init {name!r}", option[0])
    return functools.partial(INITS[name], **{OPTIONS[name]: option[0]})


def _fans(op: str, shape: Shape, gates: int = 1) -> tuple[int, int]:
    gates = check.count(op, "gates", gates)
    if (
        not isinstance(shape, tuple | list)
        or len(shape) < 2
        or any(check.count(op, "an axis of shape", n, 0) < 1 for n in shape)
    ):
        raise ValueError(f"{op}: shape must be (C_in, C_out) or (kh, kw, C_in, C_out), each at least 1, got {shape}")
    if shape[-1] % gates:
        raise ValueError(f"{op}: gates must divide the last axis, {shape[-1]}, got {gates}")
    return math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1] // gates


def _gain(op: str, activation: Any) -> float:
    code, parameter = check.activation(op, activation)
    if code == types.LEAKY_RELU:
        return math.sqrt(2 / (1 + parameter * parameter))
    if code not in GAINS:
        known = [name for name, f in types.ACTIVATIONS.items() if f.code in (types.LEAKY_RELU, *GAINS)]
        raise ValueError(f"{op}: activation must be one with a known gain, {', '.join(known)}; got {activation!r}")
    return GAINS[code]


def _generator(op: str, rng: Any) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    return generator(check.count(op, "rng, if no numpy Generator,", rng, 0, None))


def _empty(op: str, shape: Shape, dtype: DTypeLike) -> np.ndarray:
    check.each(op, "shape", shape, len(shape) if isinstance(shape, tuple | list) else None)
    return empty(tuple(check.count(op, f"shape[{i}]", n, 0) for i, n in enumerate(shape)), check.dtype(op, dtype))


def _normal(op: str, shape: Shape, rng: Rng, dtype: DTypeLike, std: float, mean: float = 0.0) -> np.ndarray:
    out = _empty(op, shape, dtype)
    kernels().normal(out.reshape(-1), draw_key(_generator(op, rng)), mean, std)
    return out


def _uniform(op: str, shape: Shape, rng: Rng, dtype: DTypeLike, limit: float) -> np.ndarray:
    out = _empty(op, shape, dtype)
    kernels().uniform(out.reshape(-1), draw_key(_generator(op, rng)), -limit, limit)
    return out
