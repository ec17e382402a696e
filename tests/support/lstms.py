"""Random LSTM problems for tests, run through the public API, and the same problems in PyTorch."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from recurrent_problem import RecurrentProblem, assert_arrays_close

import fastgrad as fg

# the order of the gradients
INPUTS = ("x", "w_ih", "w_hh", "b", "h_0", "c_0", "peephole", "w_proj")
UPSTREAMS = ("dy", "dh_n", "dc_n")
assert_all_close = partial(assert_arrays_close, "lstm")
# what a gate may have on top, with P on either side of H
OPTIONS = {
    "plain": {},
    "no_bias": {"bias": False},
    "no_states": {"states": False},
    "peephole": {"peephole": True},
    "projection": {"projected": 5},
    "wide_projection": {"projected": 19},
    "peephole_projection_no_bias": {"peephole": True, "projected": 3, "bias": False},
}


@dataclass
class Problem(RecurrentProblem):
    """The arguments of fg.lstm, and upstream gradients."""

    inputs, upstreams = INPUTS, UPSTREAMS

    x: np.ndarray
    w_ih: np.ndarray
    w_hh: np.ndarray
    b: np.ndarray | None
    h_0: np.ndarray | None
    c_0: np.ndarray | None
    peephole: np.ndarray | None
    w_proj: np.ndarray | None
    dy: np.ndarray | None
    dh_n: np.ndarray | None
    dc_n: np.ndarray | None
    lengths: np.ndarray | None
    reverse: bool


def random_lstm(
    rng, n, steps, c, hidden, dtype=np.float64, *, lengths=None, reverse=False, bias=True, states=True,
    peephole=False, projected=None,
):  # fmt: skip
    """Random everything: zeros hide swaps. lengths: an array, or "random" for some of 0..steps."""

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    p = hidden if projected is None else projected
    return Problem(
        x=normal(n, steps, c),
        w_ih=normal(c, 4 * hidden, scale=1 / np.sqrt(max(c, 1))),
        w_hh=normal(p, 4 * hidden, scale=1 / np.sqrt(max(p, 1))),
        b=normal(4 * hidden, scale=0.5) if bias else None,
        h_0=normal(n, p) if states else None,
        c_0=normal(n, hidden) if states else None,
        peephole=normal(3, hidden) if peephole else None,
        w_proj=None if projected is None else normal(hidden, p, scale=1 / np.sqrt(max(hidden, 1))),
        dy=normal(n, steps, p),
        dh_n=normal(n, p),
        dc_n=normal(n, hidden),
        lengths=rng.integers(0, steps + 1, n) if isinstance(lengths, str) else lengths,
        reverse=reverse,
    )


def forward(problem, **options):
    """What fg.lstm returns."""
    return fg.lstm(**problem.named(INPUTS), lengths=problem.lengths, reverse=problem.reverse, **options)


def run(problem):
    """Results and gradients by name: y, h_n, c_n, dx, dw_ih, ..."""
    results, backward = forward(problem)
    gradients = backward(**problem.named(UPSTREAMS))
    names = [f"d{name}" for name in problem.named(INPUTS)]
    return dict(zip(["y", "h_n", "c_n", *names], [*results, *gradients], strict=True))


def loss(problem):
    """The scalar of which run's gradients are the gradients."""
    results, _ = forward(problem)
    upstreams = problem.dy, problem.dh_n, problem.dc_n
    return float(sum((r * d).sum() for r, d in zip(results, upstreams, strict=True) if d is not None))


def flipped(a, ends):
    """Sequences a (N, T, .), each of which turned around within its length."""
    turned = a.copy()
    for n, end in enumerate(ends):
        turned[n, :end] = a[n, :end][::-1]
    return turned


def torch_run(torch, problem):
    """What run gives, from torch.nn.LSTM in float64; lengths from 1."""
    ends = problem.ends()
    _, steps, c = problem.x.shape
    p = problem.map(lambda a: a.astype(np.float64))

    def around(a):
        return flipped(a, ends) if p.reverse else a

    hidden, projected = p.c_0.shape[1], 0 if p.w_proj is None else p.w_proj.shape[1]
    model = torch.nn.LSTM(c, hidden, batch_first=True, proj_size=projected, dtype=torch.float64)
    weights = {"weight_ih_l0": p.w_ih, "weight_hh_l0": p.w_hh, "bias_ih_l0": p.b}
    if projected:
        weights["weight_hr_l0"] = p.w_proj
    with torch.no_grad():
        model.bias_hh_l0[...] = 0
        for name, w in weights.items():
            getattr(model, name)[...] = torch.tensor(w.T)
    x, h_0, c_0 = (torch.tensor(a, requires_grad=True) for a in (around(p.x), p.h_0, p.c_0))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(ends), batch_first=True, enforce_sorted=False)
    y, (h_n, c_n) = model(packed, (h_0[None], c_0[None]))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=steps)
    results = [y, h_n[0], c_n[0]]
    torch.autograd.backward(results, [torch.tensor(a) for a in (around(p.dy), p.dh_n, p.dc_n)])
    found = {"y": around(y.detach().numpy()), "h_n": h_n[0].detach().numpy(), "c_n": c_n[0].detach().numpy()}
    found |= {"dx": around(x.grad.numpy()), "dh_0": h_0.grad.numpy(), "dc_0": c_0.grad.numpy()}
    gradients = [getattr(model, name).grad.numpy().T for name in weights]
    return found | dict(zip(["dw_ih", "dw_hh", "db", "dw_proj"], gradients, strict=False))


def torch_steps(torch, problem):
    """(c of every step, norms of every step's whole dL/dh_t), from a loop of torch.nn.LSTMCell in float64."""
    n, steps, c = problem.x.shape
    p = problem.map(lambda a: torch.tensor(a.astype(np.float64)))
    cell = torch.nn.LSTMCell(c, p.c_0.shape[1], dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih[...], cell.weight_hh[...] = p.w_ih.T, p.w_hh.T
        cell.bias_ih[...], cell.bias_hh[...] = p.b, 0
    h, cs = p.h_0, p.c_0
    hs, total = [], 0
    c_of_steps = np.zeros((n, steps, p.c_0.shape[1]))
    ends = torch.tensor(problem.ends())
    for t in reversed(range(steps)) if problem.reverse else range(steps):
        under_way = (t < ends)[:, None]
        h_t, c_t = cell(p.x[:, t], (h, cs))
        h_t.retain_grad()
        hs.append((t, h_t))
        total = total + (h_t * p.dy[:, t] * under_way).sum()
        c_of_steps[:, t] = (c_t * under_way).detach().numpy()
        h, cs = torch.where(under_way, h_t, h), torch.where(under_way, c_t, cs)
    (total + (h * p.dh_n).sum() + (cs * p.dc_n).sum()).backward()
    norms = np.array([float(h_t.grad.norm()) for _, h_t in sorted(hs, key=lambda pair: pair[0])])
    return c_of_steps, norms


def lstm_layer(dtype="float64", seed=1, **options):
    """A small layer; options are those of fg.nn.LSTM."""
    return fg.nn.LSTM(3, 5, dtype=dtype, seed=seed, **options)


def sequences(dtype="float64", n=4, steps=7):
    """A batch for lstm_layer."""
    return np.random.default_rng(2).standard_normal((n, steps, 3)).astype(dtype)


def random_states(layer, n=4):
    """h and c of a layer, for n sequences."""
    rng = np.random.default_rng(6)
    rows = layer.num_layers * layer.directions, n
    width = layer.proj_size or layer.hidden_size
    return tuple(rng.standard_normal((*rows, w)).astype(layer.dtype) for w in (width, layer.hidden_size))
