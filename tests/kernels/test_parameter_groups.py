"""Groups of arrays with rates and decays of their own, and frozen ones: every backend against PyTorch's param_groups and the reference."""

import math

import numpy as np
import pytest
from arrays import bits, unwritten, with_threads
from chains import clone, random_net, random_problem, step
from test_optim import OPTIMIZERS, torch_optimizer
from tolerances import assert_close

from fastgrad.kernels import reference, types
from fastgrad.kernels.types import FROZEN, NONFINITE, OK, UpdateRule
from fastgrad.optim import AdamW

pytestmark = pytest.mark.cuda

SHAPES = [(5, 7), (7,), (0,), (3, 2, 2), (1,), (6,)]
# of each array; the rows of hyper below
GROUPS = np.array([0, 1, 2, FROZEN, 2, 1])
# of PyTorch: its decoupled decay is AdamW's alone, and its eps outside the root
PYTORCHS = [
    name
    for name, optimizer in OPTIMIZERS.items()
    if "inside" not in name and (not optimizer.decoupled or isinstance(optimizer, AdamW))
]


def hyper_of(optimizer):
    """Three groups: as the optimiser has it; another decay and rate; and a rate of 0."""
    hyper = np.tile(optimizer.hyper, (3, 1))
    hyper[1, [0, 4]] = 0.5 * hyper[0, 0], 0.3
    hyper[2, 0] = 0.0
    return hyper


def random_arrays(rng, dtype, shapes=SHAPES):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def state_like(optimizer, arrays, value=0.0):
    return np.full((optimizer.state_rows, sum(a.size for a in arrays)), value, arrays[0].dtype)


def rule_of(optimizer, state, clip_norm=math.inf, masks=None, constraint=None):
    return UpdateRule(optimizer.code, state, hyper_of(optimizer), clip_norm, masks, constraint, GROUPS)


@pytest.mark.pairwise
@pytest.mark.emulated(1)
@pytest.mark.parametrize("clip_norm", [math.inf, 1.5])
@pytest.mark.parametrize("name", PYTORCHS)
def test_matches_param_groups_of_pytorch_with_a_schedule(backend, name, dtype, clip_norm, rng, torch):
    """A frozen array is what PyTorch has with requires_grad = False: it is not in the norm."""
    optimizer = OPTIMIZERS[name]
    params = random_arrays(rng, dtype)
    theirs = [
        torch.nn.Parameter(torch.tensor(p), requires_grad=g != FROZEN)
        for p, g in zip(params, GROUPS.tolist(), strict=True)
    ]
    rule = rule_of(optimizer, state_like(optimizer, params), clip_norm)
    torch_step = torch_optimizer(torch, optimizer, [theirs[0]])
    for group in (1, 2):
        lr, decay = rule.hyper[group, [0, 4]].tolist()
        arrays = [p for p, g in zip(theirs, GROUPS, strict=True) if g == group]
        torch_step.add_param_group({"params": arrays, "lr": lr, "weight_decay": decay})
    schedule = torch.optim.lr_scheduler.LambdaLR(torch_step, lambda step: 0.9**step)
    first = rule.hyper[:, 0].copy()
    for number in range(20):
        grads = random_arrays(rng, dtype)
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(grad) if p.requires_grad else None
        rule.hyper[:, 0] = first * 0.9**number
        record = np.empty(1)
        norm = torch.nn.utils.clip_grad_norm_(theirs, clip_norm)
        torch_step.step()
        schedule.step()
        assert backend.update_arrays(params, grads, rule, number + 1, record) == OK
        assert record[0] == pytest.approx(float(norm), rel=1e-6 if dtype == np.float32 else 1e-12)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for p, expected in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p, expected.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.pairwise
@pytest.mark.parametrize("constraint", [None, types.MAX_VALUE, types.MAX_NORM, types.MAX_NORM_EACH])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_matches_the_reference_with_masks_constraints_and_changes(backend, name, dtype, masked, constraint, rng):
    optimizer = OPTIMIZERS[name]
    params, grads = random_arrays(rng, dtype), random_arrays(rng, dtype)
    state = rng.random(state_like(optimizer, params).shape).astype(dtype)
    masks = rng.random(state.shape[1]) < 0.7 if masked else None
    if constraint is not None:
        constraint = types.Constraint(constraint, 0.5, np.array([7, 1, 1, 0, 1, 0]))
    exact, exact_state = [p.astype(np.float64) for p in params], state.astype(np.float64)
    exact_grads = [g.astype(np.float64) for g in grads]
    frozen, moved, exact_moved = bits(params[3]), unwritten((6, 2), np.float64), np.empty((6, 2))
    record, exact_record = np.empty(1), np.empty(1)
    rule = rule_of(optimizer, state, 1.0, masks, constraint)
    assert backend.update_arrays(params, grads, rule, 7, record, moved=moved) == OK
    exact_rule = rule._replace(state=exact_state)
    assert reference.update_arrays(exact, exact_grads, exact_rule, 7, exact_record, moved=exact_moved) == OK
    for p, expected in zip(params, exact, strict=True):
        assert_close("optimizer", p, expected, 1)
    assert_close("optimizer", state, exact_state, 1)
    assert record[0] == pytest.approx(exact_record[0], rel=1e-6)
    np.testing.assert_allclose(moved, exact_moved, rtol=1e-4, atol=1e-12)
    assert bits(params[3]) == frozen
    assert moved[3, 0] == 0


@pytest.mark.parametrize("takes_norm", [False, True])
def test_a_frozen_array_and_its_state_keep_their_bits_whatever_its_gradient(backend, dtype, takes_norm, rng):
    """Pruned or not, limited or not, NaN or not."""
    for name in ("sgd", "momentum, decay", "adamw", "rmsprop, momentum"):
        optimizer = OPTIMIZERS[name]
        params, grads = random_arrays(rng, dtype), random_arrays(rng, dtype)
        state = rng.random(state_like(optimizer, params).shape).astype(dtype)
        params[3][0, 0, 0], grads[3][...] = np.inf, np.nan
        masks, record = np.ones(state.shape[1], bool), np.empty(1) if takes_norm else None
        masks[42:54] = False
        constraint = types.Constraint(types.MAX_VALUE, 1e-3, np.zeros(6, np.int64))
        before = bits(params[3]), bits(state[:, 42:54])
        rule = rule_of(optimizer, state, math.inf, masks, constraint)
        assert backend.update_arrays(params, grads, rule, 2, record) == OK
        assert (bits(params[3]), bits(state[:, 42:54])) == before
        assert all((np.abs(p) <= 1e-3).all() for p in params[:3])


def test_all_arrays_may_be_frozen(backend, dtype, rng):
    optimizer, params, grads = OPTIMIZERS["adam"], random_arrays(rng, dtype), random_arrays(rng, dtype)
    state, before, record = state_like(optimizer, params, 0.5), [bits(p) for p in params], np.full(1, np.nan)
    rule = rule_of(optimizer, state)._replace(groups=np.full(6, FROZEN))
    assert backend.update_arrays(params, grads, rule, 1, record) == OK
    assert [bits(p) for p in params] == before
    assert (state == 0.5).all()
    assert record[0] == 0


def test_groups_with_the_same_settings_give_the_bits_of_one(backend, dtype, rng):
    for optimizer in OPTIMIZERS.values():
        params, grads = random_arrays(rng, dtype), random_arrays(rng, dtype)
        state = rng.random(state_like(optimizer, params).shape).astype(dtype)
        ours, ours_state = [p.copy() for p in params], state.copy()
        rule = UpdateRule(optimizer.code, state, optimizer.hyper, math.inf, None, None)
        backend.update_arrays(params, grads, rule, 3, None)
        in_groups = rule._replace(state=ours_state, hyper=np.tile(optimizer.hyper, (2, 1)), groups=np.array([0, 1] * 3))
        backend.update_arrays(ours, grads, in_groups, 3, None)
        assert [bits(a) for a in (*ours, ours_state)] == [bits(a) for a in (*params, state)]


@pytest.mark.parametrize("takes_norm", [False, True])
@pytest.mark.parametrize("array", [0, 1, 5])
def test_an_update_that_would_overflow_in_any_group_is_not_made(backend, takes_norm, array, rng):
    optimizer, params = OPTIMIZERS["adam"], random_arrays(rng, np.float32)
    grads, state = random_arrays(rng, np.float32), state_like(OPTIMIZERS["adam"], params, 0.5)
    grads[array].reshape(-1)[0] = 1e21
    before, record = [bits(a) for a in (*params, state)], np.empty(1) if takes_norm else None
    assert backend.update_arrays(params, grads, rule_of(optimizer, state), 2, record) == NONFINITE
    assert [bits(a) for a in (*params, state)] == before


def test_the_decay_of_a_later_group_alone_can_overflow(backend):
    params, grads = (
        [np.ones(4, np.float32), np.full(5, 1e22, np.float32)],
        [np.zeros(4, np.float32), np.zeros(5, np.float32)],
    )
    optimizer, hyper = OPTIMIZERS["adam"], np.tile(OPTIMIZERS["adam"].hyper, (2, 1))
    hyper[1, 4] = 1.0
    rule = UpdateRule(optimizer.code, np.zeros((2, 9), np.float32), hyper, math.inf, None, None, np.array([0, 1]))
    assert backend.update_arrays(params, grads, rule, 1, None) == NONFINITE
    assert (params[1] == np.float32(1e22)).all()
    assert not rule.state.any()
    assert backend.update_arrays(params, grads, rule._replace(groups=np.array([1, 0])), 1, None) == OK


def test_any_number_of_threads_gives_the_same_bits(cpu, dtype, rng):
    shapes = [(50_003,), (11,), (40_000,), (30_001,), (7,), (20_000,)]
    params, grads = random_arrays(rng, dtype, shapes), random_arrays(rng, dtype, shapes)
    optimizer = OPTIMIZERS["adam, decay"]

    def update():
        ours, record = [p.copy() for p in params], np.empty(1)
        rule = rule_of(optimizer, state_like(optimizer, ours, 0.5), 1.0)
        assert cpu.update_arrays(ours, grads, rule, 3, record) == OK
        return [bits(a) for a in (*ours, rule.state, record)]

    first, *others = with_threads(update)
    assert all(other == first for other in others)


def test_groups_must_be_as_many_as_params(cpu, rng):
    params = random_arrays(rng, np.float32)
    rule = rule_of(OPTIMIZERS["adam"], state_like(OPTIMIZERS["adam"], params))._replace(groups=GROUPS[:5])
    with pytest.raises(ValueError, match="groups must be as many as params, 6, got 5"):
        cpu.update_arrays(params, random_arrays(rng, np.float32), rule, 1, None)


def grouped(net, optimizer, groups):
    """The net with the groups of hyper_of; groups: of w and b of each layer."""
    net.optimizer, net.hyper, net.groups = optimizer.code, hyper_of(optimizer), np.array(groups)
    net.state = np.zeros((optimizer.state_rows, net.params.size), net.params.dtype)
    return net


CHAIN_GROUPS = {True: [1, FROZEN, FROZEN, 2, 0, 1], False: [1, FROZEN, 0]}


@pytest.mark.pairwise
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("clip_norm", [math.inf, 0.1])
@pytest.mark.parametrize("name", ["sgd, decay", "nesterov", "adam, decay", "adamw", "rmsprop, momentum"])
def test_steps_of_a_chain_match_pytorch(backend, name, dtype, clip_norm, bias, rng, torch):
    optimizer, widths = OPTIMIZERS[name], [9, 16, 12, 5]
    net, x, target = random_problem(
        rng, 33, widths, ["tanh", "relu", "softmax"], dtype, "cross_entropy", clip_norm=clip_norm, bias=bias
    )
    net = grouped(net, optimizer, CHAIN_GROUPS[bias])
    arrays = []
    for k, m, w, b, _ in net.table.tolist():
        arrays += [net.params[w : w + k * m].reshape(k, m)] + [net.params[b : b + m]] * bias
    theirs = [
        torch.nn.Parameter(torch.tensor(a), requires_grad=g != FROZEN)
        for a, g in zip(arrays, net.groups.tolist(), strict=True)
    ]
    torch_step = torch_optimizer(torch, optimizer, [p for p, g in zip(theirs, net.groups, strict=True) if g == 0])
    for group in {1, 2} & {*net.groups.tolist()}:
        lr, decay = net.hyper[group, [0, 4]].tolist()
        of_group = [p for p, g in zip(theirs, net.groups, strict=True) if g == group]
        torch_step.add_param_group({"params": of_group, "lr": lr, "weight_decay": decay})
    weights, biases = theirs[:: 1 + bias], theirs[1::2] if bias else [0.0] * 3
    for number in range(10):
        torch_step.zero_grad()
        a = torch.tensor(x)
        for w, b, f in zip(weights, biases, [torch.tanh, torch.relu, lambda z: z], strict=True):
            a = f(a @ w + b)
        loss = torch.nn.functional.cross_entropy(a, torch.tensor(target))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs, clip_norm)
        torch_step.step()
        status, our_loss, our_norm = step(backend, net, x, target, number)
        assert status == OK
        assert our_loss == pytest.approx(float(loss.detach()), rel=1e-5)
        assert our_norm == pytest.approx(float(norm), rel=1e-4 if dtype == np.float32 else 1e-10)
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    for a, expected in zip(arrays, theirs, strict=True):
        np.testing.assert_allclose(a, expected.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("constraint", [None, types.MAX_VALUE, types.MAX_NORM_EACH])
def test_an_epoch_is_its_steps_with_a_rate_for_each_group(backend, dtype, constraint, rng):
    optimizer = OPTIMIZERS["adam, decay"]
    net, x, target = random_problem(rng, 50, [9, 16, 12, 5], ["tanh", "relu", "softmax"], dtype, "cross_entropy")
    net = grouped(net, optimizer, CHAIN_GROUPS[True])
    net.masks, net.clip_norm = rng.random(net.params.size) < 0.8, 1.0
    if constraint is not None:
        net.constraint = types.Constraint(constraint, 0.4, np.array([16, 0, 0, 0, 5, 0]))
    order, rates = rng.permutation(50), rng.random((3, 3)) / 100
    by_step, frozen = clone(net), bits(net.params)
    record, expected = unwritten((3, 2), np.float64), np.empty((3, 2))
    batches = types.Batches(order, 20, rates)
    status = backend.dense_chain_epoch(x=x, target=target, batches=batches, step=0, record=record, **net.keyword())
    assert status == (OK, 3)
    for batch in range(3):
        rows, by_step.hyper[:, 0] = order[20 * batch : 20 * batch + 20], rates[batch]
        assert backend.dense_chain_step(
            x=x[rows], target=target[rows], step=batch, record=expected[batch], **by_step.keyword()
        ) == OK  # fmt: skip
    np.testing.assert_array_equal(record, expected)
    assert bits(net.params) == bits(by_step.params) != frozen
    assert bits(net.state) == bits(by_step.state)
    exact = clone(by_step)
    assert exact.hyper.shape == (3, 7)


def test_health_of_a_chain_measures_frozen_layers_too(backend, rng):
    """The norm of a step leaves a frozen layer out, its row of health does not; it does not move."""
    optimizer = OPTIMIZERS["adam"]
    net, x, target = random_problem(rng, 20, [4, 6, 3], ["tanh", "softmax"], np.float64, "cross_entropy")
    net = grouped(net, optimizer, [FROZEN, FROZEN, 0, 1])
    exact, rows = clone(net), []
    for each, kernels in ((net, backend), (exact, reference)):
        watch = types.Watch(np.zeros((2, 4)), unwritten((1, 2, 9), np.float64), 1)
        record = np.empty(2)
        assert kernels.dense_chain_step(x=x, target=target, step=0, record=record, watch=watch, **each.keyword()) == OK
        rows.append(watch.rows[0])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-9, atol=1e-12)
    assert rows[0][0, 0] > 0
    assert rows[0][0, 8] == 0


def test_a_frozen_bias_of_a_chain_is_not_in_the_norm(backend, dtype, rng):
    """Its gradient is vast, and that of the weights 0."""
    net = random_net(rng, [2, 3], ["identity"], dtype, 2)
    net = grouped(net, OPTIMIZERS["adamw"], [0, FROZEN])
    x, target = np.zeros((2, 2), dtype), np.zeros((2, 3), dtype)
    net.params[:3] = 1e18
    before = bits(net.params[:3])
    status, _, norm = step(backend, net, x, target)
    assert (status, norm) == (OK, 0.0)
    assert bits(net.params[:3]) == before
    assert not net.state[:, :3].any()
