"""Steps that processes share on a GPU, which is fakegpu.py's: those of one process on the CPU with all their rows, and what waits."""

import numpy as np
import pytest
from ranks import assert_a_failed_reduce_changes_nothing, close, data, model, parts, shared

import fastgrad as fg
from fastgrad.nn import LSTM, BatchNorm, Dense, Dropout, Sequential
from fastgrad.optim import SGD, Adam, MaxNorm

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

from fakegpu import FakeArray

ROWS = [slice(0, 3), slice(3, 10)]


def net(form):
    return model(form).to("cuda")


def on_gpu(program, mean=False):
    """What program(rank, reduce) returns for two ranks, which take turns with the one GPU."""
    return shared(2, program, mean, in_turn=True)


def same(trainers, alone):
    """Of trainers: to the bit among each other, and to rounding the one on the CPU that had all rows."""
    kept = [[a.get() for a in (t.model.params, t.model.grads, t.state)] for t in trainers]
    assert len({(*(a.tobytes() for a in arrays), t.step_count) for arrays, t in zip(kept, trainers, strict=True)}) == 1
    assert trainers[0].step_count == alone.step_count
    for found, expected in zip(kept[0][::2], (alone.model.params, alone.state), strict=True):
        close(found, expected, "float32")


@pytest.mark.parametrize("form", ["chain", "sequential"])
@pytest.mark.parametrize("mean", [False, True])
def test_steps_are_those_of_one_process_on_the_whole_batch(fake_gpu, cpu, form, mean):
    x, y = data(n=10)
    alone = fg.Trainer(model(form), optimizer=SGD(0.2, 0.9), clip_norm=0.05)
    expected = [alone.step(x, y) for _ in range(3)]

    def program(rank, reduce):
        trainer = fg.Trainer(net(form), optimizer=SGD(0.2, 0.9), clip_norm=0.05, reduce=reduce)
        losses = [trainer.step(x[ROWS[rank]], y[ROWS[rank]]) for _ in range(3)]
        close([float(loss) for loss in losses], expected, "float32")
        return trainer

    trainers = on_gpu(program, mean)
    same(trainers, alone)
    close(trainers[0].model.grads.get(), alone.model.grads, "float32")


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_clipping_constraints_pruning_and_health_see_the_gradient_of_all(fake_gpu, cpu, form):
    """Of which one rank alone is asked to tell."""
    x, y = data(n=14)
    rest = {"clip_norm": 0.05, "constraint": MaxNorm(1.0), "pruning": fg.GradualPruning(0.5, 1, 3, 1)}
    alone = fg.Trainer(model(form), optimizer=Adam(0.01), **rest, health=True)
    history = alone.fit(x, y, epochs=2, batch_size=10, shuffle=False)
    rows = parts(14, 10, (3, 7))

    def program(rank, reduce):
        trainer = fg.Trainer(net(form), optimizer=Adam(0.01), **rest, health=rank == 1, reduce=reduce)
        mine = rows[rank]
        found = trainer.fit(x[mine], y[mine], epochs=2, batch_size=(3, 7)[rank], shuffle=False)
        close(found.loss, history.loss, "float32")
        close(found.grad_norm, history.grad_norm, "float32")
        return trainer

    trainers = on_gpu(program)
    same(trainers, alone)
    for name, mask in alone.model.masks().items():
        np.testing.assert_array_equal(trainers[0].model.masks()[name].get(), mask)
    found, expected = trainers[1].health(), alone.health()
    np.testing.assert_array_equal(found.steps, expected.steps)
    for columns in (slice(0, 4), 8):
        close(found.history[..., columns], expected.history[..., columns], "float32")


@pytest.mark.parametrize("window", [None, 4])
def test_sequences_of_any_lengths_and_windows_that_end_early(fake_gpu, cpu, window):
    """The second rank's have all ended where the first one's last window begins; the third window is past the ends of all."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((6, 11, 3), np.float32), rng.integers(0, 4, (6, 11))
    lengths = np.array([7, 8, 5, 2, 1, 0])

    def make():
        return Sequential(LSTM(3, 5), Dense(5, 4, "softmax"), seed=1)

    alone = fg.Trainer(make(), optimizer=SGD(0.5, 0.9))
    history = alone.fit(x, y, epochs=2, batch_size=6, shuffle=False, lengths=lengths, window=window)

    def program(rank, reduce):
        trainer = fg.Trainer(make().to("cuda"), optimizer=SGD(0.5, 0.9), reduce=reduce)
        mine = slice(3 * rank, 3 * rank + 3)
        found = trainer.fit(x[mine], y[mine], 2, 3, shuffle=False, lengths=lengths[mine], window=window)
        close(found.loss, history.loss, "float32")
        return trainer

    same(on_gpu(program), alone)


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_reduce_is_called_once_a_step_with_one_array_on_the_gpu(fake_gpu, form):
    calls = []

    def reduce(values):
        assert isinstance(values, FakeArray)
        calls.append(
            (values.data.ptr, values.shape, values.dtype, values.flags.c_contiguous, values.__dlpack_device__())
        )
        return values

    x, y = data()
    trainer = fg.Trainer(net(form), reduce=reduce)
    trainer.step(x, y)
    trainer.fit(x, y, batch_size=8)
    assert len(calls) == trainer.step_count == 4
    ((_, shape, dtype, contiguous, place),) = set(calls)
    assert contiguous
    assert dtype == np.float32
    assert place == (2, 0)
    assert shape == (trainer.model.params.size + 37,)


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_a_step_waits_for_nothing_once_the_processes_have_agreed(fake_gpu, form):
    """The first step reads the parameters, to compare them, and whether all processes have the same; and each epoch asks once."""
    x, y = (fake_gpu.array(a) for a in data())
    trainer = fg.Trainer(net(form), reduce=lambda values: None, clip_norm=1.0)
    with fake_gpu.counted() as counts:
        trainer.step(x, y)
    assert counts["waits"] == 2
    with fake_gpu.counted() as counts:
        losses = [trainer.step(x, y) for _ in range(3)]
    assert counts["waits"] == counts["copies"] == 0
    assert float(losses[2]) < float(losses[0])
    waits = []
    for batch_size in (12, 3):
        with fake_gpu.counted() as counts:
            trainer.fit(x, y, batch_size=batch_size)
        waits.append(counts["waits"])
    # the labels, whether all agree, and what came of the epoch
    assert waits == [3, 3]


def test_an_all_reduce_adds_one_launch_to_a_step(fake_gpu):
    x, y = (fake_gpu.array(a) for a in data())
    launched = []
    for options in ({}, {"reduce": lambda values: None}):
        trainer = fg.Trainer(net("sequential"), **options)
        fake_gpu.launches.clear()
        trainer.step(x, y)
        launched.append(sorted(name for name, _ in fake_gpu.launches))
    assert launched[1] == sorted([*launched[0], "scale_chunks"])


def test_a_window_waits_only_for_who_has_no_rows_left(fake_gpu):
    x, lengths = np.ones((2, 8, 3), np.float32), np.array([1, 2])
    y, waits = np.zeros((2, 8), np.int64), []
    for all_ended in (False, True):

        def reduce(values, all_ended=all_ended):
            if not all_ended:
                # as if another process had a row in each window
                values[-36] += 1.0

        trainer = fg.Trainer(Sequential(LSTM(3, 4), Dense(4, 2), seed=0).to("cuda"), reduce=reduce)
        with fake_gpu.counted() as counts:
            trainer.fit(x, y, batch_size=2, lengths=lengths, window=2)
        assert trainer.step_count == (1 if all_ended else 4)
        waits.append(counts["waits"])
    assert waits[0] == waits[1] + 2


def state(trainer):
    statistics = [a.get().tobytes() for a in trainer.model.statistics().values()]
    draws = [g.bit_generator.state for g in trainer.model._generators()]
    return trainer.model.params.get().tobytes(), trainer.state.get().tobytes(), trainer.step_count, statistics, draws


def test_an_all_reduce_that_fails_midway_changes_nothing(fake_gpu):
    def new_model():
        layers = Dense(4, 6), BatchNorm(6, "tanh"), Dropout(0.5), Dense(6, 3, "softmax")
        return Sequential(*layers, seed=7).to("cuda")

    assert_a_failed_reduce_changes_nothing(new_model, state)
    x, y = data()
    trainer = fg.Trainer(net("chain"), reduce=lambda values: values.copy())
    with pytest.raises(TypeError, match="reduce must work in place and return None, got FakeArray; no update was made"):
        trainer.step(x, y)


def test_fit_keeps_the_updates_before_an_all_reduce_that_fails(fake_gpu):
    x, y = data()
    calls = []

    def reduce(values):
        calls.append(values)
        if len(calls) == 3:
            raise ConnectionResetError

    trainer, other = fg.Trainer(net("chain"), reduce=reduce, health=True), fg.Trainer(net("chain"), health=True)
    with pytest.raises(RuntimeError):
        trainer.fit(x, y, batch_size=8, shuffle=False)
    for start in (0, 8):
        other.step(x[start : start + 8], y[start : start + 8])
    close(trainer.model.params.get(), other.model.params.get(), "float32")
    assert trainer.step_count == 2
    assert trainer.health().steps.tolist() == other.health().steps.tolist() == [0, 1]


def test_a_gradient_that_is_not_finite_in_one_rank_is_an_error_in_all(fake_gpu):
    x, y = data("mse", n=10)

    def program(rank, reduce):
        trainer = fg.Trainer(model("chain", "identity").to("cuda"), "mse", Adam(), reduce=reduce)
        trainer.step(x, y)
        before = state(trainer)[:2]
        target = y.copy()
        target[:, 2] = np.nan if rank else 0
        loss = trainer.step(x, target)
        with pytest.raises(FloatingPointError, match=r"not finite in 0\.w, 0\.b, 1\.w, 1\.b; no update"):
            float(loss)
        with pytest.raises(FloatingPointError, match="epoch 1, batch 1: "):
            trainer.fit(x, target, batch_size=5)
        assert state(trainer)[:2] == before

    assert on_gpu(program) == [None, None]


DISAGREE = (
    "Trainer: reduce: parameters, loss, settings of the optimiser, number of updates and number of batches must be the same "
    "in all processes; no update was made"
)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    "differ",
    {
        "parameters": lambda rank: ({"model": model(seed=rank).to("cuda")}, {}),
        "rate": lambda rank: ({"optimizer": SGD(0.1 + 0.1 * rank)}, {}),
        "batches": lambda rank: ({}, {"batch_size": 4 + 4 * rank}),
    }.values(),
)
def test_ranks_that_are_not_alike_are_an_error_in_all(fake_gpu, differ, mean):
    """At once, since they would wait for each other at the end."""
    x, y = data()

    def program(rank, reduce):
        changed, options = differ(rank)
        trainer = fg.Trainer(**{"model": net("chain"), **changed}, reduce=reduce)
        before = state(trainer)
        with pytest.raises(RuntimeError) as found:
            trainer.fit(x, y, **options)
        assert state(trainer) == before
        return str(found.value)

    assert on_gpu(program, mean) == [DISAGREE] * 2


def test_ranks_that_part_later_are_told_when_the_loss_is_read_or_the_epoch_has_ended(fake_gpu):
    x, y = data(n=12)

    def program(rank, reduce):
        rates = fg.schedule.Rates([0.1, 0.1 + 0.1 * rank, 0.1, 0.1 + 0.1 * rank, 0.1])
        trainer = fg.Trainer(net("sequential"), optimizer=SGD(rates, 0.9), reduce=reduce)
        trainer.step(x, y)
        before = state(trainer)[:2]
        loss = trainer.step(x, y)
        assert state(trainer)[:2] == before
        with pytest.raises(RuntimeError) as found:
            float(loss)
        with pytest.raises(RuntimeError) as of_fit:
            trainer.fit(x, y, batch_size=4)
        # its first update stays
        assert trainer.step_count == 3
        assert state(trainer)[:2] != before
        return str(found.value), str(of_fit.value), state(trainer)

    first, second = on_gpu(program)
    assert first == second
    assert first[:2] == (DISAGREE, DISAGREE)


def test_shared_steps_follow_a_model(fake_gpu, cpu):
    x, y = data()
    alone, trainer = fg.Trainer(model()), fg.Trainer(model(), reduce=lambda values: None)
    for place in ("cuda", "cpu", "cuda"):
        trainer.model.to(place)
        assert trainer.step(x, y) == pytest.approx(alone.step(x, y), rel=1e-5)
    close(trainer.model.params.get(), alone.model.params, "float32")
