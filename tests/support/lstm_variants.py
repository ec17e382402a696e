"""Random problems of LSTM variants for tests, run through the public API, and the same problems as a loop over steps in PyTorch."""

from dataclasses import dataclass, field, fields

import lstms
import numpy as np

import fastgrad as fg

NORMS = ("gamma_x", "gamma_h", "gamma_c", "beta_c")
INPUTS = ("x", "w_ih", "w_hh", "b", "h_0", "c_0", *NORMS)
KEY = 2**64 - 5
# each variant alone, in training and in evaluation, and all together
OPTIONS = {
    "layer_norm": {"layer_norm": True},
    "layer_norm_no_bias_no_states": {"layer_norm": True, "bias": False, "states": False},
    "zoneout": {"zoneout": (0.3, 0.6), "key": KEY},
    "zoneout_of_c_no_bias": {"zoneout": (0.0, 0.4), "key": KEY, "bias": False},
    "zoneout_in_evaluation": {"zoneout": (0.3, 0.6)},
    "recurrent_dropout": {"recurrent_dropout": 0.4, "key": KEY},
    "all": {"layer_norm": True, "zoneout": (0.3, 0.2), "recurrent_dropout": 0.4, "key": KEY},
    "all_in_evaluation": {"layer_norm": True, "zoneout": (0.3, 0.2), "recurrent_dropout": 0.4},
}


@dataclass
class VariantProblem(lstms.Problem):
    """The arguments of fg.lstm, and upstream gradients; options: zoneout, recurrent_dropout, key and eps."""

    inputs = INPUTS

    gamma_x: np.ndarray | None = None
    gamma_h: np.ndarray | None = None
    gamma_c: np.ndarray | None = None
    beta_c: np.ndarray | None = None
    options: dict = field(default_factory=dict)


def random_variant(rng, n, steps, c, hidden, dtype=np.float64, *, layer_norm=False, lengths=None, reverse=False, bias=True,
                   states=True, **options):  # fmt: skip
    """Random everything: zeros hide swaps."""
    plain = lstms.random_lstm(
        rng, n, steps, c, hidden, dtype, lengths=lengths, reverse=reverse, bias=bias, states=states
    )
    sizes = [4 * hidden] * 2 + [hidden] * 2
    offsets = 1, 1, 1, 0
    norms = {
        name: (offset + 0.3 * rng.standard_normal(size)).astype(dtype) if layer_norm else None
        for name, size, offset in zip(NORMS, sizes, offsets, strict=True)
    }
    values = {f.name: getattr(plain, f.name) for f in fields(lstms.Problem)}
    return VariantProblem(**values, **norms, options=options)


def forward(problem, **options):
    """What fg.lstm returns."""
    norms = tuple(getattr(problem, name) for name in NORMS)
    return fg.lstm(
        **problem.named(INPUTS[:6]),
        layer_norm=None if norms[0] is None else norms,
        lengths=problem.lengths,
        reverse=problem.reverse,
        **problem.options,
        **options,
    )


def run(problem):
    """Results and gradients by name: y, h_n, c_n, dx, dw_ih, ..."""
    results, backward = forward(problem)
    gradients = backward(**problem.named(lstms.UPSTREAMS))
    names = [f"d{name}" for name in problem.named(INPUTS)]
    return dict(zip(["y", "h_n", "c_n", *names], [*results, *gradients], strict=True))


def loss(problem):
    """The scalar of which run's gradients are the gradients."""
    results, _ = forward(problem)
    return float(sum((r * d).sum() for r, d in zip(results, (problem.dy, problem.dh_n, problem.dc_n), strict=True)))


def random_number(key, i):
    """Number i of SplitMix64 with this key, in integers."""
    most = 2**64 - 1
    bits = ((i + 1) * 0x9E3779B97F4A7C15 + key) & most
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & most
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & most
    return bits ^ bits >> 31


def drawn(key, kind, rate, n, steps, hidden):
    """Whether the random number of each unit (N, T, H) is at least the rate; kind 0: g, 1: c, 2: h."""
    keys = [random_number(key, 3 * sequence + kind) for sequence in range(n)]
    numbers = [[[random_number(k, t * hidden + j) for j in range(hidden)] for t in range(steps)] for k in keys]
    return np.array([[[number >= int(rate * 2**64) for number in row] for row in rows] for rows in numbers], bool)


def torch_run(torch, problem):
    """What run gives, from a loop over the steps in float64, and c of every step; layer norm by PyTorch."""
    p = problem.map(lambda a: a.astype(np.float64))
    inputs = {name: torch.tensor(a, requires_grad=True) for name, a in p.named(INPUTS).items()}
    (n, steps, _), hidden = p.x.shape, p.w_hh.shape[0]
    zoneout_h, zoneout_c = p.options.get("zoneout", (0, 0))
    dropout, key = p.options.get("recurrent_dropout", 0), p.options.get("key")
    m, k_c, k_h = (
        torch.full((n, steps, hidden), value, dtype=torch.float64) for value in (1, 1 - zoneout_c, 1 - zoneout_h)
    )
    if key is not None:
        m = torch.tensor(drawn(key, 0, dropout, n, steps, hidden) / (1 - dropout))
        k_c, k_h = (
            torch.tensor(drawn(key, kind, rate, n, steps, hidden) * 1.0)
            for kind, rate in ((1, zoneout_c), (2, zoneout_h))
        )

    def norm(a, gamma, beta=None):
        if gamma not in inputs:
            return a
        return torch.nn.functional.layer_norm(a, a.shape[1:], inputs[gamma], inputs.get(beta), 1e-5)

    zero = torch.zeros(n, hidden, dtype=torch.float64)
    h, c, ends = inputs.get("h_0", zero), inputs.get("c_0", zero), torch.tensor(problem.ends())
    hs, cs = [None] * steps, np.zeros((n, steps, hidden))
    for t in reversed(range(steps)) if p.reverse else range(steps):
        under_way = (t < ends)[:, None]
        z = (
            norm(inputs["x"][:, t] @ inputs["w_ih"], "gamma_x")
            + norm(h @ inputs["w_hh"], "gamma_h")
            + inputs.get("b", 0)
        )
        i, f, g, o = z.chunk(4, dim=1)
        cell = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g) * m[:, t]
        output = torch.sigmoid(o) * torch.tanh(norm(cell, "gamma_c", "beta_c"))
        h_t, c_t = k_h[:, t] * output + (1 - k_h[:, t]) * h, k_c[:, t] * cell + (1 - k_c[:, t]) * c
        h, c = torch.where(under_way, h_t, h), torch.where(under_way, c_t, c)
        h.retain_grad()
        hs[t], cs[:, t] = h, (c_t * under_way).detach().numpy()
    y = torch.stack([h_t * (t < ends)[:, None] for t, h_t in enumerate(hs)], dim=1)
    torch.autograd.backward([y, h, c], [torch.tensor(a) for a in (p.dy, p.dh_n, p.dc_n)])
    found = dict(zip(["y", "h_n", "c_n"], (a.detach().numpy() for a in (y, h, c)), strict=True))
    norms = np.array([float((h_t.grad * (t < ends)[:, None]).norm()) for t, h_t in enumerate(hs)])
    return found | {f"d{name}": a.grad.numpy() for name, a in inputs.items()}, cs, norms
