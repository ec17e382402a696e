"""Updater: lists of arrays against PyTorch's clip and optimiser, and to the bit against one flat array."""

import math
from copy import deepcopy

import numpy as np
import pytest
from arrays import bits, laid_out, with_threads
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgrad as fg
from fastgrad.kernels.types import UpdateRule
from fastgrad.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from fastgrad.schedule import Rates

pytestmark = pytest.mark.cuda

OPTIMIZERS = {
    "sgd": SGD(0.1),
    "nesterov": SGD(0.1, 0.9, nesterov=True, weight_decay=0.02),
    "adam": Adam(1e-2),
    "adamw": AdamW(1e-2, amsgrad=True),
    "adagrad": Adagrad(0.1),
    "rmsprop": RMSprop(1e-2, momentum=0.5),
}
SHAPES = [(3, 4), (), (0,), (17,), (2, 3, 5, 7), (1, 1), (20_011,), (0, 3)]


def arrays(rng, dtype, shapes=SHAPES):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def all_bits(updater):
    return [bits(a) for a in updater.params], bits(updater.state), updater.step_count


@pytest.mark.emulated(1)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_matches_pytorch_for_100_updates(in_force, dtype, clip_norm, rng, torch):
    shapes = SHAPES[:6]
    params = arrays(rng, dtype, shapes)
    theirs = [torch.tensor(p) for p in params]
    updater = fg.Updater(params, Adam(1e-2), clip_norm)
    torch_step = torch.optim.Adam(theirs, 1e-2)
    for _ in range(100):
        grads = arrays(rng, dtype, shapes)
        for t, g in zip(theirs, grads, strict=True):
            t.grad = torch.tensor(g)
        if clip_norm:
            norm = float(torch.nn.utils.clip_grad_norm_(theirs, clip_norm))
        torch_step.step()
        found = updater.step(grads)
        assert found == pytest.approx(norm, rel=1e-6) if clip_norm else math.isnan(found)
    tolerance = 2e-6 if dtype == np.float32 else 1e-12
    for ours, t in zip(params, theirs, strict=True):
        np.testing.assert_allclose(ours, t.numpy(), rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_list_is_updated_as_one_flat_array(in_force, dtype, optimizer, rng):
    """To the bit without clipping: with it the norm's sum has another order."""
    params = arrays(rng, dtype)
    flat = np.concatenate([p.reshape(-1) for p in params])
    updater, other = fg.Updater(params, optimizer), fg.Updater(flat, optimizer)
    for _ in range(3):
        grads = arrays(rng, dtype)
        before = [bits(g) for g in grads]
        updater.step(grads)
        other.step(np.concatenate([g.reshape(-1) for g in grads]))
        assert [bits(g) for g in grads] == before
    assert bits(np.concatenate([p.reshape(-1) for p in params])) == bits(flat)
    assert bits(updater.state) == bits(other.state)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=6), st.floats(0.01, 100))
def test_any_shapes_are_clipped_by_their_norm(shapes, clip_norm):
    rng = np.random.default_rng(0)
    with fg.use_backend("cpu"):
        params, grads = (arrays(rng, "float64", [tuple(s) for s in shapes]) for _ in range(2))
        norm = math.sqrt(math.fsum(float((g * g).sum()) for g in grads))
        expected = [p - 0.1 * min(1, clip_norm / (norm + 1e-6)) * g for p, g in zip(params, grads, strict=True)]
        assert fg.Updater(params, SGD(0.1), clip_norm).step(grads) == pytest.approx(norm, rel=1e-12)
    for p, e in zip(params, expected, strict=True):
        np.testing.assert_allclose(p, e, rtol=1e-12, atol=1e-12)


def test_any_number_of_threads_gives_the_same_bits(cpu, dtype, rng):
    shapes = [*SHAPES, (100_003,), (5, 16384), (3,)]
    params, grads = arrays(rng, dtype, shapes), arrays(rng, dtype, shapes)

    def update():
        updater = fg.Updater([p.copy() for p in params], AdamW(amsgrad=True), 0.5)
        norms = [updater.step(grads) for _ in range(2)]
        return norms, all_bits(updater)

    first, *others = with_threads(update)
    assert all(other == first for other in others)


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "misaligned"])
def test_layouts_do_not_matter(in_force, layout, rng):
    params, grads = arrays(rng, "float32", [(3, 4), (5, 2)]), arrays(rng, "float32", [(3, 4), (5, 2)])
    odd = [laid_out(p, layout) for p in params]
    plain, other = fg.Updater(params, Adam(), 0.5), fg.Updater(odd, Adam(), 0.5)
    for _ in range(2):
        plain.step(grads)
        other.step([laid_out(g, layout) for g in grads])
    assert all_bits(plain) == all_bits(other)


def test_an_array_alone_and_rates_of_a_schedule(in_force, dtype, rng):
    params, grads = arrays(rng, dtype, [(3, 4), (3, 4)])
    expected = params - dtype.type(0.5) * grads
    updater = fg.Updater(params, SGD(Rates([0.5, 0.0])))
    updater.step(grads)
    assert bits(params) == bits(expected)
    updater.step([grads])
    assert bits(params) == bits(expected)
    refuses(updater, ValueError, "Rates: rates must have one for every update, got 2, none for update 3", grads)


def refuses(updater, error, message, grads):
    before = all_bits(updater)
    with pytest.raises(error) as found:
        updater.step(grads)
    assert str(found.value) == message
    assert all_bits(updater) == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_changes_nothing_and_names_the_array(in_force, dtype, value, rng):
    shapes = [(3, 4), (0,), (7,)]
    updater = fg.Updater(arrays(rng, dtype, shapes), Adam(), 1.0)
    updater.step(arrays(rng, dtype, shapes))
    grads = arrays(rng, dtype, shapes)
    grads[2][5] = value
    message = "Updater.step: the gradient is not finite in grads[2]; no update was made"
    refuses(updater, FloatingPointError, message, grads)


def test_a_norm_past_float64(in_force):
    updater = fg.Updater(np.zeros(3), Adam(), 1.0)
    message = "Updater.step: the gradient's norm overflows; no update was made"
    refuses(updater, FloatingPointError, message, np.full(3, 1e200))


def test_without_clipping_nan_reaches_its_parameters_alone(in_force, dtype):
    params = [np.ones(3, dtype), np.ones(2, dtype)]
    fg.Updater(params, Adam()).step([np.ones(3, dtype), np.array([np.nan, 1], dtype)])
    assert np.isnan(params[1]).tolist() == [True, False]
    assert np.isfinite(params[0]).all()


def test_bad_input_changes_nothing(in_force):
    updater = fg.Updater([np.ones((2, 3)), np.ones(4)], Adam(), 1.0)
    good = [np.ones((2, 3)), np.ones(4)]
    updater.step(good)
    for error, message, grads in [
        (ValueError, "Updater.step: grads must have length 2 like params, got 1", good[:1]),
        (ValueError, "Updater.step: grads[1] must be (4,) like params[1], got (5,)", [good[0], np.ones(5)]),
        (
            TypeError,
            "Updater.step: grads[1] must be float64, got float32 (one call has one dtype)",
            [good[0], np.ones(4, "f")],
        ),
        (TypeError, "Updater.step: grads must be a list or tuple, got NoneType", None),
        (ValueError, "Updater.step: grads must have length at least 1, got 0", []),
    ]:
        refuses(updater, error, message, grads)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], Adam()), ValueError, "Updater: params must have length at least 1, got 0"),
        (([np.ones(2), np.ones(2, "f")], Adam()), TypeError, "Updater: params[1] must be float64, got float32 (one call has one dtype)"),
        (([np.ones(2)], "adam"), TypeError, "Updater: optimizer must be one of fastgrad.optim, got str"),
        (([np.ones(2)], Adam(), np.ones(2)), TypeError, "Updater: clip_norm must be a number, got ndarray"),
        (([np.ones(2)], Adam(), 0), ValueError, "Updater: clip_norm must be above 0 and finite, got 0"),
        (([np.ones(2)], Adam(), math.nan), ValueError, "Updater: clip_norm must be above 0 and finite, got nan"),
        (
            ([laid_out(np.ones(2), "read_only")], Adam()),
            ValueError,
            "Updater: params[0] must be writable, got a read-only array",
        ),
    ],
)  # fmt: skip
def test_bad_settings(in_force, arguments, error, message):
    with pytest.raises(error) as found:
        fg.Updater(*arguments)
    assert str(found.value) == message


def test_training_goes_on_from_a_state_with_the_same_bits(in_force, dtype, rng):
    grads = [arrays(rng, dtype) for _ in range(4)]
    whole = fg.Updater(arrays(rng, dtype), Adam(amsgrad=True), 1.0)
    for g in grads[:2]:
        whole.step(g)
    state, params = whole.state_dict(), [p.copy() for p in whole.params]
    kept = deepcopy(state)
    for g in grads[2:]:
        whole.step(g)
    assert bits(state["state"]) == bits(kept["state"])
    again = fg.Updater(params, Adam(amsgrad=True), 1.0)
    again.load_state_dict(state)
    for g in grads[2:]:
        again.step(g)
    assert all_bits(again) == all_bits(whole)


def test_a_state_that_does_not_fit_changes_nothing(in_force):
    updater = fg.Updater(np.ones(3), SGD(0.1, 0.9))
    updater.step(np.ones(3))
    op, before = "Updater.load_state_dict", all_bits(updater)
    good = updater.state_dict()
    for error, message, state in [
        (ValueError, f"{op}: state must be what state_dict returned: optimizer, state, step, val_losses and masks", {}),
        (ValueError, f"{op}: optimizer must be SGD, got Adagrad", {**good, "optimizer": "Adagrad"}),
        (ValueError, f"{op}: state must be (S, P) = (1, 3), got (1, 4)", {**good, "state": np.ones((1, 4))}),
        (ValueError, f"{op}: masks[0] must be (3,), got (4,)", {**good, "masks": [np.ones(4, bool)]}),
        (ValueError, f"{op}: step must be an integer of at least 0, got -1", {**good, "step": -1}),
    ]:
        with pytest.raises(error) as found:
            updater.load_state_dict(state)
        assert str(found.value) == message
        assert all_bits(updater) == before


@pytest.mark.parametrize("clip_norm", [None, 1e30])
def test_an_update_whose_state_float32_cannot_hold_raises_and_changes_nothing(in_force, clip_norm):
    """Its second moment would be infinite, and the weight never move again."""
    params = np.ones(3, np.float32)
    updater = fg.Updater(params, Adam(0.1), clip_norm)
    updater.step(np.full(3, 0.5, np.float32))
    before = all_bits(updater)
    message = "would not be finite in float32: a gradient, parameter or rate is too large for it, or eps too small"
    with pytest.raises(FloatingPointError, match=message):
        updater.step(np.array([0, 1e21, 0], np.float32))
    assert all_bits(updater) == before
    updater.step(np.full(3, 0.1, np.float32))
    assert (params < 0.9).all()
    assert updater.step_count == 2


def test_without_clipping_there_is_no_norm(in_force):
    updater = fg.Updater(np.ones(3, np.float32), SGD(0.1), 1.0)
    assert updater.step(np.full(3, 2.0, np.float32)) == pytest.approx(math.sqrt(12))
    updater.clip_norm = None
    assert math.isnan(updater.step(np.full(3, 2.0, np.float32)))


@pytest.mark.parametrize(("optimizer", "gradient"), [(Adam(0.1), 1e21), (SGD(100.0), 1e37)])
def test_on_a_gpu_such_an_update_raises_where_it_is_looked_at(fake_gpu, optimizer, gradient):
    params = fake_gpu.array(np.ones(3, np.float32))
    updater = fg.Updater(params, optimizer)
    assert math.isnan(updater.step(fake_gpu.array(np.full(3, 0.5, np.float32))))
    before = bits(params.get()), bits(updater.state.get())
    outcome = updater.step(fake_gpu.array(np.array([0, gradient, 0], np.float32)))
    with pytest.raises(FloatingPointError, match="would not be finite in float32"):
        float(outcome)
    assert (bits(params.get()), bits(updater.state.get())) == before


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda u: setattr(u, "params", [np.ones(3)]), "params must have the shapes that Updater was made with"),
        (lambda u: u.params.__setitem__(0, np.ones(2)), "params must have the shapes that Updater was made with"),
        (
            lambda u: u.params.__setitem__(0, np.ones((4, 3, 2))),
            "params must have the shapes that Updater was made with",
        ),
        (lambda u: setattr(u, "params", u.params[:1]), "params must have the shapes that Updater was made with"),
        (lambda u: setattr(u, "state", np.zeros((2, 5))), r"state must be \(2, 17\), got \(2, 5\)"),
        (lambda u: setattr(u, "state", np.zeros((1, 17))), r"state must be \(2, 17\), got \(1, 17\)"),
        (lambda u: setattr(u, "state", np.zeros(34)), r"state must be \(2, 17\), got \(34,\)"),
        (lambda u: setattr(u, "state", np.zeros((17, 2)).T), "state must be C-contiguous and writable"),
    ],
)
def test_what_was_replaced_by_another_size_is_refused_and_nothing_is_updated(in_force, replace, message, clip_norm):
    updater = fg.Updater([np.ones((3, 4)), np.ones(5)], Adam(), clip_norm)
    replace(updater)
    before = all_bits(updater)
    with pytest.raises(ValueError, match=f"Updater.step: {message}"):
        updater.step([np.ones((3, 4)), np.ones(5)])
    assert all_bits(updater) == before


@pytest.mark.parametrize("state", [np.zeros((2, 3), np.float32), [[0.0] * 3] * 2, None])
def test_state_replaced_by_another_type_is_refused(in_force, state):
    updater = fg.Updater(np.ones(3), Adam())
    updater.state = state
    with pytest.raises(TypeError, match=r"Updater\.step: state must be the float64 array that Updater made"):
        updater.step(np.ones(3))


def test_arrays_replaced_by_their_like_are_those_that_are_updated(in_force):
    updater, other = fg.Updater([np.ones((3, 4))], Adam(0.1)), fg.Updater([np.full((3, 4), 2.0)], Adam(0.1))
    updater.params, updater.state = [np.full((3, 4), 2.0)], np.zeros((2, 12))
    updater.optimizer = Adam(0.1)
    for one in (updater, other):
        one.step([np.ones((3, 4))])
    assert all_bits(updater) == all_bits(other)


def test_kernels_compare_the_sizes_of_all_lists_of_a_launch(cpu):
    """Whoever calls them: what they are told are addresses."""
    params, grads, hyper = [np.ones(3), np.ones(4)], [np.ones(4), np.ones(3)], Adam().hyper

    def update(grads, state=(2, 7), masks=7):
        state, mask = np.zeros(state), np.ones(masks, np.bool_)
        cpu.update_arrays(params, grads, UpdateRule(Adam().code, state, hyper, 1.0, mask, None), 1, None)

    update(params)
    for wrong in (
        {"grads": grads},
        {"grads": params[:1]},
        {"grads": [g.astype(np.float32) for g in params]},
        {"grads": params, "state": (2, 6)},
        {"grads": params, "masks": 6},
    ):
        with pytest.raises(ValueError, match="update_arrays: "):
            update(**wrong)
    for prune in (
        lambda masks: cpu.prune_below(params, masks, 0.5),
        lambda masks: cpu.prune_smallest(params, masks, 1),
    ):
        with pytest.raises(ValueError, match="masks must have 7 values"):
            prune(np.ones(6, np.bool_))


def test_a_setting_that_is_assigned_is_the_next_steps(in_force, dtype, rng):
    grads = arrays(rng, dtype)
    for name, value in (("optimizer", SGD(0.5)), ("clip_norm", 1e-3), ("constraint", fg.optim.MaxValue(0.1))):
        start = arrays(rng, dtype)
        settings = {"optimizer": SGD(0.1)} | {name: value}
        made = fg.Updater([a.copy() for a in start], **settings)
        assigned = fg.Updater([a.copy() for a in start], SGD(0.1))
        setattr(assigned, name, value)
        made.step(grads)
        assigned.step(grads)
        assert all_bits(assigned) == all_bits(made)
        assert getattr(assigned, name) == value


def test_settings_that_cannot_be_are_refused(in_force):
    updater = fg.Updater([np.ones(2)], Adam())
    for name, value, error, message in [
        ("optimizer", SGD(0.1), ValueError, "another kind needs a new Updater"),
        ("optimizer", "adam", TypeError, "Updater: optimizer must be one of fastgrad.optim, got str"),
        ("clip_norm", 0, ValueError, "Updater: clip_norm must be above 0 and finite, got 0"),
        ("constraint", 1.0, TypeError, "Updater: constraint must be MaxValue or MaxNorm of fastgrad.optim, got float"),
        ("step_count", -1, ValueError, "Updater: step_count must be an integer of at least 0, got -1"),
    ]:
        with pytest.raises(error, match=message):
            setattr(updater, name, value)
    assert updater.optimizer == Adam()
    assert (updater.clip_norm, updater.constraint, updater.step_count) == (math.inf, None, 0)


def test_an_update_that_was_counted_is_seen_though_an_interrupt_comes_before_it_is_written(in_force, monkeypatch):
    from fastgrad.core.array_list import ArrayList

    updater = fg.Updater([np.ones((2, 3)).T], SGD(0.5))
    write, calls = ArrayList.write, []

    def interrupted(self):
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        write(self)

    monkeypatch.setattr(ArrayList, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        updater.step([np.ones((3, 2))])
    assert updater.step_count == 1
    assert (updater.params[0] == 0.5).all()
