"""Constraints and masks in the optimiser's pass: as the update and then clip_weights, project_weights or zeros; and as PyTorch's renorm."""

import numpy as np
import pytest
from arrays import bits, with_threads
from tolerances import assert_close

import fastgrad as fg
from fastgrad.nn import BatchNorm, Dense, DenseChain, Sequential
from fastgrad.optim import SGD, Adagrad, Adam, AdamW, MaxNorm, MaxValue, RMSprop

pytestmark = pytest.mark.cuda

OPTIMIZERS = {
    "sgd": SGD(0.1),
    "momentum": SGD(0.1, 0.9, weight_decay=0.02),
    "nesterov": SGD(0.1, 0.9, nesterov=True),
    "adam": Adam(1e-2),
    "adamw, amsgrad": AdamW(1e-2, amsgrad=True),
    "adagrad": Adagrad(0.1),
    "rmsprop": RMSprop(1e-2),
    "rmsprop, momentum": RMSprop(1e-2, momentum=0.5),
}
# a limit that some of the arrays below keep and others do not
CONSTRAINTS = [MaxValue(0.7), MaxNorm(30.0, "all"), MaxNorm(12.0, "array"), MaxNorm(4.0)]
# a unit in several blocks, units in several blocks, and next to them what is left alone
SHAPES = [(3, 4), (33,), (0, 3), (20_011, 1), (3, 3, 2, 5), (300, 70), (2, 700), (), (1, 1)]


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request):
    return OPTIMIZERS[request.param]


def arrays(rng, dtype, shapes=SHAPES):
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def masks_of(rng, shapes=SHAPES):
    return [np.asarray(rng.random(shape) < 0.6) for shape in shapes]


def hold(params, constraint):
    """The public functions that the pass is one with."""
    if isinstance(constraint, MaxValue):
        fg.clip_weights(params, constraint.limit)
    else:
        fg.project_weights([p for p in params if p.ndim > 1], constraint.max_norm, constraint.per)


@pytest.mark.pairwise
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
def test_a_list_is_held_as_by_the_functions(in_force, dtype, optimizer, constraint, rng):
    """To the bit: an update, what is pruned to 0, and then clip_weights or project_weights."""
    params, masks = arrays(rng, dtype), masks_of(rng)
    theirs = [p.copy() for p in params]
    updater, plain = fg.Updater(params, optimizer, 1.0, masks, constraint), fg.Updater(theirs, optimizer, 1.0)
    held = 0
    for _ in range(3):
        grads = arrays(rng, dtype)
        assert updater.step(grads) == plain.step(grads)
        for p, mask in zip(theirs, masks, strict=True):
            p[~mask] = 0
        plain.state[:, ~np.concatenate([mask.reshape(-1) for mask in masks])] = 0
        before = [p.copy() for p in theirs]
        hold(theirs, constraint)
        held += sum(bits(p) != bits(q) for p, q in zip(before, theirs, strict=True))
        assert [bits(p) for p in params] == [bits(p) for p in theirs]
        assert bits(updater.state) == bits(plain.state)
    assert held


@pytest.mark.emulated(1)
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
@pytest.mark.parametrize("form", ["chain", "layers"])
def test_a_trainer_holds_its_model(in_force, dtype, form, constraint, rng):
    def net():
        if form == "chain":
            return DenseChain([20, 33, 7], "tanh", "softmax", dtype=dtype, seed=3)
        return Sequential(
            Dense(20, 33, dtype=dtype), BatchNorm(33, "relu", dtype=dtype), Dense(33, 7, "softmax", dtype=dtype)
        )

    x, y = rng.standard_normal((64, 20)).astype(dtype), rng.integers(0, 7, 64)
    limits = {"all": 3.0, "array": 2.5, "unit": 0.9}
    limit = MaxValue(0.2) if isinstance(constraint, MaxValue) else MaxNorm(limits[constraint.per], constraint.per)
    ours, theirs = net(), net()
    trainer, plain = fg.Trainer(ours, optimizer=Adam(0.01), constraint=limit), fg.Trainer(theirs, optimizer=Adam(0.01))
    held = 0
    for _ in range(3):
        trainer.step(x, y)
        plain.step(x, y)
        before = bits(theirs.params)
        hold(list(theirs.parameters().values()), limit)
        held += bits(theirs.params) != before
        assert_close("optimizer", ours.params, theirs.params, 1)
    assert held
    trainer.fit(x, y, epochs=2, batch_size=10, progress=False)
    found = ours.params.copy()
    hold(list(ours.parameters().values()), limit)
    np.testing.assert_allclose(found, ours.params, rtol=1e-6)


def test_units_are_held_as_pytorch_does(in_force, dtype, rng, torch):
    """torch.renorm over the columns, whose divisor is 1e-7 larger, after its own SGD."""
    (w,) = params = arrays(rng, dtype, [(40, 9)])
    theirs = torch.tensor(w)
    updater = fg.Updater(params, SGD(0.1), constraint=MaxNorm(5.0))
    for _ in range(5):
        (g,) = arrays(rng, dtype, [(40, 9)])
        updater.step([g])
        theirs = torch.renorm(theirs - 0.1 * torch.tensor(g), 2, 1, 5.0)
    np.testing.assert_allclose(w, theirs.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("constraint", [None, *CONSTRAINTS], ids=str)
def test_any_number_of_threads_gives_the_same_bits(cpu, dtype, constraint, rng):
    params, grads, masks = arrays(rng, dtype), arrays(rng, dtype), masks_of(rng)
    params.append(np.ones((1000, 600), dtype))
    grads.append(rng.standard_normal((1000, 600)).astype(dtype))
    masks.append(rng.random((1000, 600)) < 0.5)

    def update():
        ours = [p.copy() for p in params]
        fg.Updater(ours, Adam(1e-2), 1.0, masks, constraint).step(grads)
        return [bits(p) for p in ours]

    first, *others = with_threads(update)
    assert all(other == first for other in others)


def test_norms_of_vast_and_tiny_weights(in_force):
    """Squares that overflow or vanish in float64 are no norms of infinity or 0; NaN stays, in its own unit."""
    for size, limit in ((1e200, 1.0), (1e-200, 1e-201)):
        w = np.array([[3.0, 3.0, np.nan], [4.0, 0.0, 1.0]]) * size
        fg.Updater(w, SGD(0.0), constraint=MaxNorm(limit)).step(np.zeros_like(w))
        np.testing.assert_allclose(w / limit, [[0.6, 1, np.nan], [0.8, 0, size / limit]], rtol=1e-12)


@pytest.mark.parametrize("per", ["all", "array"])
def test_nan_in_a_norm_leaves_what_it_is_of(in_force, dtype, per):
    params = [np.full((2, 2), 3.0, dtype), np.full((2, 2), 3.0, dtype), np.full(4, np.nan, dtype)]
    params[0][0, 0] = np.nan
    fg.Updater(params, SGD(0.0), constraint=MaxNorm(1.0, per)).step([np.zeros_like(p) for p in params])
    np.testing.assert_array_equal(params[0], [[np.nan, 3], [3, 3]])
    np.testing.assert_allclose(params[1], 3.0 if per == "all" else 0.5, rtol=1e-6)


@pytest.mark.parametrize("per", ["all", "array", "unit"])
def test_arrays_of_one_axis_do_not_count(in_force, dtype, per):
    params = [np.full((2, 2), 3.0, dtype), np.array([np.nan, 9.0], dtype)]
    fg.Updater(params, SGD(0.0), constraint=MaxNorm(1.0, per)).step([np.zeros_like(p) for p in params])
    np.testing.assert_allclose(params[0], np.sqrt(0.5) if per == "unit" else 0.5, rtol=1e-6)
    np.testing.assert_array_equal(params[1], [np.nan, 9.0])


def test_nothing_revives_what_is_pruned(in_force, dtype, optimizer, rng):
    """From momentum in full swing, with NaN and infinity where it is pruned; beside it all is as without masks, to the bit."""
    params, masks = arrays(rng, dtype), masks_of(rng)
    updater, plain = fg.Updater(params, optimizer), fg.Updater([p.copy() for p in params], optimizer)
    for _ in range(3):
        grads = arrays(rng, dtype)
        updater.step(grads)
        plain.step(grads)
    updater.masks = masks
    flat = np.concatenate([mask.reshape(-1) for mask in masks])
    for value in (np.nan, np.inf, 1.0, 0.0):
        grads = arrays(rng, dtype)
        plain.step(grads)
        for g, mask in zip(grads, masks, strict=True):
            g[~mask] = value
        updater.step(grads)
        for p, q, mask in zip(params, plain.params, masks, strict=True):
            assert bits(p[mask]) == bits(q[mask])
            assert not p[~mask].any()
        assert bits(updater.state[:, flat]) == bits(plain.state[:, flat])
        assert not updater.state[:, ~flat].any()


def test_a_pruned_gradient_still_counts_for_the_norm(in_force, dtype):
    params, masks = np.ones(3, dtype), np.array([True, False, True])
    updater = fg.Updater(params, SGD(0.1), 1.0, masks)
    assert updater.step(np.array([3, 4, 0], dtype)) == pytest.approx(5)
    np.testing.assert_allclose(params, [0.94, 0, 1], rtol=1e-6)
    before = bits(params)
    with pytest.raises(FloatingPointError, match=r"^Updater.step: the gradient is not finite in grads\[0\]"):
        updater.step(np.array([0, np.nan, 0], dtype))
    assert bits(params) == before


def test_masks_of_an_updater_can_be_read_and_taken_off(in_force, rng):
    params, masks = arrays(rng, np.float32), masks_of(rng)
    masks[1] = None
    updater = fg.Updater(params, SGD(0.1), masks=masks)
    masks[1] = np.ones(SHAPES[1], bool)
    found = updater.masks
    assert [bits(mask) for mask in found] == [bits(mask) for mask in masks]
    assert [mask.shape for mask in found] == SHAPES
    again = fg.Updater(params, SGD(0.1))
    again.load_state_dict(updater.state_dict())
    assert [bits(mask) for mask in again.masks] == [bits(mask) for mask in masks]
    updater.masks = None
    assert updater.masks is None
    updater.step([np.ones_like(p) for p in params])
    assert all(p.all() for p in params)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "MaxValue: limit must be at least 0 and finite, got -1", lambda: MaxValue(-1)),
        (ValueError, "MaxNorm: max_norm must be above 0 and finite, got 0", lambda: MaxNorm(0)),
        (ValueError, "MaxNorm: per must be one of all, array, unit; got 'row'", lambda: MaxNorm(1, "row")),
        (
            TypeError,
            "Updater: constraint must be MaxValue or MaxNorm of fastgrad.optim, got float",
            lambda: fg.Updater(np.ones(3), SGD(0.1), constraint=1.0),
        ),
        (
            TypeError,
            "Trainer: constraint must be MaxValue or MaxNorm of fastgrad.optim, got SGD",
            lambda: fg.Trainer(Dense(2, 2), constraint=SGD(0.1)),
        ),
        (
            ValueError,
            "Updater: params[1] must have 1, 2 or 4 axes, got (2, 2, 2)",
            lambda: fg.Updater([np.ones(3), np.ones((2, 2, 2))], SGD(0.1), constraint=MaxNorm(1)),
        ),
        (
            ValueError,
            "Updater: masks must have length 2, got 1",
            lambda: fg.Updater([np.ones(3), np.ones(2)], SGD(0.1), masks=[np.ones(3, bool)]),
        ),
        (
            ValueError,
            "Updater: masks[1] must be (2,), got (3,)",
            lambda: fg.Updater([np.ones(3), np.ones(2)], SGD(0.1), masks=[None, np.ones(3, bool)]),
        ),
        (
            TypeError,
            "Updater: masks[0] must be an array of bool, got an array of float64",
            lambda: fg.Updater(np.ones(3), SGD(0.1), masks=np.ones(3)),
        ),
    ],
)
def test_bad_settings(error, message, call):
    with pytest.raises(error) as found:
        call()
    assert str(found.value) == message


def net_of_one_input(kind):
    if kind == "chain":
        return fg.nn.DenseChain([1, 64, 1], "tanh", seed=0)
    if kind == "lstm":
        return fg.nn.Sequential(fg.nn.LSTM(1, 16, seed=0), fg.nn.Dense(16, 1, seed=0))
    return fg.nn.Sequential(fg.nn.Conv2d(1, 64, 1, seed=0), fg.nn.GlobalAvgPool2d(), fg.nn.Dense(64, 1, seed=0))


@pytest.mark.parametrize("kind", ["chain", "lstm", "conv"])
def test_a_layer_of_one_input_is_held_unit_by_unit(in_force, kind):
    """The norm of all its weights is above 3, that of each unit's one weight is not."""
    model = net_of_one_input(kind)
    x = np.ones({"chain": (3, 1), "lstm": (3, 2, 1), "conv": (3, 2, 2, 1)}[kind], np.float32)
    first = next(iter(model.parameters().values()))
    first[...] = np.where(np.arange(first.size) % 2, 2, -2).reshape(first.shape)
    before = bits(model.params)
    y = np.ones((*model.predict(x).shape,), np.float32)
    fg.Trainer(model, "mse", SGD(0.0), constraint=MaxNorm(3.0)).step(x, y)
    assert bits(model.params) == before
    fg.Trainer(model, "mse", SGD(0.0), constraint=MaxNorm(1.0)).step(x, y)
    np.testing.assert_allclose(np.abs(first), 1, rtol=1e-6)
