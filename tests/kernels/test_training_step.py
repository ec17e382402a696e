"""Whole steps of a dense chain: the reference against central differences and PyTorch, every backend against both."""

import math

import numpy as np
import pytest
from arrays import bits, numerical_gradient, unwritten, with_threads
from chains import (
    NO_UPDATE,
    TARGETS,
    check_margins,
    clone,
    random_net,
    random_problem,
    step,
    torch_activation,
    with_margins,
)
from tolerances import assert_close, relative

from fastgrad.kernels import reference, types
from fastgrad.kernels.types import (
    ACTIVATIONS,
    ADAGRAD,
    ADAM,
    BAD_LABEL,
    NONFINITE,
    OK,
    RMSPROP,
    SGD,
    Batches,
    workspace_size,
)

pytestmark = pytest.mark.cuda

OPTIMIZERS = {  # lr, momentum or beta1, beta2, eps, weight_decay, form, decoupled
    "sgd": (SGD, [0.05, 0, 0, 0, 0, 0, 0]),
    "momentum": (SGD, [0.05, 0.9, 0, 0, 1e-3, 0, 0]),
    "nesterov": (SGD, [0.05, 0.9, 0, 0, 0, 1, 0]),
    "adam": (ADAM, [1e-3, 0.9, 0.999, 1e-8, 0, 0, 0]),
    "adam, decay": (ADAM, [1e-2, 0.8, 0.99, 1e-6, 1e-2, 0, 0]),
    "adamw": (ADAM, [1e-2, 0.8, 0.99, 1e-6, 0.1, 0, 1]),
    "adagrad": (ADAGRAD, [1e-2, 0, 0, 1e-6, 0, 0, 0]),
    "rmsprop": (RMSPROP, [1e-3, 0, 0.9, 1e-6, 1e-2, 0, 0]),
}


def in_float64(net):
    """The same net with arrays of float64."""
    exact = clone(net)
    for name in ("params", "grads", "state", "work"):
        setattr(exact, name, getattr(net, name).astype(np.float64))
    return exact


def exact_target(target):
    return target if target.dtype == np.int64 else target.astype(np.float64)


def assert_step_matches_reference(backend, net, x, target, number=0):
    exact = in_float64(net)
    status, loss, norm = step(backend, net, x, target, number)
    exact_status, exact_loss, exact_norm = step(reference, exact, x.astype(np.float64), exact_target(target), number)
    assert status == exact_status == OK
    rel = 16 * relative("train_gradient", x.dtype)
    assert loss == pytest.approx(exact_loss, rel=rel, abs=rel)
    assert norm == pytest.approx(exact_norm, rel=rel)
    assert norm == pytest.approx(math.sqrt(math.fsum((net.grads.astype(np.float64) ** 2).tolist())), rel=1e-9)
    terms = max(len(x), *net.table[:, :2].flat)
    largest = np.abs(exact.grads).max(initial=0)
    assert_close("train_gradient", net.grads, exact.grads, len(net.table) * largest, terms)
    return exact


@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("last", ACTIVATIONS)
def test_reference_gradient_is_the_central_difference_of_the_loss(target_kind, last, rng):
    net, x, target = random_problem(rng, 4, [3, 5, 3], ["tanh", last], np.float64, target_kind, **NO_UPDATE)
    step(reference, net, x, target)
    analytic = net.grads.copy()
    numerical = numerical_gradient(lambda: step(reference, net, x, target)[1], net.params)
    assert_close("numerical", analytic, numerical, size=1)


def torch_train(torch, net, batches):
    """Parameters, losses and norms of PyTorch after a step on each batch, from the same flat parameters."""
    F = torch.nn.functional

    def views(flat):
        return [
            (flat[w : w + k * m].reshape(k, m), flat[b : b + m] if b >= 0 else None)
            for k, m, w, b, _ in net.table.tolist()
        ]

    fused = {types.CROSS_ENTROPY: types.SOFTMAX, types.BINARY_CROSS_ENTROPY: types.SIGMOID}.get(net.loss.code)
    loss_function = [F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss, F.poisson_nll_loss][net.loss.code]
    activations = [types.Activation(*f) for f in zip(net.table[:, 4].tolist(), net.parameters, strict=True)]
    if activations[-1].code == fused:
        activations[-1] = ACTIVATIONS["identity"]
    flat = torch.tensor(net.params, requires_grad=True)
    lr, beta1, beta2, eps, decay, nesterov, decoupled = net.hyper.tolist()
    if net.optimizer == ADAM:
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        optimizer = kind([flat], lr, (beta1, beta2), eps, decay)
    elif net.optimizer == ADAGRAD:
        optimizer = torch.optim.Adagrad([flat], lr, 0, decay, 0, eps)
    elif net.optimizer == RMSPROP:
        optimizer = torch.optim.RMSprop([flat], lr, beta2, eps, decay)
    else:
        optimizer = torch.optim.SGD([flat], lr, beta1, 0, decay, bool(nesterov))
    losses, norms = [], []
    for x, target in batches:
        optimizer.zero_grad()
        a = torch.tensor(x)
        for (w, b), f in zip(views(flat), activations, strict=True):
            a = torch_activation(f, a @ w + (0 if b is None else b))
        loss = loss_function(a, torch.tensor(target))
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_([flat], net.clip_norm)))
        losses.append(float(loss.detach()))
        optimizer.step()
    return flat.detach().numpy(), losses, norms


@pytest.mark.pairwise
@pytest.mark.host
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [math.inf, 0.1])
def test_100_steps_match_pytorch(backend, dtype, optimizer, clip_norm, rng, torch):
    code, hyper = OPTIMIZERS[optimizer]
    net = random_net(
        rng, [20, 33, 17, 10], ["tanh", "silu", "softmax"], dtype, 32,
        loss="cross_entropy", optimizer=code, hyper=hyper, clip_norm=clip_norm,
    )  # fmt: skip
    batches = [(rng.standard_normal((32, 20)).astype(dtype), rng.integers(0, 10, 32)) for _ in range(100)]
    expected, losses, norms = torch_train(torch, net, batches)
    records = [step(backend, net, x, labels, number) for number, (x, labels) in enumerate(batches)]
    assert all(status == OK for status, _, _ in records)
    rel = relative("100_steps", dtype)
    np.testing.assert_allclose([loss for _, loss, _ in records], losses, rtol=rel)
    np.testing.assert_allclose([norm for _, _, norm in records], norms, rtol=10 * rel)
    np.testing.assert_allclose(net.params, expected, rtol=rel, atol=rel)
    assert clip_norm == math.inf or min(norms) > clip_norm


@pytest.mark.pairwise
@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("last", ACTIVATIONS)
def test_every_loss_after_every_activation_matches_pytorch(backend, dtype, target_kind, last, rng, torch):
    net, x, target = random_problem(rng, 17, [9, 16, 7], ["relu", last], dtype, target_kind, clip_norm=1.0)
    net.hyper[3] = 1e-3
    batches = [(x, target), (x[::-1].copy(), target[::-1].copy())]
    expected, losses, norms = torch_train(torch, net, batches)
    records = [step(backend, net, *batch, number) for number, batch in enumerate(batches)]
    rel = 16 * relative("train_gradient", dtype)
    np.testing.assert_allclose(records, [(OK, *pair) for pair in zip(losses, norms, strict=True)], rtol=rel)
    assert_close("train_gradient", net.params, expected, 16)


@pytest.mark.pairwise
@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("last", ACTIVATIONS)
def test_every_loss_after_every_last_activation_matches_the_reference(backend, dtype, target_kind, last, rng):
    net, x, target = random_problem(rng, 33, [9, 16, 11], ["tanh", last], dtype, target_kind)
    assert_step_matches_reference(backend, net, x, target)


@pytest.mark.parametrize("hidden", ACTIVATIONS)
def test_every_hidden_activation_matches_the_reference(backend, dtype, hidden, rng):
    net, x, target = random_problem(rng, 33, [9, 16, 17, 1], [hidden, hidden, "sigmoid"], dtype, "binary_cross_entropy")
    assert_step_matches_reference(backend, net, x, target)


@pytest.mark.pairwise
@pytest.mark.parametrize(
    ("n", "widths"),
    [
        (1, (1, 1)), (2, (3, 1)), (1, (7, 8, 9)), (5, (17, 33, 2)), (31, (15, 16, 31, 10)), (32, (20, 10, 1)),
        (32, (100, 100, 100, 10)), (128, (784, 64, 64, 10)), (127, (785, 65, 64, 10)), (1023, (33, 17, 3)),
        (3, (1500, 700, 5)), (19, (64,) * 51),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_shapes(backend, dtype, n, widths, bias, rng):
    """The nets of the benchmarks, odd widths, one layer and fifty, both sides of the threading threshold."""
    activations = ["tanh"] * (len(widths) - 2) + ["softmax"]
    net, x, target = random_problem(rng, n, widths, activations, dtype, "cross_entropy", clip_norm=1.0, bias=bias)
    exact = assert_step_matches_reference(backend, net, x, target)
    # the first step of adam is lr sign(g): a gradient lost in rounding may turn its step around
    sure = np.abs(exact.grads) > 1e3 * relative("train_gradient", dtype) * np.abs(exact.grads).max()
    np.testing.assert_allclose(net.params[sure], exact.params[sure], rtol=1e-5, atol=1e-5)


@pytest.mark.pairwise
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [math.inf, 1e-2])
def test_update_is_the_optimizers(backend, dtype, optimizer, clip_norm, rng):
    """Parameters after a step are those of `update_arrays` on the recorded gradient, from the middle of training."""
    code, hyper = OPTIMIZERS[optimizer]
    net, x, target = random_problem(
        rng, 33, [9, 16, 11], ["tanh", "relu"], dtype, optimizer=code, hyper=hyper, clip_norm=clip_norm
    )
    net.state[...] = rng.random(net.state.shape)
    params, state = net.params.copy(), net.state.copy()
    status, _, norm = step(backend, net, x, target, 6)
    assert status == OK
    record = np.empty(1)
    backend.update_arrays([params], [net.grads], net.rule()._replace(state=state), 7, record)
    assert record[0] == pytest.approx(norm, rel=1e-12)
    assert_close("optimizer", net.params, params, 1)
    assert_close("optimizer", net.state, state, 1)


def test_inputs_are_not_written_and_may_be_read_only(backend, dtype, rng):
    for kind in TARGETS:
        net, x, target = random_problem(rng, 33, [9, 16, 11], ["silu", "softmax"], dtype, kind)
        inputs = [x, target, net.table, net.parameters, net.hyper]
        before = [bits(a) for a in inputs]
        for a in inputs:
            a.flags.writeable = False
        step(backend, net, x, target)
        assert [bits(a) for a in inputs] == before


def test_nothing_outside_the_buffers_is_written(backend, dtype, rng):
    net, x, target = random_problem(rng, 33, [9, 17, 11], ["gelu", "softmax"], dtype, "cross_entropy")
    wide = with_margins(net, dtype)
    record = np.full(202, 7.0)
    net_arguments = net.keyword()
    assert backend.dense_chain_step(x=x, target=target, step=0, record=record[100:102], **net_arguments) == OK
    check_margins([*wide, record])


@pytest.mark.pairwise
@pytest.mark.parametrize("n", [5, 300])
@pytest.mark.parametrize("bad", [-1, 10, 2**40, -(2**63)])
@pytest.mark.parametrize("place", [0, 3, -1])
@pytest.mark.parametrize("last", ["softmax", "identity"])
def test_bad_label_leaves_parameters_and_state(backend, dtype, n, bad, place, last, rng):
    net, x, labels = random_problem(rng, n, [33, 65, 10], ["tanh", last], dtype, "cross_entropy")
    net.state[...] = rng.random(net.state.shape)
    labels[place] = bad
    before = bits(net.params), bits(net.state)
    assert step(backend, net, x, labels, 3)[0] == BAD_LABEL
    assert (bits(net.params), bits(net.state)) == before


@pytest.mark.pairwise
@pytest.mark.parametrize("n", [5, 300])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "params", "target"])
@pytest.mark.parametrize("clip_norm", [math.inf, 1.0])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_gradient_that_is_not_finite_leaves_parameters_and_state(
    backend, dtype, n, bad, where, clip_norm, optimizer, rng
):
    code, hyper = OPTIMIZERS[optimizer]
    net, x, target = random_problem(
        rng, n, [33, 65, 10], ["identity", "identity"], dtype, optimizer=code, hyper=hyper, clip_norm=clip_norm
    )
    net.state[...] = rng.random(net.state.shape)
    {"x": x, "params": net.params, "target": target}[where].flat[3] = bad
    before = bits(net.params), bits(net.state)
    status, _, norm = step(backend, net, x, target, 3)
    assert status == NONFINITE
    assert not math.isfinite(norm)
    assert (bits(net.params), bits(net.state)) == before


def test_a_gradient_too_large_for_its_square_is_clipped(backend, rng):
    """1e25 squared is past float32, but norms are float64."""
    net, x, target = random_problem(rng, 5, [3, 2], ["identity"], np.dtype(np.float32), clip_norm=1.0, **NO_UPDATE)
    target *= np.float32(1e25)
    status, _, norm = step(backend, net, x, target)
    assert status == OK
    assert 1e23 < norm < 1e27


@pytest.mark.pairwise
@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("last", ["softmax", "sigmoid", "gelu"])
def test_empty_batch_has_no_loss_and_no_gradient(backend, dtype, target_kind, last, rng):
    net, x, target = random_problem(rng, 0, [9, 16, 11], ["tanh", last], dtype, target_kind)
    before = bits(net.params)
    assert step(backend, net, x, target) == (OK, 0.0, 0.0)
    assert not net.grads.any()
    assert bits(net.params) == before


@pytest.mark.parametrize("widths", [(0, 3, 4), (3, 0, 4), (0, 0, 4), (3, 4, 0)])
def test_zero_width_layers(backend, dtype, widths, rng):
    for kind in ("mse", "binary_cross_entropy"):
        net, x, target = random_problem(rng, 7, widths, ["tanh", "sigmoid"], dtype, kind)
        assert_step_matches_reference(backend, net, x, target)


def epoch(backend, net, x, target, order, batch_size, number=0, rates=None):
    """(status, batches done, record) of dense_chain_epoch."""
    batches = -(-len(order) // batch_size)
    record = unwritten((batches, 2), np.float64)
    rates = np.full(batches, net.hyper[0]) if rates is None else rates
    status, done = backend.dense_chain_epoch(
        x=x, target=target, batches=Batches(order, batch_size, rates), step=number, record=record, **net.keyword()
    )
    return status, done, record


ORDERS = {
    "shuffled": lambda rng: rng.permutation(50),
    "a part": lambda rng: rng.permutation(50)[:23],
    "with repeats": lambda rng: rng.integers(0, 50, 71),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("batch_size", [1, 7, 25, 50, 100])
@pytest.mark.parametrize("order", ORDERS)
def test_an_epoch_is_its_steps(backend, dtype, target_kind, batch_size, order, rng):
    """To the bit, with a short last batch and a batch larger than the data."""
    net, x, target = random_problem(rng, 50, [9, 16, 11], ["silu", "softmax"], dtype, target_kind, clip_norm=0.5)
    net.work = unwritten(workspace_size([9, 16, 11], batch_size), dtype)
    by_step = clone(net)
    order = ORDERS[order](rng)
    inputs = x, target, order
    before = [bits(a) for a in inputs]
    status, done, record = epoch(backend, net, x, target, order, batch_size, number=4)
    assert [bits(a) for a in inputs] == before
    assert (status, done) == (OK, len(record))
    for batch, (loss, norm) in enumerate(record):
        rows = order[batch * batch_size : (batch + 1) * batch_size]
        assert step(backend, by_step, x[rows], target[rows], 4 + batch) == (OK, loss, norm)
    assert bits(net.params) == bits(by_step.params)
    assert bits(net.state) == bits(by_step.state)


@pytest.mark.parametrize("decoupled", [0, 1])
def test_every_batch_of_an_epoch_has_its_rate(backend, dtype, decoupled, rng):
    net, x, labels = random_problem(rng, 50, [9, 16, 11], ["silu", "softmax"], dtype, "cross_entropy")
    net.hyper[[4, 6]] = 0.1, decoupled
    by_step, order, rates = clone(net), rng.permutation(50), np.geomspace(0.1, 1e-3, 8)
    net.hyper[0] = np.nan
    assert epoch(backend, net, x, labels, order, 7, rates=rates)[:2] == (OK, 8)
    for batch, rate in enumerate(rates):
        rows, by_step.hyper[0] = order[7 * batch : 7 * batch + 7], rate
        step(backend, by_step, x[rows], labels[rows], batch)
    assert bits(net.params) == bits(by_step.params)
    assert bits(net.state) == bits(by_step.state)


def test_an_epoch_matches_pytorch(backend, dtype, rng, torch):
    net, x, labels = random_problem(rng, 200, [33, 17, 10], ["tanh", "softmax"], dtype, "cross_entropy")
    order = rng.permutation(200)
    rows = [order[i : i + 64] for i in range(0, 200, 64)]
    expected, losses, norms = torch_train(torch, net, [(x[r], labels[r]) for r in rows])
    status, done, record = epoch(backend, net, x, labels, order, 64)
    assert (status, done) == (OK, 4)
    rel = relative("100_steps", dtype)
    np.testing.assert_allclose(record, np.column_stack([losses, norms]), rtol=rel)
    np.testing.assert_allclose(net.params, expected, rtol=rel, atol=rel)


def test_an_epoch_of_large_batches_is_its_steps(backend, dtype, rng):
    net, x, labels = random_problem(rng, 700, [257, 129, 10], ["relu", "softmax"], dtype, "cross_entropy")
    by_step, order = clone(net), rng.permutation(700)
    status, done, record = epoch(backend, net, x, labels, order, 256)
    assert (status, done) == (OK, 3)
    for batch, (loss, norm) in enumerate(record):
        rows = order[256 * batch : 256 * (batch + 1)]
        assert step(backend, by_step, x[rows], labels[rows], batch) == (OK, loss, norm)
    assert bits(net.params) == bits(by_step.params)


def test_an_epoch_of_nothing(backend, dtype, rng):
    net, x, target = random_problem(rng, 5, [9, 16, 11], ["silu", "relu"], dtype)
    before = bits(net.params)
    assert epoch(backend, net, x, target, np.empty(0, np.int64), 4)[:2] == (OK, 0)
    assert bits(net.params) == before


@pytest.mark.parametrize("bad", ["label", "x"])
def test_an_epoch_stops_before_the_update_of_a_failing_batch(backend, dtype, bad, rng):
    net, x, labels = random_problem(rng, 50, [9, 16, 11], ["silu", "softmax"], dtype, "cross_entropy")
    by_step = clone(net)
    if bad == "label":
        labels[25] = 11
    else:
        x[25, 3] = np.nan
    status, done, record = epoch(backend, net, x, labels, np.arange(50), 10)
    assert (status, done) == (BAD_LABEL if bad == "label" else NONFINITE, 2)
    for batch in range(2):
        rows = slice(10 * batch, 10 * batch + 10)
        assert step(backend, by_step, x[rows], labels[rows], batch) == (OK, *record[batch])
    assert bits(net.params) == bits(by_step.params)
    assert bits(net.state) == bits(by_step.state)
    assert np.isnan(record[3:]).all()


@pytest.mark.emulated(0)
def test_training_lowers_the_loss_to_nothing(backend, dtype, rng):
    """Twenty random points are learnt by heart."""
    net, x, labels = random_problem(
        rng, 20, [9, 32, 4], ["relu", "softmax"], dtype, "cross_entropy", hyper=[1e-2, 0.9, 0.999, 1e-8, 0, 0, 0]
    )
    for number in range(300):
        status, loss, _ = step(backend, net, x, labels, number)
        assert status == OK
    assert loss < 0.01


@pytest.mark.parametrize("name", ["state", "grads"])
def test_kernels_compare_the_sizes_of_what_a_step_writes(name, cpu, rng):
    net = random_net(rng, (5, 4), ["softmax"], np.float32, 3, loss="cross_entropy")
    x, labels = rng.standard_normal((3, 5)).astype(np.float32), rng.integers(0, 4, 3)
    before = bits(net.params)
    setattr(net, name, getattr(net, name)[..., :-1].copy())
    with pytest.raises(ValueError, match="dense_chain_step: state and grads must have 24 values a row like params"):
        step(cpu, net, x, labels)
    assert bits(net.params) == before


def scattered(net):
    """The arrays of every w, turned, and b, each in memory of its own; and the net over their addresses."""
    from fastgrad.kernels.cpu import AddressList

    arrays = []
    for k, m, w, b, _ in net.table.tolist():
        arrays.append(net.params[w : w + k * m].reshape(k, m).T.copy(order="C"))
        arrays += [net.params[b : b + m].copy()] if b >= 0 else []
    addresses, sizes = ([f(a) for a in arrays] for f in (lambda a: a.ctypes.data, np.size))
    other = clone(net)
    other.params = AddressList(np.array(addresses, np.int64), np.array(sizes, np.int64), net.params.dtype)
    return arrays, other


def turned(net, flat):
    """The values of flat with every w turned."""
    flat = flat.copy()
    for k, m, w, _, _ in net.table.tolist():
        flat[..., w : w + k * m] = (
            flat[..., w : w + k * m].reshape(*flat.shape[:-1], m, k).swapaxes(-1, -2).reshape(*flat.shape[:-1], k * m)
        )
    return flat


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "widths"), [(1, [1, 1]), (7, [5, 3]), (33, [17, 40, 9, 5]), (64, [600, 130, 4])])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_of_scattered_turned_weights_are_those_of_flat_ones(cpu, dtype, optimizer, n, widths, bias, rng):
    code, hyper = OPTIMIZERS[optimizer]
    settings = {"optimizer": code, "hyper": hyper, "clip_norm": 0.1, "bias": bias}
    net, x, target = random_problem(rng, n, widths, ["tanh"] * (len(widths) - 1), dtype, **settings)
    arrays, other = scattered(net)
    for number in range(3):
        status, loss, norm = step(cpu, net, x, target, number)
        assert step(cpu, other, x, target, number) == (status, pytest.approx(loss), pytest.approx(norm))
    rel = relative("100_steps", dtype)
    for a, b in ((net.grads, other.grads), (net.state, other.state)):
        np.testing.assert_allclose(turned(net, b), a, rtol=rel, atol=rel * np.abs(a).max(initial=0))
    values = iter(arrays)
    for k, m, w, b, _ in net.table.tolist():
        pairs = [(next(values).T.ravel(), net.params[w : w + k * m])]
        pairs += [(next(values), net.params[b : b + m])] if b >= 0 else []
        for mine, flat in pairs:
            np.testing.assert_allclose(mine, flat, rtol=rel, atol=rel)


def test_scattered_weights_have_the_same_bits_on_any_number_of_threads(cpu, dtype, rng):
    net, x, target = random_problem(rng, 128, [256, 200, 10], ["relu", "identity"], dtype, clip_norm=0.1)

    def run():
        arrays, other = scattered(net)
        assert step(cpu, other, x, target)[0] == OK
        return tuple(bits(a) for a in (*arrays, other.grads, other.state))

    assert len(set(with_threads(run))) == 1
