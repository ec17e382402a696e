"""Optimisers: every backend against PyTorch, and against the reference in float64."""

import math

import numpy as np
import pytest
from arrays import bits
from fastgrad.kernels import reference
from fastgrad.kernels.names import ADAM, SGD
from tolerances import assert_close

HYPER = {  # lr, momentum or beta1, beta2, eps, weight_decay, nesterov
    "sgd": (SGD, [0.1, 0, 0, 0, 0, 0]),
    "sgd, decay": (SGD, [0.1, 0, 0, 0, 0.02, 0]),
    "momentum": (SGD, [0.1, 0.9, 0, 0, 0, 0]),
    "momentum, decay": (SGD, [0.1, 0.8, 0, 0, 0.02, 0]),
    "nesterov": (SGD, [0.1, 0.9, 0, 0, 0, 1]),
    "nesterov, decay": (SGD, [0.1, 0.7, 0, 0, 0.02, 1]),
    "adam": (ADAM, [1e-2, 0.9, 0.999, 1e-8, 0, 0]),
    "adam, decay": (ADAM, [1e-2, 0.8, 0.99, 1e-3, 0.02, 0]),
}
SIZES = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1023, 300_007]


@pytest.fixture(params=HYPER)
def optimizer(request):
    code, hyper = HYPER[request.param]
    return code, np.array(hyper)


def empty_state(optimizer, size, dtype):
    code, hyper = optimizer
    return np.zeros((2 if code == ADAM else int(hyper[1] != 0), size), dtype)


def torch_optimizer(torch, optimizer, params):
    code, (lr, beta1, beta2, eps, weight_decay, nesterov) = optimizer[0], optimizer[1].tolist()
    if code == ADAM:
        return torch.optim.Adam(params, lr, (beta1, beta2), eps, weight_decay)
    return torch.optim.SGD(params, lr, beta1, 0, weight_decay, bool(nesterov))


@pytest.mark.parametrize("grad_scale", [1.0, 0.3])
def test_matches_pytorch_for_100_updates(backend, optimizer, dtype, grad_scale, rng, torch):
    params = rng.standard_normal(33).astype(dtype)
    theirs = torch.tensor(params)
    torch_step = torch_optimizer(torch, optimizer, [theirs])
    state = empty_state(optimizer, 33, dtype)
    for step in range(1, 101):
        grads = rng.standard_normal(33).astype(dtype)
        theirs.grad = torch.tensor(grads * dtype.type(grad_scale))
        torch_step.step()
        backend.update(params, grads, optimizer[0], state, optimizer[1], step, grad_scale)
        assert_close("optimizer", params, theirs.numpy(), 4, terms=step)


@pytest.mark.parametrize("size", SIZES)
def test_matches_the_reference(backend, optimizer, dtype, size, rng):
    """From a state and a step in the middle of training: zeros hide swaps."""
    params, grads = rng.standard_normal((2, size)).astype(dtype)
    state = rng.random(empty_state(optimizer, size, dtype).shape).astype(dtype)
    exact, exact_state = params.astype(np.float64), state.astype(np.float64)
    before = bits(grads)
    backend.update(params, grads, optimizer[0], state, optimizer[1], 7, 0.5)
    reference.update(exact, grads.astype(np.float64), optimizer[0], exact_state, optimizer[1], 7, 0.5)
    assert params.dtype == state.dtype == dtype
    assert_close("optimizer", params, exact, 1)
    assert_close("optimizer", state, exact_state, 1)
    assert bits(grads) == before


def test_elements_are_independent(backend, optimizer, dtype, rng):
    """Vector body and scalar tail agree to the bit."""
    params, grads = rng.standard_normal((2, 77)).astype(dtype)
    state = rng.random(empty_state(optimizer, 77, dtype).shape).astype(dtype)
    one, one_state = params[76:].copy(), state[:, 76:].copy()
    backend.update(params, grads, optimizer[0], state, optimizer[1], 3, 0.5)
    backend.update(one, grads[76:].copy(), optimizer[0], one_state, optimizer[1], 3, 0.5)
    assert bits(one) == bits(params[76:])
    assert bits(one_state) == bits(state[:, 76:])


def test_momentum_starts_from_the_gradient(backend, dtype, rng):
    """At step 1 whatever the state holds is not read."""
    params, grads = rng.standard_normal((2, 33)).astype(dtype)
    expected = params - dtype.type(0.1) * grads
    state = np.full((1, 33), np.nan, dtype)
    backend.update(params, grads, SGD, state, np.array([0.1, 0.9, 0, 0, 0, 0]), 1, 1.0)
    np.testing.assert_allclose(params, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(state[0], grads)


def test_first_step_of_adam_is_the_learning_rate(backend, dtype, rng):
    """Kingma & Ba 2015, section 2.1: with corrected moments the first step is lr sign(g), whatever the scale of g."""
    grads = (np.sign(rng.standard_normal(33)) * np.geomspace(1e-3, 1e3, 33)).astype(dtype)
    params, state = np.zeros(33, dtype), np.zeros((2, 33), dtype)
    backend.update(params, grads, ADAM, state, np.array([0.01, 0.9, 0.999, 0, 0, 0]), 1, 1.0)
    np.testing.assert_allclose(params, -0.01 * np.sign(grads), rtol=1e-5)


def test_late_steps_of_adam(backend, dtype, rng):
    """beta^t has vanished; a step number past 2^31 is no trouble."""
    params, grads = rng.standard_normal((2, 33)).astype(dtype)
    for step in (10**6, 2**33):
        ours, exact = params.copy(), params.astype(np.float64)
        state = np.full((2, 33), 0.5, dtype)
        exact_state = state.astype(np.float64)
        hyper = HYPER["adam"][1]
        backend.update(ours, grads, ADAM, state, np.array(hyper), step, 1.0)
        reference.update(exact, grads.astype(np.float64), ADAM, exact_state, np.array(hyper), step, 1.0)
        assert_close("optimizer", ours, exact, 1)


def test_zero_gradients_leave_fresh_parameters(backend, dtype, rng):
    for code, hyper in HYPER.values():
        hyper = np.array(hyper)
        hyper[4] = 0
        params = rng.standard_normal(33).astype(dtype)
        before = bits(params)
        backend.update(params, np.zeros_like(params), code, empty_state((code, hyper), 33, dtype), hyper, 1, 1.0)
        assert bits(params) == before


def test_nan_and_infinity_reach_the_parameters(backend, optimizer, dtype, rng):
    params, grads = rng.standard_normal((2, 33)).astype(dtype)
    grads[[3, 30]] = np.nan
    grads[20] = np.inf
    backend.update(params, grads, optimizer[0], empty_state(optimizer, 33, dtype), optimizer[1], 1, 1.0)
    assert np.isnan(params[[3, 30]]).all()
    assert not np.isfinite(params[20])
    assert np.isfinite(np.delete(params, [3, 20, 30])).all()


@pytest.mark.parametrize("size", SIZES)
def test_squared_norm(backend, dtype, size, rng):
    values = rng.standard_normal(size).astype(dtype)
    before = bits(values)
    result = backend.squared_norm(values)
    assert type(result) is float
    assert result == pytest.approx(math.fsum(v * v for v in values.tolist()), rel=1e-13)
    assert bits(values) == before


def test_squared_norm_adds_in_float64(backend):
    """1e25 squared is past float32, and 1 beside 2^24 is past its precision."""
    assert backend.squared_norm(np.full(100, 1e25, np.float32)) == pytest.approx(100 * float(np.float32(1e25)) ** 2)
    values = np.concatenate([[2.0**12], np.ones(1000)]).astype(np.float32)
    assert backend.squared_norm(values) == 2.0**24 + 1000


@pytest.mark.parametrize("place", [0, 16, 1022])
def test_squared_norm_of_nan_and_infinity(backend, dtype, place):
    values = np.ones(1023, dtype)
    values[place] = -np.inf
    assert backend.squared_norm(values) == math.inf
    values[place] = np.nan
    assert math.isnan(backend.squared_norm(values))
