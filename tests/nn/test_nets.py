"""Whole nets on real data: they learn, and end where PyTorch ends from the same weights and batches."""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pytest
from real_data import breast_cancer, digits, xor

import fastgrad as fg
from fastgrad.optim import SGD, Adam


@dataclass(frozen=True)
class Net:
    sizes: tuple
    activation: str
    output: str
    loss: str
    optimizer: SGD | Adam
    batch_size: int
    epochs: int
    data: tuple  # a function and its arguments
    init: str = "he_uniform"
    clip_norm: float | None = None
    rows: int | None = None  # of the training data

    @cached_property
    def arrays(self):
        function, *arguments = self.data
        x, y, held_x, held_y = function(*arguments)
        return x[: self.rows], y[: self.rows], held_x, held_y

    def of(self, dtype):
        """The data in this dtype; class numbers stay integers."""
        return [a if a.dtype.kind == "i" else a.astype(dtype) for a in self.arrays]

    def chain(self, dtype):
        return fg.nn.DenseChain(self.sizes, self.activation, self.output, init=self.init, dtype=dtype, seed=1)


NETS = {
    "20-10-1": Net((20, 10, 1), "relu", "sigmoid", "binary_cross_entropy", Adam(), 32, 60, (breast_cancer,)),
    "784-64-64-10": Net(
        (784, 64, 64, 10), "relu", "softmax", "cross_entropy", Adam(), 128, 5, (digits, 28), "xavier_uniform"
    ),
    "100-100-100-10": Net((100, 100, 100, 10), "relu", "identity", "cross_entropy", Adam(1e-3), 32, 5, (digits, 10)),
    "50 x 256": Net(
        (*[256] * 51, 10),
        "tanh",
        "softmax",
        "cross_entropy",
        Adam(1e-4),
        128,
        2,
        (digits, 16),
        "xavier_uniform",
        1.0,
        256,
    ),
    "xor, logistic": Net((2, 1), "relu", "sigmoid", "binary_cross_entropy", SGD(0.5), 4, 400, (xor,)),
    "xor, 2-4-1": Net((2, 4, 1), "tanh", "sigmoid", "binary_cross_entropy", SGD(0.5), 4, 400, (xor,)),
}
# the held-out accuracy that a trained net has, at least and at most
ACCURACY = {
    "20-10-1": (0.9, 1.0),
    "784-64-64-10": (0.9, 1.0),
    "100-100-100-10": (0.9, 1.0),
    "50 x 256": (0.2, 1.0),
    "xor, logistic": (0.0, 0.75),
    "xor, 2-4-1": (1.0, 1.0),
}
# of losses, relative, in the first epoch and at the end: rounding differs between libraries and grows from step to step
TOLERANCE = {"float32": (1e-3, 0.05), "float64": (1e-9, 1e-6)}


@cache
def trained(name, backend, dtype):
    """(history, trainer)."""
    net = NETS[name]
    x, y, held_x, held_y = net.of(dtype)
    trainer = fg.Trainer(net.chain(dtype), net.loss, net.optimizer, net.clip_norm, seed=2)
    with fg.use_backend(backend):
        return trainer.fit(x, y, net.epochs, net.batch_size, (held_x, held_y)), trainer


@cache
def trained_by_torch(name, dtype):
    """(loss of each epoch, held-out loss, held-out accuracy)."""
    import torch

    net = NETS[name]
    x, y, held_x, held_y = (torch.tensor(a) for a in net.of(dtype))
    parameters = [torch.tensor(a, requires_grad=True) for a in net.chain(dtype).parameters().values()]
    # torch's have a class of their own for decoupled decay, epsilon in one place, and lists of groups
    ours = "decoupled", "eps_hat", "groups"
    settings = {name: value for name, value in vars(net.optimizer).items() if name not in ours}
    optimizer = (torch.optim.Adam if isinstance(net.optimizer, Adam) else torch.optim.SGD)(parameters, **settings)
    functional = torch.nn.functional
    loss = functional.cross_entropy if net.loss == "cross_entropy" else functional.binary_cross_entropy_with_logits

    def logits(a):
        for layer, (w, b) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
            a = a @ w + b
            a = getattr(torch, net.activation)(a) if layer < len(net.sizes) - 2 else a
        return a

    rng = np.random.Generator(np.random.PCG64(2))
    losses = []
    threads = torch.get_num_threads()
    # its threads cost small nets more than they give
    torch.set_num_threads(1)
    for _ in range(net.epochs):
        order = np.arange(len(x))
        rng.shuffle(order)
        total = 0.0
        for start in range(0, len(x), net.batch_size):
            rows = order[start : start + net.batch_size]
            optimizer.zero_grad()
            value = loss(logits(x[rows]), y[rows])
            value.backward()
            if net.clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters, net.clip_norm)
            optimizer.step()
            total += len(rows) * value.item()
        losses.append(total / len(x))
    torch.set_num_threads(threads)
    with torch.no_grad():
        out = logits(held_x)
        right = out.argmax(1) == held_y if net.loss == "cross_entropy" else (out > 0) == (held_y > 0.5)
        return losses, loss(out, held_y).item(), right.double().mean().item()


@pytest.mark.parametrize("name", NETS)
def test_the_net_learns_what_it_can(in_force, name, dtype):
    history, trainer = trained(name, in_force, dtype.name)
    least, most = ACCURACY[name]
    assert least <= history.val_accuracy[-1] <= most
    assert history.loss[-1] < history.loss[0]
    net = NETS[name]
    assert trainer.step_count == net.epochs * -(-len(net.arrays[0]) // net.batch_size)


@pytest.mark.parametrize("name", NETS)
def test_the_net_ends_where_pytorch_ends(in_force, name, dtype):
    pytest.importorskip("torch")
    history, _ = trained(name, in_force, dtype.name)
    losses, held_loss, held_accuracy = trained_by_torch(name, dtype.name)
    first, last = TOLERANCE[dtype.name]
    assert history.loss[0] == pytest.approx(losses[0], rel=first)
    assert history.loss[-1] == pytest.approx(losses[-1], rel=last)
    assert history.val_loss[-1] == pytest.approx(held_loss, rel=last)
    if name == "xor, logistic":
        # every probability is 1/2 up to rounding, which decides
        assert held_accuracy <= 0.75
    else:
        assert history.val_accuracy[-1] == pytest.approx(held_accuracy, abs=0.01 if dtype == np.float32 else 0)


def test_logistic_regression_cannot_solve_xor(in_force):
    history, trainer = trained("xor, logistic", in_force, "float64")
    assert history.loss[-1] == pytest.approx(np.log(2), abs=1e-3)
    np.testing.assert_allclose(trainer.predict(xor()[0]), 0.5, atol=0.05)
