"""fg.lstm_cell: a step of an LSTM alone, beside PyTorch's cell and the sequence."""

import numpy as np
import pytest
from arrays import bits, numerical_gradient
from lstms import (
    OPTIONS,
    assert_all_close,
    forward,
    random_lstm,
    run,
    torch_steps,
)
from tolerances import assert_close

import fastgrad as fg

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
def test_cells_and_step_norms_match_a_loop_of_pytorch_cells(in_force, dtype, lengths, reverse, rng, torch):
    problem = random_lstm(rng, 11, 8, 5, 9, dtype, lengths=lengths, reverse=reverse)
    (_, _, _, c), backward = forward(problem, cells=True)
    norms = np.full(8, np.nan)
    gradients = backward(problem.dy, problem.dh_n, problem.dc_n, step_norms=norms)
    expected_c, expected_norms = torch_steps(torch, problem)
    assert c.dtype == dtype
    assert_all_close({"c": c}, {"c": expected_c})
    assert_close("lstm", norms.astype(dtype), expected_norms)
    without = backward(problem.dy, problem.dh_n, problem.dc_n)
    assert [bits(a) for a in gradients] == [bits(a) for a in without]


@pytest.mark.parametrize("given", [("dh",), ("dc",), ("dh", "dc")], ids="+".join)
def test_cell_matches_pytorch(in_force, dtype, given, rng, torch):
    p = random_lstm(rng, 7, 1, 5, 9, dtype)
    inputs = {"x": p.x[:, 0], "h": p.h_0, "c": p.c_0, "w_ih": p.w_ih, "w_hh": p.w_hh, "b": p.b}
    (h, c), backward = fg.lstm_cell(**inputs)
    upstreams = {"dh": p.dh_n, "dc": p.dc_n}
    gradients = backward(**{name: upstreams[name] for name in given})
    cell = torch.nn.LSTMCell(5, 9, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih[...], cell.weight_hh[...] = torch.tensor(p.w_ih.T), torch.tensor(p.w_hh.T)
        cell.bias_ih[...], cell.bias_hh[...] = torch.tensor(p.b), 0
    states = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (p.x[:, 0], p.h_0, p.c_0)]
    results = dict(zip(upstreams, cell(states[0], states[1:]), strict=True))
    sum((results[name] * torch.tensor(upstreams[name])).sum() for name in given).backward()
    expected = [results["dh"].detach(), results["dc"].detach(), *(a.grad for a in states)]
    expected += [cell.weight_ih.grad.T, cell.weight_hh.grad.T, cell.bias_ih.grad]
    for actual, theirs in zip([h, c, *gradients], expected, strict=True):
        assert actual.dtype == dtype
        assert_close("lstm", actual, theirs.numpy(), float(theirs.abs().max()))


def steps_of(problem):
    """(y, c of every step, h_n, c_n) of lstm_cell, step after step."""
    p, h, c, hs, cs = problem, problem.h_0, problem.c_0, [], []
    for t in range(p.x.shape[1]):
        (h, c), _ = fg.lstm_cell(p.x[:, t], h, c, p.w_ih, p.w_hh, p.b, peephole=p.peephole, w_proj=p.w_proj)
        hs.append(h)
        cs.append(c)
    return np.stack(hs, axis=1), np.stack(cs, axis=1), h, c


@pytest.mark.parametrize("options", ["plain", "no_bias", "peephole", "projection", "wide_projection"])
def test_a_cell_stepped_is_the_sequence(in_force, dtype, options, rng):
    problem = random_lstm(rng, 7, 6, 3, 9, dtype, **OPTIONS[options])
    (y, h_n, c_n, c), _ = forward(problem, cells=True)
    stepped = dict(zip(["y", "c", "h_n", "c_n"], steps_of(problem), strict=True))
    assert_all_close({"y": y, "c": c, "h_n": h_n, "c_n": c_n}, stepped)


def test_cells_do_not_change_the_other_results(in_force, dtype, rng):
    problem = random_lstm(rng, 7, 6, 3, 9, dtype, lengths="random", reverse=True)
    with_cells, backward = forward(problem, cells=True)
    without, other = forward(problem)
    assert [bits(a) for a in with_cells[:3]] == [bits(a) for a in without]
    ours, theirs = backward(problem.dy), other(problem.dy)
    assert [bits(a) for a in ours] == [bits(a) for a in theirs]


@pytest.mark.emulated(0)
@pytest.mark.parametrize("options", ["no_bias", "peephole", "projection"])
def test_cell_gradients_are_central_differences(in_force, options, rng):
    p = random_lstm(rng, 3, 1, 2, 4, **OPTIONS[options])
    inputs = {"x": p.x[:, 0].copy(), "h": p.h_0, "c": p.c_0, "w_ih": p.w_ih, "w_hh": p.w_hh}
    inputs |= p.named(("b", "peephole", "w_proj"))
    _, backward = fg.lstm_cell(**inputs)

    def value():
        (h, c), _ = fg.lstm_cell(**inputs)
        return float((h * p.dh_n).sum() + (c * p.dc_n).sum())

    for gradient, array in zip(backward(p.dh_n, p.dc_n), inputs.values(), strict=True):
        assert_close("numerical", gradient, numerical_gradient(value, array), size=10)


@pytest.mark.pairwise
@pytest.mark.parametrize("options", ["plain", "no_bias", "peephole", "projection", "wide_projection"])
@pytest.mark.parametrize(("n", "hidden"), [(1, 5), (7, 9), (33, 64)], ids=str)
def test_a_cell_stepped_back_adds_up_the_gradients_of_the_sequence(in_force, dtype, options, n, hidden, rng):
    p = random_lstm(rng, n, 5, 3, hidden, dtype, **OPTIONS[options])
    weights = p.named(("w_ih", "w_hh", "b", "peephole", "w_proj"))
    h, c, ways_back = p.h_0, p.c_0, []
    for t in range(5):
        (h, c), backward = fg.lstm_cell(p.x[:, t], h, c, **weights)
        ways_back.append(backward)
    # apart from each other, and not zero at first
    gradients = [rng.standard_normal(w.shape).astype(dtype) for w in weights.values()]
    before = [gradient.copy() for gradient in gradients]
    dh, dc, dxs = p.dh_n, p.dc_n, []
    for t in reversed(range(5)):
        dx, dh, dc = ways_back[t](dh + p.dy[:, t], dc, gradients=gradients)
        dxs.insert(0, dx)
    added = [gradient - start for gradient, start in zip(gradients, before, strict=True)]
    found = dict(
        zip(["dx", "dh_0", "dc_0", *(f"d{name}" for name in weights)], [np.stack(dxs, 1), dh, dc, *added], strict=True)
    )
    expected = run(p)
    for name, value in found.items():
        # a gradient of around 1 was added to
        assert_close("lstm", value, expected[name], 4 + np.abs(expected[name]).max(initial=0), terms=5 * n)


def test_a_cell_stepped_has_the_bits_of_the_sequence(cpu, dtype, rng):
    for n, c, hidden in ((7, 3, 9), (131, 40, 65)):
        problem = random_lstm(rng, n, 6, c, hidden, dtype, peephole=True)
        (y, h_n, c_n, cells), _ = forward(problem, cells=True)
        assert [bits(a) for a in steps_of(problem)] == [bits(a) for a in (y, cells, h_n, c_n)]
