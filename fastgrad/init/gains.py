"""fans, the numbers of inputs and outputs of a weight array, and gain, the factor of an activation: what init scales weights by."""

import math
from typing import Any

from fastgrad.core import check
from fastgrad.kernels import types

Shape = tuple[int, ...]

# as PyTorch's calculate_gain, for each activation's code; of a leaky relu see gain
GAINS = {types.IDENTITY: 1.0, types.SIGMOID: 1.0, types.TANH: 5 / 3, types.RELU: math.sqrt(2), types.SELU: 0.75}

# the numbers that fans returns
MODES = "fan_in", "fan_out"


def fans(shape: Shape, gates: int = 1) -> tuple[int, int]:
    """fan_in and fan_out of an array of this shape.

    fan_in is the product of all axes but the last. fan_out is the last axis, times kh kw for a convolution, divided by
    gates.

    Args:
        shape: (C_in, C_out) or (kh, kw, C_in / groups, C_out), each axis at least 1.
        gates: How many matrices lie side by side in the last axis: 4 for an LSTM's w_ih and w_hh, 3 for a GRU's.

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
    return fans_of("fans", shape, gates)


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
    return gain_of("gain", activation)


def fans_of(op: str, shape: Shape, gates: int = 1) -> tuple[int, int]:
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


def fan_of(op: str, shape: Shape, mode: str) -> int:
    """The fan of this name."""
    check.choice(op, "mode", mode, MODES)
    return fans_of(op, shape)[MODES.index(mode)]


def gain_of(op: str, activation: Any) -> float:
    code, parameter = check.activation(op, activation)
    if code == types.LEAKY_RELU:
        return math.sqrt(2 / (1 + parameter * parameter))
    if code not in GAINS:
        known = [name for name, f in types.ACTIVATIONS.items() if f.code in (types.LEAKY_RELU, *GAINS)]
        raise ValueError(f"{op}: activation must be one with a known gain, {', '.join(known)}; got {activation!r}")
    return GAINS[code]
