"""The vocabulary that all backends share: activations, losses and optimisers by name and by number.

Numbers, not types, travel into compiled kernels, so a new architecture compiles nothing.
"""

from typing import Any, NamedTuple

import numpy as np

IDENTITY, RELU, LEAKY_RELU, CLIPPED_RELU, SIGMOID, TANH, ELU, SELU, GELU, GELU_TANH, SILU, SOFTPLUS, SOFTMAX = range(13)
CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MSE, POISSON_NLL = range(4)
SGD, ADAM, ADAGRAD, RMSPROP = range(4)
FREE, MAX_VALUE, MAX_NORM, MAX_NORM_EACH = range(4)


def needs_input(code):
    """Whether an activation's derivative is taken from its input z; otherwise its output y is enough, and z is not kept."""
    return code == GELU or code == GELU_TANH or code == SILU


class Activation(NamedTuple):
    """An elementwise function (or the row-wise softmax) and its one parameter: slope, cap or alpha."""

    code: int
    parameter: float

    @property
    def needs_input(self) -> bool:
        return needs_input(self.code)


class Constraint(NamedTuple):
    """What updated arrays are held to.

    widths, int64 (n,): how many units a row of each array has, 1 where the array is one unit, 0 where it is left alone.
    """

    kind: int
    limit: float
    widths: Any


ACTIVATIONS = {
    "identity": Activation(IDENTITY, 0.0),
    "relu": Activation(RELU, 0.0),
    "leaky_relu": Activation(LEAKY_RELU, 0.01),
    "relu6": Activation(CLIPPED_RELU, 6.0),
    "clipped_relu": Activation(CLIPPED_RELU, 1.0),
    "sigmoid": Activation(SIGMOID, 0.0),
    "tanh": Activation(TANH, 0.0),
    "elu": Activation(ELU, 1.0),
    "selu": Activation(SELU, 1.6732632423543772),
    "gelu": Activation(GELU, 0.0),
    "gelu_tanh": Activation(GELU_TANH, 0.0),
    "silu": Activation(SILU, 0.0),
    "softplus": Activation(SOFTPLUS, 0.0),
    "softmax": Activation(SOFTMAX, 0.0),
}
LOSSES = {
    "cross_entropy": CROSS_ENTROPY,
    "binary_cross_entropy": BINARY_CROSS_ENTROPY,
    "mse": MSE,
    "poisson_nll": POISSON_NLL,
}
OK, BAD_LABEL, NONFINITE = range(3)


def workspace_size(widths, batch):
    """Values of scratch for a step on `batch` rows: every layer's y, z and dz, the gathered x and target, and the losses.

    Nonzeros are not gathered: their widths may begin with 0.
    """
    return batch * (3 * sum(widths[1:]) + widths[0] + 2 * widths[-1])


# what is told of a layer's health, in this order
HEALTH = "grad_norm largest zeros nonfinite mean spread saturated dead update_ratio".split()


class Nonzeros:
    """x (N, C) by what of it is not 0: of row i values[starts[i] : starts[i + 1]], in the columns at the same places, which rise.

    starts int64 (N + 1,), columns int32, values of x's dtype. Indexed by numbers of rows, or a slice, it gives an array.
    """

    def __init__(self, starts, columns, values, width):
        self.starts, self.columns, self.values = starts, columns, values
        self.shape, self.dtype = (len(starts) - 1, width), values.dtype

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        rows = np.arange(len(self))[rows]
        found = np.zeros((len(rows), self.shape[1]), self.dtype)
        for to, row in zip(found, rows, strict=True):
            part = slice(self.starts[row], self.starts[row + 1])
            to[self.columns[part]] = self.values[part]
        return found


class Watch:
    """What a chain's steps are asked to leave of their health.

    bands (L, 4): of each layer's outputs the limits of what is saturated, and of what is flat, as in health.py. rows (R, L, 9): batch i
    of a call writes rows[i], values in the order of HEALTH, where the number of updates before it is a multiple of `every`. kept is
    the backend's.
    """

    def __init__(self, bands, rows, every):
        self.bands, self.rows, self.every, self.kept = bands, rows, every, None

    def after(self, batches):
        """What is asked of a call whose first batch is the one after so many."""
        return Watch(self.bands, self.rows[batches:], self.every)
