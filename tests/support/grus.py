"""Random GRU problems for tests, run through the public API, and the same problems in PyTorch and step by step by the formulas."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from lstms import flipped
from recurrent_problem import RecurrentProblem, assert_arrays_close

import fastgrad as fg

# the order of the gradients
INPUTS = ("x", "w_ih", "w_hh", "b", "b_hn", "h_0")
UPSTREAMS = ("dy", "dh_n")
assert_all_close = partial(assert_arrays_close, "gru")


@dataclass
class Problem(RecurrentProblem):
    """The arguments of fg.gru, and upstream gradients."""

    inputs, upstreams = INPUTS, UPSTREAMS

    x: np.ndarray
    w_ih: np.ndarray
    w_hh: np.ndarray
    b: np.ndarray | None
    b_hn: np.ndarray | None
    h_0: np.ndarray | None
    dy: np.ndarray | None
    dh_n: np.ndarray | None
    lengths: np.ndarray | None
    reverse: bool
    reset_after: bool


def random_gru(
    rng, n, steps, c, hidden, dtype=np.float64, *, lengths=None, reverse=False, bias=True, state=True, reset_after=True
):  # fmt: skip
    """Random everything: zeros hide swaps. lengths: an array, or "random" for some of 0..steps."""

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    return Problem(
        x=normal(n, steps, c),
        w_ih=normal(c, 3 * hidden, scale=1 / np.sqrt(max(c, 1))),
        w_hh=normal(hidden, 3 * hidden, scale=1 / np.sqrt(max(hidden, 1))),
        b=normal(3 * hidden, scale=0.5) if bias else None,
        b_hn=normal(hidden, scale=0.5) if bias and reset_after else None,
        h_0=normal(n, hidden) if state else None,
        dy=normal(n, steps, hidden),
        dh_n=normal(n, hidden),
        lengths=rng.integers(0, steps + 1, n) if isinstance(lengths, str) else lengths,
        reverse=reverse,
        reset_after=reset_after,
    )


def forward(problem):
    """What fg.gru returns."""
    options = {"lengths": problem.lengths, "reverse": problem.reverse, "reset_after": problem.reset_after}
    return fg.gru(**problem.named(INPUTS), **options)


def run(problem):
    """Results and gradients by name: y, h_n, dx, dw_ih, ..."""
    results, backward = forward(problem)
    gradients = backward(**problem.named(UPSTREAMS))
    names = [f"d{name}" for name in problem.named(INPUTS)]
    return dict(zip(["y", "h_n", *names], [*results, *gradients], strict=True))


def loss(problem):
    """The scalar of which run's gradients are the gradients."""
    results, _ = forward(problem)
    return float(sum((r * d).sum() for r, d in zip(results, (problem.dy, problem.dh_n), strict=True) if d is not None))


def torch_run(torch, problem):
    """What run gives, from torch.nn.GRU in float64, which has reset_after alone; lengths from 1."""
    ends = problem.ends()
    _, steps, c = problem.x.shape
    p = problem.map(lambda a: a.astype(np.float64))
    hidden = p.h_0.shape[1]

    def around(a):
        return flipped(a, ends) if p.reverse else a

    model = torch.nn.GRU(c, hidden, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        model.weight_ih_l0[...], model.weight_hh_l0[...] = torch.tensor(p.w_ih.T), torch.tensor(p.w_hh.T)
        model.bias_ih_l0[...], model.bias_hh_l0[...] = torch.tensor(p.b), 0
        model.bias_hh_l0[2 * hidden :] = torch.tensor(p.b_hn)
    x, h_0 = (torch.tensor(a, requires_grad=True) for a in (around(p.x), p.h_0))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(ends), batch_first=True, enforce_sorted=False)
    y, h_n = model(packed, h_0[None])
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=steps)
    torch.autograd.backward([y, h_n[0]], [torch.tensor(a) for a in (around(p.dy), p.dh_n)])
    found = {"y": around(y.detach().numpy()), "h_n": h_n[0].detach().numpy()}
    found |= {"dx": around(x.grad.numpy()), "dw_ih": model.weight_ih_l0.grad.numpy().T}
    found |= {"dw_hh": model.weight_hh_l0.grad.numpy().T, "db": model.bias_ih_l0.grad.numpy()}
    return found | {"db_hn": model.bias_hh_l0.grad.numpy()[2 * hidden :], "dh_0": h_0.grad.numpy()}


def torch_steps(torch, problem):
    """What run gives, by the formulas step by step in PyTorch in float64, and the norms of every step's whole dL/dh_t."""
    _, steps, _ = problem.x.shape
    p = problem.map(lambda a: torch.tensor(a.astype(np.float64), requires_grad=True))
    hidden, ends, h = p.w_hh.shape[0], torch.tensor(problem.ends()), p.h_0
    ys, states = [None] * steps, [None] * steps
    for t in reversed(range(steps)) if p.reverse else range(steps):
        under_way = (t < ends)[:, None]
        a_r, a_z, a_n = (p.x[:, t] @ p.w_ih + p.b).split(hidden, 1)
        w_r, w_z, w_n = p.w_hh.split(hidden, 1)
        r, z = torch.sigmoid(a_r + h @ w_r), torch.sigmoid(a_z + h @ w_z)
        of_h = r * (h @ w_n + p.b_hn) if p.reset_after else (r * h) @ w_n
        h_t = (1 - z) * torch.tanh(a_n + of_h) + z * h
        h_t.retain_grad()
        states[t], ys[t] = h_t, h_t * under_way
        h = torch.where(under_way, h_t, h)
    y = torch.stack(ys, 1)
    ((y * p.dy.detach()).sum() + (h * p.dh_n.detach()).sum()).backward()
    found = {"y": y.detach().numpy(), "h_n": h.detach().numpy()}
    found |= {f"d{name}": a.grad.numpy() for name, a in p.named(INPUTS).items()}
    return found, np.array([float(h_t.grad.norm()) for h_t in states])
