"""Types that all backends share.

- Integer codes: activations, losses, optimisers, constraints, status; and the names that users give them (ACTIVATIONS, LOSSES).
- NamedTuples that group the arguments of a kernel: the operands of an op, the arrays saved for backward, the gradients.
- Sizes and views of buffers: chain_buffers, lstm_buffers, lstm_variant_buffers, gru_buffers, workspace_size.
- Nonzeros: a sparse matrix by rows (CSR). Watch: at which training steps health is measured, and where it is written.

Compiled kernels receive codes as integers, not as types, so a new architecture compiles nothing. Codes are no IntEnum: a member as an
argument costs the call of a compiled function 48 us in place of 0.7, and compiles it once more.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# activations, losses, optimisers, constraints, and the status of a step
IDENTITY, RELU, LEAKY_RELU, CLIPPED_RELU, SIGMOID, TANH, ELU, SELU, GELU, GELU_TANH, SILU, SOFTPLUS, SOFTMAX = range(13)
CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MSE, POISSON_NLL, MAE, HUBER = range(6)
SGD, ADAM, ADAGRAD, RMSPROP = range(4)
FREE, MAX_VALUE, MAX_NORM, MAX_NORM_EACH = range(4)
OK, BAD_LABEL, NONFINITE = range(3)
# the group of an array that is not updated
FROZEN = -1
# the ignore_index of a loss that ignores no class number
NO_LABEL = -(2**63)


def needs_input(code):
    """Whether an activation's derivative is computed from its input z; otherwise its output y is enough, and z is not saved."""
    return code == GELU or code == GELU_TANH or code == SILU


class Activation(NamedTuple):
    """An elementwise function (or the row-wise softmax) and its one parameter: slope, cap or alpha."""

    code: int
    parameter: float

    @property
    def needs_input(self) -> bool:
        return needs_input(self.code)


class Loss(NamedTuple):
    """A loss with its options.

    parameter: label_smoothing of cross_entropy, delta of huber. weights (K,) of y's dtype, or None: of the classes of cross_entropy, of the
    positive targets of binary_cross_entropy. ignore_index: class number of rows that are left out, or NO_LABEL.
    """

    code: int
    parameter: float = 0.0
    weights: Any = None
    ignore_index: int = NO_LABEL

    @property
    def by_row(self) -> bool:
        """Whether a row has one loss, not one for each value."""
        return self.code == CROSS_ENTROPY

    def is_fused_with(self, activation: Activation) -> bool:
        """Whether the loss is computed from the input of this activation, which its own formula has."""
        return (self.code, activation.code) in ((CROSS_ENTROPY, SOFTMAX), (BINARY_CROSS_ENTROPY, SIGMOID))


class LayerSaved(NamedTuple):
    """What a layer's forward saves for backward, of the output's shape: z, the activation's input, and y, its output.

    z is the array y itself if the activation does not need its input; where a function says so it may be None.
    """

    z: Any
    y: Any


class Chain(NamedTuple):
    """Dense layers in a row: x (N, C), weights[l] (C_l, K_l), biases[l] (K_l,) or None, activations[l], residual (N, K) or None."""

    x: Any
    weights: Sequence[Any]
    biases: Sequence[Any]
    activations: Sequence[Activation]
    residual: Any


class ChainSaved(NamedTuple):
    """zs[l] and outputs[l] (N, K_l) of every layer; zs[l] is outputs[l] where the activation does not need its input."""

    zs: Sequence[Any]
    outputs: Sequence[Any]


def chain_buffers(
    rows: int, widths: Iterable[int], activations: Iterable[Activation], empty: Callable, like: Any
) -> ChainSaved:
    """The arrays that a forward of so many rows writes, from empty((N, K), like): every y, and z where its activation needs it."""
    zs, outputs = [], []
    for width, f in zip(widths, activations, strict=True):
        y = empty((rows, width), like)
        outputs.append(y)
        zs.append(empty((rows, width), like) if needs_input(f.code) else y)
    return ChainSaved(zs, outputs)


class ChainGradients(NamedTuple):
    """What a chain's backward writes: dzs[l] (N, K_l), dx (N, C) or None, dweights[l], and dbiases[l] or None."""

    dzs: Sequence[Any]
    dx: Any
    dweights: Sequence[Any]
    dbiases: Sequence[Any]


class Net(NamedTuple):
    """A chain in flat arrays: table (L, 5), int64, and parameters (L,), float64, of the activations, as training_step.py describes them;
    loss, a Loss; params and grads (P,); work, scratch of workspace_size.

    In the backend "cpu" params may be an AddressList of each layer's w, an array (n_out, n_in) as PyTorch has it, and b: then w is turned
    in grads and in the rule's state too, and the offsets of the table are theirs.
    """

    table: Any
    parameters: Any
    loss: Loss
    params: Any
    grads: Any
    work: Any


class UpdateRule(NamedTuple):
    """How parameters are updated: optimizer, its state (S, P) and hyper (7,), float64; the gradients' norm is clipped to clip_norm;
    masks, bool (P,), False where a value is pruned, or None; constraint, or None.

    groups, int64 (n,), or None: for each array the row of hyper, which is then (G, 7), or FROZEN. A frozen array and its state stay as
    they are, pruned or not; its gradient is not in the norm; and the widths of a constraint are 0 there.
    """

    optimizer: int
    state: Any
    hyper: Any
    clip_norm: float
    masks: Any
    constraint: Any
    groups: Any = None


class Batches(NamedTuple):
    """Batches of an epoch: rows order[i : i + batch_size] of the data, int64; the last may be shorter; and each batch's rate, float64 (B,),
    or with groups those of every group (B, G).
    """

    order: Any
    batch_size: int
    rates: Any


class LSTMWeights(NamedTuple):
    """w_ih (C, 4H), w_hh (P, 4H), and b (4H,), peephole (3, H) and w_proj (H, P), each of which may be None; or their gradients.

    fastgrad/functional/lstm_weights.py explains the layout, and makes the group from a caller's arrays.
    """

    w_ih: Any
    w_hh: Any
    b: Any = None
    peephole: Any = None
    w_proj: Any = None


class States(NamedTuple):
    """h (N, P) and c (N, H), in the caller's order; or their gradients."""

    h: Any
    c: Any


class PackedBatch(NamedTuple):
    """The layout of packed rows, see packing.py: order (N,) and offsets (T + 1,), int64. With reverse a recurrent op goes from each
    sequence's last step to its first.
    """

    order: Any
    offsets: Any
    reverse: bool = False


class LSTMSaved(NamedTuple):
    """gates (R, 4H) = i, f, g, o; c and tanh_c (R, H), or both None without backward; h (R, P)."""

    gates: Any
    c: Any
    tanh_c: Any
    h: Any


def lstm_buffer_size(rows: int, hidden: int, keep: bool = True) -> int:
    """Values in the buffer of an LSTM's forward over so many rows: gates and, with keep, c and tanh c for backward."""
    return (6 if keep else 4) * rows * hidden


def lstm_buffers(buffer: Any, h: Any, hidden: int, keep: bool = True) -> LSTMSaved:
    """The arrays that a forward writes: its output h (R, P), and views into a buffer of lstm_buffer_size values."""
    rows, size = len(h), len(h) * hidden
    gates = buffer[: 4 * size].reshape(rows, 4 * hidden)
    if not keep:
        return LSTMSaved(gates, None, None, h)
    c, tanh_c = buffer[4 * size : 5 * size], buffer[5 * size : 6 * size]
    return LSTMSaved(gates, c.reshape(rows, hidden), tanh_c.reshape(rows, hidden), h)


class LSTMUpstream(NamedTuple):
    """The upstream gradients dh (R, P), dh_n (N, P) and dc_n (N, H), each of which may be None."""

    dh: Any
    dh_n: Any
    dc_n: Any


class LSTMGradients(NamedTuple):
    """What an LSTM's backward writes: dz (R, 4H), which may be the gates; dxs (R, C) or None; the gradients of the weights and of
    the start states; squares (R,), float64, the squared norm of dL/dh of each row, over all paths, or None.
    """

    dz: Any
    dxs: Any
    weights: LSTMWeights
    start: States
    squares: Any


class LSTMVariant(NamedTuple):
    """What an LSTM has beside its weights: rates, from 0 and below 1, and the key of their random numbers, None in evaluation; and the eps
    of its layer norms.
    """

    recurrent_dropout: float = 0.0
    zoneout_c: float = 0.0
    zoneout_h: float = 0.0
    key: int | None = None
    eps: float = 1e-5

    @property
    def factors(self) -> tuple[tuple[float, int], ...]:
        """(factor, limit) of g, of the new c and of the new h: factor where the random number is at least limit, else 0."""
        if self.key is None:
            return (1.0, 0), (1 - self.zoneout_c, 0), (1 - self.zoneout_h, 0)
        scale = 1 / (1 - self.recurrent_dropout)
        rates = self.recurrent_dropout, self.zoneout_c, self.zoneout_h
        return tuple((factor, int(rate * 2**64)) for factor, rate in zip((scale, 1.0, 1.0), rates, strict=True))


class LSTMVariantWeights(NamedTuple):
    """w_ih (C, 4H), w_hh (H, 4H), b (4H,); with layer norm gamma_x and gamma_h (4H,), gamma_c and beta_c (H,), which are None without; or
    their gradients. b may be None without layer norm.
    """

    w_ih: Any
    w_hh: Any
    b: Any = None
    gamma_x: Any = None
    gamma_h: Any = None
    gamma_c: Any = None
    beta_c: Any = None


class LSTMVariantSaved(NamedTuple):
    """gates (R, 4H) = i, f, g, o; c, tanh_c and h (R, H). With layer norm what is normalised: u = x w_ih and v = h w_hh (R, 4H), cell
    (R, H), and mean and rstd (3, R) of these, float64; else None. All but gates and h are None if they are not kept.
    """

    gates: Any
    c: Any
    tanh_c: Any
    h: Any
    u: Any
    v: Any
    cell: Any
    mean: Any
    rstd: Any


class LSTMVariantGradients(NamedTuple):
    """What an LSTM variant's backward writes: dz (R, 4H), which may be the gates; with layer norm du and dv (R, 4H) and dn (R, H), the
    gradients of x w_ih, of h w_hh and of the normalised cell, else du and dv are dz, and dn is None; the others as in LSTMGradients.
    """

    dz: Any
    du: Any
    dv: Any
    dn: Any
    dxs: Any
    weights: LSTMVariantWeights
    start: States
    squares: Any


def lstm_variant_buffer_size(rows: int, hidden: int, layer_norm: bool, itemsize: int, keep: bool = True) -> int:
    """Values in the buffer of an LSTM variant's forward: gates and, with keep, what backward needs; an even number of them."""
    if not keep:
        return 4 * rows * hidden
    size = 15 * rows * hidden + 6 * rows * (8 // itemsize) if layer_norm else 6 * rows * hidden
    return size + size % 2


def lstm_variant_buffers(buffer: Any, h: Any, layer_norm: bool, keep: bool = True) -> LSTMVariantSaved:
    """The arrays that a forward writes: its output h (R, H), and views into a buffer of lstm_variant_buffer_size values.

    mean and rstd come first, so that they are aligned as float64 in one of several buffers behind each other.
    """
    rows, hidden = h.shape
    has_statistics = keep and layer_norm
    arrays, at = [], 6 * rows * (8 // h.itemsize) if has_statistics else 0
    for gates in (4, 1, 1, 4, 4, 1) if has_statistics else (4, 1, 1) if keep else (4,):
        arrays.append(buffer[at : at + gates * rows * hidden].reshape(rows, gates * hidden))
        at += gates * rows * hidden
    gates, c, tanh_c, u, v, cell = arrays + [None] * (6 - len(arrays))
    if not has_statistics:
        return LSTMVariantSaved(gates, c, tanh_c, h, None, None, None, None, None)
    mean, rstd = buffer[: 6 * rows * (8 // h.itemsize)].view(np.float64).reshape(2, 3, rows)
    return LSTMVariantSaved(gates, c, tanh_c, h, u, v, cell, mean, rstd)


class GRUWeights(NamedTuple):
    """w_ih (C, 3H), w_hh (H, 3H), and b (3H,) and b_hn (H,), each of which may be None; or their gradients.

    Gates are in the order r, z, n. b_hn is the bias of n's part of h; it is None where r multiplies h before the product.
    """

    w_ih: Any
    w_hh: Any
    b: Any = None
    b_hn: Any = None


class GRUSaved(NamedTuple):
    """gates (R, 3H) = r, z, n; reset (R, H) = h_{t-1} w_hn + b_hn, or where r multiplies h before the product r h_{t-1}; h (R, H)."""

    gates: Any
    reset: Any
    h: Any


def gru_buffer_size(rows: int, hidden: int) -> int:
    """Values in the buffer of a GRU's forward over so many rows."""
    return 4 * rows * hidden


def gru_buffers(buffer: Any, h: Any, hidden: int) -> GRUSaved:
    """The arrays that a forward writes: its output h (R, H), and views into a buffer of gru_buffer_size values."""
    rows, size = len(h), len(h) * hidden
    return GRUSaved(buffer[: 3 * size].reshape(rows, 3 * hidden), buffer[3 * size : 4 * size].reshape(rows, hidden), h)


class GRUUpstream(NamedTuple):
    """The upstream gradients dh (R, H) and dh_n (N, H), each of which may be None."""

    dh: Any
    dh_n: Any


class GRUGradients(NamedTuple):
    """What a GRU's backward writes: dz (R, 3H), which may be the gates; dxs (R, C) or None; the gradients of the weights and of
    h_0 (N, H); squares (R,), float64, the squared norm of dL/dh of each row, over all paths, or None.
    """

    dz: Any
    dxs: Any
    weights: GRUWeights
    h_0: Any
    squares: Any


class Geometry(NamedTuple):
    """The geometry of windows over images: stride and dilation by axis, and pads (top, left, bottom, right)."""

    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]


class ConvGradients(NamedTuple):
    """What a convolution's backward writes: dz like y; dx, dw and db, each of which may be None."""

    dz: Any
    dx: Any
    dw: Any
    db: Any


class Running(NamedTuple):
    """A batch norm's running mean and var (C,), or both None; momentum, by which they move towards the batch's; unbiased: of var."""

    mean: Any
    var: Any
    momentum: float
    unbiased: bool


class Statistics(NamedTuple):
    """mean and rstd, float64, that a batch norm subtracts and multiplies by, (C,), or a layer norm, (M,)."""

    mean: Any
    rstd: Any


class Affine(NamedTuple):
    """gamma and beta (C,)."""

    gamma: Any
    beta: Any


class NormGradients(NamedTuple):
    """What a norm's backward writes: dz (M, C), the residual's gradient, or None; dx (M, C) or None; dgamma and dbeta (C,)."""

    dz: Any
    dx: Any
    dgamma: Any
    dbeta: Any


class Constraint(NamedTuple):
    """A constraint on updated arrays: kind (MAX_VALUE, MAX_NORM, MAX_NORM_EACH) and limit.

    widths, int64 (n,): for each array how many units a row has; 1: the array is one unit, 0: it has no constraint.
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
    "cross_entropy": Loss(CROSS_ENTROPY),
    "binary_cross_entropy": Loss(BINARY_CROSS_ENTROPY),
    "mse": Loss(MSE),
    "poisson_nll": Loss(POISSON_NLL),
    "mae": Loss(MAE),
    "huber": Loss(HUBER, 1.0),
}


def workspace_size(widths, batch):
    """Values of scratch for a step on `batch` rows: every layer's y, z and dz, the gathered x and target, losses, and right values.

    Nonzeros are not gathered: then widths[0] may be 0.
    """
    return batch * (3 * sum(widths[1:]) + widths[0] + 2 * widths[-1] + 1)


# the values of a layer's health, in this order
HEALTH = "grad_norm largest zeros nonfinite mean spread saturated dead update_ratio".split()


class Nonzeros:
    """A sparse matrix x (N, C) by rows (CSR): row i has values[starts[i] : starts[i + 1]] in columns[starts[i] : starts[i + 1]], ascending.

    starts int64 (N + 1,), columns int32, values of x's dtype. An index, of row numbers or a slice, returns those rows as a dense array.
    """

    def __init__(self, starts, columns, values, width):
        self.starts, self.columns, self.values = starts, columns, values
        self.shape, self.dtype = (len(starts) - 1, width), values.dtype

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        rows = np.arange(len(self))[rows]
        x = np.zeros((len(rows), self.shape[1]), self.dtype)
        for x_row, row in zip(x, rows, strict=True):
            nonzero = slice(self.starts[row], self.starts[row + 1])
            x_row[self.columns[nonzero]] = self.values[nonzero]
        return x


class Watch:
    """At which training steps of a chain health is measured, and where it is written.

    bands (L, 4): for each layer's outputs the limits of saturated and of flat values, as in health.py. rows (R, L, 9): batch i of a call
    writes rows[i], in the order of HEALTH, if the number of updates before it is a multiple of `every`. record belongs to the backend.
    """

    def __init__(self, bands, rows, every):
        self.bands, self.rows, self.every, self.record = bands, rows, every, None

    def after(self, batches):
        """The same watch without the rows of the first `batches` batches."""
        return Watch(self.bands, self.rows[batches:], self.every)
