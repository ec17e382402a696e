"""Random dense chains for tests, the buffers around them, and the same chains in PyTorch."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from arrays import unwritten

from fastgrad.kernels import types
from fastgrad.kernels.types import ACTIVATIONS

TARGETS = ("cross_entropy", "one_hot", "binary_cross_entropy", "mse", "poisson_nll")
# rates of 0, so that a step only takes the gradient
NO_UPDATE = {"optimizer": types.SGD, "hyper": [0.0, 0, 0, 0, 0, 0, 0]}


@dataclass
class Chain:
    """What dense_chain_forward reads, and an upstream gradient."""

    x: np.ndarray
    weights: list
    biases: list
    activations: list
    residual: np.ndarray | None
    dy: np.ndarray

    def arguments(self):
        return types.Chain(self.x, self.weights, self.biases, self.activations, self.residual)

    def map(self, function):
        """The same chain with every array replaced by function(array)."""
        each = [None if b is None else function(b) for b in self.biases]
        residual = None if self.residual is None else function(self.residual)
        weights = [function(w) for w in self.weights]
        return replace(self, x=function(self.x), weights=weights, biases=each, residual=residual, dy=function(self.dy))

    def arrays(self):
        return [a for a in (self.x, *self.weights, *self.biases, self.residual, self.dy) if a is not None]


def random_chain(rng, n, widths, activations, dtype=np.float64, bias=True, residual=True):
    """Random everything: zeros hide swaps."""
    sizes = list(pairwise(widths))

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    return Chain(
        x=normal(n, widths[0]),
        weights=[normal(k, m, scale=1 / np.sqrt(max(k, 1))) for k, m in sizes],
        biases=[normal(m, scale=0.5) if bias else None for _, m in sizes],
        activations=[ACTIVATIONS[f] if isinstance(f, str) else f for f in activations],
        residual=normal(n, widths[-1]) if residual else None,
        dy=normal(n, widths[-1]),
    )


def forward(backend, chain):
    """(zs, outputs), each first filled with NaN."""
    shapes = [(len(chain.x), w.shape[1]) for w in chain.weights]
    outputs = [unwritten(shape, chain.x.dtype) for shape in shapes]
    zs = [np.full_like(y, np.nan) if f.needs_input else y for f, y in zip(chain.activations, outputs, strict=True)]
    backend.dense_chain_forward(chain.arguments(), types.ChainSaved(zs, outputs))
    return zs, outputs


@dataclass
class Gradients:
    dx: np.ndarray | None
    dweights: list
    dbiases: list
    dzs: list

    def arrays(self):
        return [a for a in (self.dx, *self.dweights, *self.dbiases, *self.dzs) if a is not None]


def backward(backend, chain, zs, outputs, want_dx=True):
    """Gradients, each first filled with NaN."""
    dtype = chain.x.dtype
    gradients = Gradients(
        dx=unwritten(chain.x.shape, dtype) if want_dx else None,
        dweights=[unwritten(w.shape, dtype) for w in chain.weights],
        dbiases=[None if b is None else unwritten(b.shape, dtype) for b in chain.biases],
        dzs=[unwritten(y.shape, dtype) for y in outputs],
    )
    g = types.ChainGradients(gradients.dzs, gradients.dx, gradients.dweights, gradients.dbiases)
    backend.dense_chain_backward(chain.dy, chain.arguments(), types.ChainSaved(zs, outputs), g)
    return gradients


def run(backend, chain):
    """(outputs, gradients) of a forward and a backward."""
    zs, outputs = forward(backend, chain)
    return outputs, backward(backend, chain, zs, outputs)


@dataclass
class Net:
    """What a Net and an UpdateRule hold; `keyword` gives the two by name."""

    table: np.ndarray
    parameters: np.ndarray
    params: np.ndarray
    grads: np.ndarray
    state: np.ndarray
    work: np.ndarray
    optimizer: int
    hyper: np.ndarray
    loss: int
    clip_norm: float
    masks: np.ndarray | None = None
    constraint: types.Constraint | None = None
    groups: np.ndarray | None = None

    def arguments(self):
        return types.Net(self.table, self.parameters, self.loss, self.params, self.grads, self.work)

    def rule(self):
        return types.UpdateRule(
            self.optimizer, self.state, self.hyper, self.clip_norm, self.masks, self.constraint, self.groups
        )

    def keyword(self):
        return {"net": self.arguments(), "rule": self.rule()}


def random_net(
    rng, widths, activations, dtype, batch, *, loss="mse", optimizer=types.ADAM, hyper=None, clip_norm=np.inf, bias=True
):
    """A net whose layers lie in params last first, each bias before its weights, so that only the offsets tell."""
    layers, at = [], 0
    activations = [ACTIVATIONS[f] if isinstance(f, str) else f for f in activations]
    for (k, m), f in reversed(list(zip(pairwise(widths), activations, strict=True))):
        b_offset, w_offset = (at, at + m) if bias else (-1, at)
        layers.insert(0, (k, m, w_offset, b_offset, f.code))
        at = w_offset + k * m
    params = np.empty(at, dtype)
    for k, m, w_offset, b_offset, _ in layers:
        params[w_offset : w_offset + k * m] = rng.standard_normal(k * m) / np.sqrt(max(k, 1))
        if bias:
            params[b_offset : b_offset + m] = rng.standard_normal(m) / 2
    if hyper is None:
        hyper = [1e-2, 0.9, 0.999, 1e-8, 0, 0, 0]
    slots = 2 if optimizer == types.ADAM else int(optimizer != types.SGD) + int(hyper[1] != 0)
    return Net(
        table=np.array(layers, np.int64).reshape(-1, 5),
        parameters=np.array([f.parameter for f in activations], np.float64),
        params=params,
        grads=unwritten(at, dtype),
        state=np.zeros((slots, at), dtype),
        work=unwritten(types.workspace_size(widths, batch), dtype),
        optimizer=optimizer,
        hyper=np.array(hyper, np.float64),
        loss=types.LOSSES[loss],
        clip_norm=float(clip_norm),
    )


def clone(net):
    """A net with copies of every array."""
    return Net(**{k: v.copy() if isinstance(v, np.ndarray) else v for k, v in vars(net).items()})


def with_margins(net, dtype):
    """Give the net's buffers 100 sevens on either side; the whole ones."""
    wide = []
    for name in ("params", "grads", "state", "work"):
        value = getattr(net, name)
        wide.append(np.full(value.size + 200, 7, dtype))
        view = wide[-1][100:-100].reshape(value.shape)
        view[...] = value
        setattr(net, name, view)
    return wide


def check_margins(wide):
    for buffer in wide:
        np.testing.assert_array_equal(buffer[:100], 7)
        np.testing.assert_array_equal(buffer[-100:], 7)


def step(backend, net, x, target, number=0):
    """(status, loss, norm) of one dense_chain_step."""
    record = unwritten(2, np.float64)
    status = backend.dense_chain_step(x=x, target=target, step=number, record=record, **net.keyword())
    return status, *record


def random_target(rng, loss, n, classes, dtype, one_hot=False):
    """A target that the loss takes."""
    if loss == "cross_entropy" and not one_hot:
        return rng.integers(0, classes, n)
    if loss == "cross_entropy":
        return np.eye(classes, dtype=dtype)[rng.integers(0, classes, n)]
    if loss == "binary_cross_entropy":
        return rng.random((n, classes)).astype(dtype)
    if loss == "poisson_nll":
        return rng.poisson(2, (n, classes)).astype(dtype)
    return rng.standard_normal((n, classes)).astype(dtype)


def random_problem(rng, n, widths, activations, dtype, target="mse", **options):
    """(net, x, target) of a net that is trained; target is one of TARGETS."""
    loss = "cross_entropy" if target == "one_hot" else target
    net = random_net(rng, widths, activations, dtype, n, loss=loss, **options)
    x = rng.standard_normal((n, widths[0])).astype(dtype)
    return net, x, random_target(rng, loss, n, widths[-1], dtype, one_hot=target == "one_hot")


def torch_activation(activation, z):
    """The activation of PyTorch with the same name."""
    import torch
    from torch.nn import functional as F

    code, p = activation
    return {
        types.IDENTITY: lambda: z,
        types.RELU: lambda: torch.relu(z),
        types.LEAKY_RELU: lambda: F.leaky_relu(z, p),
        types.CLIPPED_RELU: lambda: F.hardtanh(z, 0.0, p),
        types.SIGMOID: lambda: torch.sigmoid(z),
        types.TANH: lambda: torch.tanh(z),
        types.ELU: lambda: F.elu(z, p),
        types.SELU: lambda: torch.selu(z),
        types.GELU: lambda: F.gelu(z),
        types.GELU_TANH: lambda: F.gelu(z, approximate="tanh"),
        types.SILU: lambda: F.silu(z),
        types.SOFTPLUS: lambda: F.softplus(z, threshold=40.0),
        types.SOFTMAX: lambda: torch.softmax(z, -1),
    }[code]()
