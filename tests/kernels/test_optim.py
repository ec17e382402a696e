"""Optimisers: every backend against PyTorch, and against the reference in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
from arrays import bits, with_threads
from tolerances import assert_close

from fastgrad.kernels import reference, types
from fastgrad.kernels.types import NONFINITE, OK, UpdateRule
from fastgrad.optim import SGD, Adagrad, Adam, AdamW, RMSprop

pytestmark = pytest.mark.cuda

OPTIMIZERS = {
    "sgd": SGD(0.1),
    "sgd, decay": SGD(0.1, weight_decay=0.02),
    "sgd, decoupled": SGD(0.1, weight_decay=0.02, decoupled=True),
    "momentum": SGD(0.1, 0.9),
    "momentum, decay": SGD(0.1, 0.8, weight_decay=0.02),
    "momentum, decoupled": SGD(0.1, 0.8, weight_decay=0.02, decoupled=True),
    "nesterov": SGD(0.1, 0.9, nesterov=True),
    "nesterov, decay": SGD(0.1, 0.7, nesterov=True, weight_decay=0.02),
    "adam": Adam(1e-2),
    "adam, decay": Adam(1e-2, (0.8, 0.99), 1e-3, 0.02),
    "amsgrad": Adam(1e-2, (0.8, 0.9), amsgrad=True),
    "amsgrad, decay": Adam(1e-2, (0.8, 0.9), 1e-3, 0.02, amsgrad=True),
    "adamw": AdamW(1e-2, weight_decay=0.1),
    "adamw, amsgrad": AdamW(1e-2, (0.8, 0.9), 1e-3, 0.1, amsgrad=True),
    "adagrad": Adagrad(0.1),
    "adagrad, decay": Adagrad(0.1, 1e-3, 0.02),
    "adagrad, decoupled": Adagrad(0.1, 1e-3, 0.02, decoupled=True),
    "adagrad, eps inside": Adagrad(0.1, 1e-2, eps_inside=True),
    "rmsprop": RMSprop(1e-2, eps=1e-3),
    "rmsprop, decay": RMSprop(1e-2, 0.9, 1e-3, 0.02),
    "rmsprop, decoupled": RMSprop(1e-2, 0.9, 1e-3, 0.02, decoupled=True),
    "rmsprop, momentum": RMSprop(1e-3, 0.9, 1e-3, momentum=0.8),
    "rmsprop, eps inside": RMSprop(1e-2, 0.9, 1e-2, eps_inside=True),
    "rmsprop, momentum, eps inside": RMSprop(1e-3, 0.9, 1e-2, momentum=0.8, eps_inside=True),
}
SIZES = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1023, 300_007]


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request):
    return OPTIMIZERS[request.param]


def empty_state(optimizer, size, dtype):
    return np.zeros((optimizer.state_rows, size), dtype)


def updated(backend, optimizer, params, grads, state, step, grad_scale=1.0, masks=None, constraint=None):
    """One update in place, of a list of one array; clipped where the gradient is to be scaled."""
    record, clip_norm = (
        (None, math.inf) if grad_scale == 1 else (np.empty(1), grad_scale * (norm(backend, grads) + 1e-6))
    )
    rule = UpdateRule(optimizer.code, state, optimizer.hyper, clip_norm, masks, constraint)
    assert backend.update_arrays([params], [grads], rule, step, record) == OK


def norm(backend, grads):
    """The norm that a step finds; nothing is written."""
    record, nothing = np.empty(1), np.zeros((0, grads.size), grads.dtype)
    params = np.zeros_like(grads)
    rule = UpdateRule(SGD.code, nothing, SGD(0.0).hyper, math.inf, None, None)
    backend.update_arrays([params], [grads], rule, 1, record)
    return record.item()


def torch_optimizer(torch, o, params):
    """PyTorch's; of decoupled decay it has AdamW only, and eps only outside the root."""
    decay = 0.0 if o.decoupled else o.weight_decay
    match o:
        case AdamW():
            return torch.optim.AdamW(params, o.lr, o.betas, o.eps, o.weight_decay, o.amsgrad)
        case Adam():
            return torch.optim.Adam(params, o.lr, o.betas, o.eps, decay, o.amsgrad)
        case SGD():
            return torch.optim.SGD(params, o.lr, o.momentum, 0, decay, o.nesterov)
        case Adagrad():
            return torch.optim.Adagrad(params, o.lr, 0, decay, 0, o.eps)
        case RMSprop():
            return torch.optim.RMSprop(params, o.lr, o.alpha, o.eps, decay, o.momentum)


@pytest.mark.pairwise
@pytest.mark.emulated(1)
@pytest.mark.parametrize("grad_scale", [1.0, 0.3])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "inside" not in name])
def test_matches_pytorch_for_100_updates(backend, name, dtype, grad_scale, rng, torch):
    optimizer = OPTIMIZERS[name]
    params = rng.standard_normal(33).astype(dtype)
    theirs = torch.tensor(params)
    torch_step = torch_optimizer(torch, optimizer, [theirs])
    state = empty_state(optimizer, 33, dtype)
    for step in range(1, 101):
        grads = rng.standard_normal(33).astype(dtype)
        theirs.grad = torch.tensor(grads * dtype.type(grad_scale))
        if optimizer.decoupled and not isinstance(optimizer, AdamW):
            theirs *= 1 - optimizer.lr * optimizer.weight_decay
        torch_step.step()
        updated(backend, optimizer, params, grads, state, step, grad_scale)
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(params, theirs.numpy(), rtol=tolerance, atol=tolerance * max(1, np.abs(params).max()))


@pytest.mark.emulated(1)
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "inside" in name])
def test_matches_keras_formula_for_100_updates(backend, name, rng):
    """Keras 3, optimizers/rmsprop.py and adagrad.py: one value at a time, as they are written there."""
    optimizer = OPTIMIZERS[name]
    params = rng.standard_normal(33)
    state, theirs, lr = empty_state(optimizer, 33, float), params.tolist(), optimizer.lr
    accumulators, moments = [0.0] * 33, [0.0] * 33
    for step in range(1, 101):
        grads = rng.standard_normal(33)
        updated(backend, optimizer, params, grads, state, step)
        for i, g in enumerate(grads.tolist()):
            if isinstance(optimizer, Adagrad):
                accumulators[i] += g * g
            else:
                accumulators[i] = optimizer.alpha * accumulators[i] + (1 - optimizer.alpha) * g * g
            increment = lr * g / math.sqrt(accumulators[i] + optimizer.eps)
            moments[i] = getattr(optimizer, "momentum", 0.0) * moments[i] + increment
            theirs[i] -= moments[i]
    np.testing.assert_allclose(params, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.emulated(1)
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_adam_with_eps_hat_matches_keras_formula_for_100_updates(backend, eps, rng):
    """Keras 3, optimizers/adam.py, and scikit-learn's: eps goes to the root of the uncorrected moment."""
    optimizer = Adam(1e-2, (0.8, 0.99), eps, eps_hat=True)
    params = rng.standard_normal(33)
    state, theirs = empty_state(optimizer, 33, float), params.copy()
    m, v = np.zeros((2, 33))
    for step in range(1, 101):
        grads = rng.standard_normal(33) / 100
        updated(backend, optimizer, params, grads, state, step)
        m += (grads - m) * (1 - 0.8)
        v += (np.square(grads) - v) * (1 - 0.99)
        theirs -= m * (1e-2 * math.sqrt(1 - 0.99**step) / (1 - 0.8**step)) / (np.sqrt(v) + eps)
    np.testing.assert_allclose(params, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.pairwise
@pytest.mark.parametrize("size", SIZES)
def test_matches_the_reference(backend, optimizer, dtype, size, rng):
    """From a state and a step in the middle of training: zeros hide swaps."""
    params, grads = rng.standard_normal((2, size)).astype(dtype)
    state = rng.random(empty_state(optimizer, size, dtype).shape).astype(dtype)
    exact, exact_state = params.astype(np.float64), state.astype(np.float64)
    before = bits(grads)
    updated(backend, optimizer, params, grads, state, 7, 0.5)
    updated(reference, optimizer, exact, grads.astype(np.float64), exact_state, 7, 0.5)
    assert params.dtype == state.dtype == dtype
    assert_close("optimizer", params, exact, 1)
    assert_close("optimizer", state, exact_state, 1)
    assert bits(grads) == before


def test_elements_are_independent(backend, optimizer, dtype, rng):
    """Vector body and scalar tail agree to the bit."""
    params, grads = rng.standard_normal((2, 77)).astype(dtype)
    state = rng.random(empty_state(optimizer, 77, dtype).shape).astype(dtype)
    one, one_state = params[76:].copy(), state[:, 76:].copy()
    updated(backend, optimizer, params, grads, state, 3)
    updated(backend, optimizer, one, grads[76:].copy(), one_state, 3)
    assert bits(one) == bits(params[76:])
    assert bits(one_state) == bits(state[:, 76:])


def test_any_number_of_threads_gives_the_same_bits(cpu, optimizer, dtype, rng):
    params, grads = rng.standard_normal((2, 100_003)).astype(dtype)

    def update():
        ours, state = params.copy(), np.full((optimizer.state_rows, params.size), 0.5, dtype)
        updated(cpu, optimizer, ours, grads, state, 3, 0.5)
        return bits(ours), bits(state)

    first, *others = with_threads(update)
    assert all(other == first for other in others)


def test_momentum_starts_from_the_gradient(backend, dtype, rng):
    """At step 1 whatever the state holds is not read."""
    params, grads = rng.standard_normal((2, 33)).astype(dtype)
    expected = params - dtype.type(0.1) * grads
    state = np.full((1, 33), np.nan, dtype)
    updated(backend, SGD(0.1, 0.9), params, grads, state, 1)
    np.testing.assert_allclose(params, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(state[0], grads)


def test_first_step_of_adam_is_the_learning_rate(backend, dtype, rng):
    """Kingma & Ba 2015, section 2.1: with corrected moments the first step is lr sign(g), whatever the scale of g."""
    grads = (np.sign(rng.standard_normal(33)) * np.geomspace(1e-3, 1e3, 33)).astype(dtype)
    params, state = np.zeros(33, dtype), np.zeros((2, 33), dtype)
    updated(backend, Adam(0.01, eps=0), params, grads, state, 1)
    np.testing.assert_allclose(params, -0.01 * np.sign(grads), rtol=1e-5)


def test_late_steps_of_adam(backend, dtype, rng):
    """beta^t has vanished; a step number past 2^31 is no trouble."""
    params, grads = rng.standard_normal((2, 33)).astype(dtype)
    for step in (10**6, 2**33):
        ours, exact = params.copy(), params.astype(np.float64)
        state = np.full((2, 33), 0.5, dtype)
        exact_state = state.astype(np.float64)
        updated(backend, Adam(0.01), ours, grads, state, step)
        updated(reference, Adam(0.01), exact, grads.astype(np.float64), exact_state, step)
        assert_close("optimizer", ours, exact, 1)


def test_amsgrad_keeps_the_largest_second_moment(backend, dtype):
    optimizer, params, state = Adam(amsgrad=True), np.zeros(20, dtype), np.zeros((3, 20), dtype)
    updated(backend, optimizer, params, np.full(20, 9, dtype), state, 1)
    largest = state[1].copy()
    updated(backend, optimizer, params, np.zeros(20, dtype), state, 2)
    assert (state[1] < largest).all()
    assert bits(state[2]) == bits(largest)


def test_zero_gradients_leave_fresh_parameters(backend, optimizer, dtype, rng):
    optimizer = replace(optimizer, weight_decay=0.0)
    params = rng.standard_normal(33).astype(dtype)
    before = bits(params)
    updated(backend, optimizer, params, np.zeros_like(params), empty_state(optimizer, 33, dtype), 1)
    assert bits(params) == before


def test_decoupled_decay_is_apart_from_the_gradient(backend, optimizer, dtype, rng):
    optimizer = replace(optimizer, weight_decay=0.5, decoupled=True)
    params = rng.standard_normal(33).astype(dtype)
    expected = params * dtype.type(1 - 0.5 * optimizer.lr)
    state = empty_state(optimizer, 33, dtype)
    updated(backend, optimizer, params, np.zeros_like(params), state, 1)
    assert bits(params) == bits(expected)
    assert not state.any()


def test_nan_and_infinity_reach_the_parameters(backend, optimizer, dtype, rng):
    params, grads = rng.standard_normal((2, 33)).astype(dtype)
    state = empty_state(optimizer, 33, dtype)
    grads[[3, 30]] = np.nan
    grads[20] = np.inf
    updated(backend, optimizer, params, grads, state, 1)
    assert np.isnan(params[[3, 30]]).all()
    assert np.isnan(state[:, [3, 30]]).all()
    assert not np.isfinite(params[20])
    assert np.isfinite(np.delete(params, [3, 20, 30])).all()
    updated(backend, optimizer, params, np.ones_like(params), state, 2)
    assert np.isnan(params[[3, 30]]).all()
    assert np.isnan(state[:, [3, 30]]).all()


@pytest.mark.parametrize("size", SIZES)
def test_norm(backend, dtype, size, rng):
    values = rng.standard_normal(size).astype(dtype)
    before = bits(values)
    assert norm(backend, values) == pytest.approx(math.sqrt(math.fsum(v * v for v in values.tolist())), rel=1e-13)
    assert bits(values) == before


def test_norm_adds_in_float64(backend):
    """1e25 squared is past float32, and 1 beside 2^24 is past its precision."""
    assert norm(backend, np.full(100, 1e25, np.float32)) == pytest.approx(10 * float(np.float32(1e25)))
    values = np.concatenate([[2.0**12], np.ones(1000)]).astype(np.float32)
    assert norm(backend, values) == math.sqrt(2.0**24 + 1000)


@pytest.mark.pairwise
@pytest.mark.parametrize("place", [0, 16, 1022])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_norm_that_is_not_finite_updates_nothing(backend, optimizer, dtype, place, value):
    params, grads, state, record = (
        np.ones(1023, dtype),
        np.ones(1023, dtype),
        empty_state(optimizer, 1023, dtype),
        np.empty(1),
    )
    grads[place] = value
    rule = UpdateRule(optimizer.code, state, optimizer.hyper, 1.0, None, None)
    assert backend.update_arrays([params], [grads], rule, 1, record) == NONFINITE
    assert math.isnan(record[0]) if math.isnan(value) else record[0] == math.inf
    assert (params == 1).all()
    assert not state.any()


# an optimiser, and a gradient and state whose next second moment, velocity or parameter float32 cannot hold
OVERFLOWS = {
    "adam": (Adam(0.1), 1e21, 0.0),
    "amsgrad": (Adam(0.1, amsgrad=True), 1e21, 0.0),
    "adamw": (AdamW(0.1), -1e21, 0.0),
    "rmsprop": (RMSprop(0.1), 1e21, 0.0),
    "rmsprop, momentum": (RMSprop(0.1, momentum=0.5), 1e21, 0.0),
    "adagrad": (Adagrad(0.1), 1e20, 0.0),
    "adagrad, sum": (Adagrad(0.1), 1.2e19, 3e38),
    "sgd": (SGD(100.0), 1e37, 0.0),
    "momentum": (SGD(0.1, 0.9), 3e38, 3e38),
    "momentum above 1": (SGD(0.1, 10.0), 1.0, 1e38),
    "no eps": (Adam(0.1, eps=0.0), 0.0, 0.0),
    "eps of no float32": (RMSprop(0.1, eps=1e-60), 0.0, 0.0),
}


@pytest.mark.parametrize("takes_norm", [False, True])
@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_update_that_would_end_in_what_is_not_finite_is_not_made(backend, name, takes_norm):
    optimizer, gradient, state_before = OVERFLOWS[name]
    params, grads = np.ones(2000, np.float32), np.ones(2000, np.float32)
    state = np.full((optimizer.state_rows, 2000), 0.5, np.float32)
    grads[1500], state[:, 1500] = gradient, state_before
    before = bits(params), bits(state)
    record = np.empty(1) if takes_norm else None
    rule = UpdateRule(optimizer.code, state, optimizer.hyper, math.inf, None, None)
    assert backend.update_arrays([params], [grads], rule, 2, record) == NONFINITE
    assert (bits(params), bits(state)) == before
    # nothing revives what is pruned, nor can it overflow
    masks = np.arange(2000) != 1500
    assert backend.update_arrays([params], [grads], rule._replace(masks=masks), 2, record) == OK
    assert params[1500] == 0
    assert np.isfinite(params).all()
    assert np.isfinite(state).all()


def test_decay_of_a_vast_parameter_can_overflow_as_well(backend):
    params, grads, state = np.full(5, 1e22, np.float32), np.zeros(5, np.float32), np.zeros((2, 5), np.float32)
    rule = UpdateRule(types.ADAM, state, Adam(0.1, weight_decay=1.0).hyper, math.inf, None, None)
    assert backend.update_arrays([params], [grads], rule, 1, None) == NONFINITE
    assert (params == np.float32(1e22)).all()
    assert not state.any()


@pytest.mark.parametrize("what", ["params", "grads", "state"])
def test_a_value_that_was_not_finite_before_stops_no_update(backend, what):
    optimizer = Adam(0.1)
    params, grads = np.ones(40, np.float32), np.full(40, 1e18, np.float32)
    state = np.zeros((2, 40), np.float32)
    {"params": params, "grads": grads, "state": state[1]}[what][3] = np.inf
    rule = UpdateRule(optimizer.code, state, optimizer.hyper, math.inf, None, None)
    assert backend.update_arrays([params], [grads], rule, 1, None) == OK
    others = np.arange(40) != 3
    # the first step of Adam is the learning rate
    np.testing.assert_allclose(params[others], 0.9, rtol=1e-6)
    assert np.isfinite(state[:, others]).all()
    assert {"params": params[3] == np.inf, "grads": np.isnan(params[3]), "state": params[3] == 1}[what]


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adagrad", "momentum"])
def test_a_vast_gradient_that_fits_is_updated_as_in_float64(backend, name, rng):
    optimizer = OPTIMIZERS[name]
    params = rng.standard_normal(40).astype(np.float32)
    grads = (rng.standard_normal(40) * 1e18).astype(np.float32)
    exact, state = params.astype(np.float64), empty_state(optimizer, 40, np.float32)
    updated(backend, optimizer, params, grads, state, 1)
    exact_state = empty_state(optimizer, 40, np.float64)
    updated(reference, optimizer, exact, grads.astype(np.float64), exact_state, 1)
    np.testing.assert_allclose(params, exact, rtol=1e-5)
    np.testing.assert_allclose(state, exact_state, rtol=1e-5)


def test_a_step_of_a_chain_that_would_overflow_is_not_made(backend):
    """Its gradient is 1e21, whose norm float64 holds."""
    params, grads = np.zeros(2, np.float32), np.zeros(2, np.float32)
    table, state = np.array([(1, 1, 0, 1, types.IDENTITY)], np.int64), np.zeros((2, 2), np.float32)
    x, target = np.ones((1, 1), np.float32), np.full((1, 1), -5e20, np.float32)
    work = np.empty(types.workspace_size((1, 1), 1), np.float32)
    net = types.Net(table, np.zeros(1), types.Loss(types.MSE), params, grads, work)
    rule = UpdateRule(types.ADAM, state, Adam(0.1).hyper, math.inf, None, None)
    record = np.zeros(2)
    assert backend.dense_chain_step(x, target, net, rule, 0, record) == NONFINITE
    assert not params.any()
    assert not state.any()
    batches = types.Batches(np.zeros(1, np.int64), 1, np.full(1, 0.1))
    status, done = backend.dense_chain_epoch(x, target, batches, net, rule, 0, np.zeros((1, 2)))
    assert (status, done) == (NONFINITE, 0)
    assert not params.any()
    assert not state.any()


@pytest.mark.parametrize("takes_norm", [True, False])
def test_an_update_follows_a_status_that_is_ok_alone(backend, optimizer, dtype, takes_norm, rng):
    params, grads = rng.standard_normal((2, 33)).astype(dtype)
    rule = UpdateRule(optimizer.code, empty_state(optimizer, 33, dtype), optimizer.hyper, 1.0, None, None)
    record, updates, before = (
        np.empty(1) if takes_norm else None,
        np.zeros(1, np.int64),
        (bits(params), bits(rule.state)),
    )
    for status in (types.BAD_LABEL, NONFINITE, np.array(types.BAD_LABEL)):
        assert backend.update_arrays([params], [grads], rule, 1, record, updates=updates, only_if=status) == status
        assert (bits(params), bits(rule.state)) == before
        assert updates[0] == 0
    expected, state = params.copy(), rule.state.copy()
    backend.update_arrays([expected], [grads], rule._replace(state=state), 1, record)
    assert backend.update_arrays([params], [grads], rule, 1, record, updates=updates, only_if=OK) == OK
    assert (bits(params), bits(rule.state)) == (bits(expected), bits(state))
    assert updates[0] == 1
