"""Steps that processes share are those of one process on all their rows: in threads, in processes and under MPI."""

import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import bits
from ranks import PATIENCE, assert_a_failed_reduce_changes_nothing, close, data, model, parts, shared

import fastgrad as fg
from fastgrad.nn import LSTM, BatchNorm, Dense, Sequential
from fastgrad.optim import SGD, Adam, AdamW, MaxNorm

OPTIMIZERS = {"sgd": SGD(0.1, 0.9), "adam": AdamW(0.01)}
# loss, last activation
LOSSES = [
    ("cross_entropy", "softmax"),
    ("binary_cross_entropy", "sigmoid"),
    ("mse", "identity"),
    ("poisson_nll", "identity"),
]


def same(trainers, alone, dtype):
    """Of trainers: to the bit among each other, and to rounding the one that had all rows."""
    assert len({(bits(t.model.params), bits(t.model.grads), bits(t.state), t.step_count) for t in trainers}) == 1
    assert trainers[0].step_count == alone.step_count
    close(trainers[0].model.params, alone.model.params, dtype)
    close(trainers[0].state, alone.state, dtype)


@pytest.mark.pairwise
@pytest.mark.parametrize("form", ["chain", "sequential"])
@pytest.mark.parametrize(("loss", "output"), LOSSES)
@pytest.mark.parametrize("mean", [False, True])
def test_steps_are_those_of_one_process_on_the_whole_batch(in_force, dtype, form, loss, output, mean):
    x, y = data(loss, dtype)
    alone = fg.Trainer(model(form, output, dtype), loss, SGD(0.2))
    expected = [alone.step(x, y) for _ in range(3)]
    rows = [slice(0, 5), slice(5, 16), slice(16, 24)]

    def program(rank, reduce):
        trainer = fg.Trainer(model(form, output, dtype), loss, SGD(0.2), reduce=reduce)
        losses = [trainer.step(x[rows[rank]], y[rows[rank]]) for _ in range(3)]
        close(losses, expected, dtype)
        return trainer

    trainers = shared(3, program, mean)
    same(trainers, alone, dtype)
    close(trainers[0].model.grads, alone.model.grads, dtype)


@pytest.mark.parametrize("form", ["chain", "sequential"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_clipping_constraints_pruning_and_health_see_the_gradient_of_all(in_force, form, optimizer):
    x, y = data()
    rest = {"clip_norm": 0.05, "constraint": MaxNorm(1.0), "pruning": fg.GradualPruning(0.5, 1, 5, 1), "health": True}
    alone = fg.Trainer(model(form), optimizer=optimizer, **rest)
    history = alone.fit(x, y, epochs=2, batch_size=10, shuffle=False)
    rows = parts(24, 10, (3, 7))

    def program(rank, reduce):
        trainer = fg.Trainer(model(form), optimizer=optimizer, **rest, reduce=reduce)
        mine = rows[rank]
        found = trainer.fit(x[mine], y[mine], epochs=2, batch_size=(3, 7)[rank], shuffle=False)
        close(found.loss, history.loss, "float32")
        close(found.grad_norm, history.grad_norm, "float32")
        return trainer

    trainers = shared(2, program)
    same(trainers, alone, "float32")
    assert all(np.array_equal(trainers[0].model.masks()[name], mask) for name, mask in alone.model.masks().items())
    gradients = slice(0, 4)
    for trainer in trainers:
        close(trainer.health().values[:, gradients], alone.health().values[:, gradients], "float32")
        close(trainer.health().values[:, -1], alone.health().values[:, -1], "float32")
        assert np.isfinite(trainer.health().values).all()


@pytest.mark.parametrize("window", [None, 4])
def test_sequences_of_any_lengths_and_windows_that_end_early(in_force, window):
    """A rank whose sequences have ended waits for the others; past the ends of all, in the third window, there is no update."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((8, 11, 3), np.float32), rng.integers(0, 4, (8, 11))
    lengths = np.array([2, 1, 3, 0, 7, 8, 5, 7])

    def net():
        return Sequential(LSTM(3, 5), Dense(5, 4, "softmax"), seed=1)

    alone = fg.Trainer(net(), optimizer=SGD(0.5, 0.9))
    history = alone.fit(x, y, epochs=2, batch_size=8, shuffle=False, lengths=lengths, window=window)

    def program(rank, reduce):
        trainer, mine = fg.Trainer(net(), optimizer=SGD(0.5, 0.9), reduce=reduce), slice(4 * rank, 4 * rank + 4)
        found = trainer.fit(x[mine], y[mine], 2, 4, shuffle=False, lengths=lengths[mine], window=window)
        close(found.loss, history.loss, "float32")
        return trainer

    same(shared(2, program), alone, "float32")


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_reduce_is_called_once_a_step_with_one_array(in_force, dtype, form):
    calls = []

    def reduce(values):
        calls.append((values.ctypes.data, values.shape, values.dtype, values.flags.carray))
        return values

    x, y = data(dtype=dtype)
    net = model(form, dtype=dtype)
    trainer = fg.Trainer(net, reduce=reduce)
    trainer.step(x, y)
    trainer.fit(x, y, epochs=2, batch_size=8, validation=(x, y))
    assert len(calls) == trainer.step_count == 7
    ((_, shape, found, plain),) = set(calls)
    assert plain
    assert found == dtype
    assert len(shape) == 1
    assert shape[0] > net.params.size


def test_a_trainer_follows_a_model_that_a_sequential_takes_over(in_force):
    x, y = data()
    alone, chain, calls = fg.Trainer(model()), model(), []
    trainer = fg.Trainer(chain, reduce=calls.append)
    for t in (alone, trainer):
        t.step(x, y)
        if t is trainer:
            Sequential(chain)
        t.step(x, y)
    assert len(calls) == 2
    close(chain.params, alone.model.params, "float32")


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_an_all_reduce_that_fails_midway_changes_nothing(in_force, form):
    def net():
        return (
            model()
            if form == "chain"
            else Sequential(Dense(4, 6), BatchNorm(6, "tanh"), Dense(6, 3, "softmax"), seed=7)
        )

    def state(trainer):
        statistics = [bits(a) for a in trainer.model.statistics().values()]
        return bits(trainer.model.params), bits(trainer.state), trainer.step_count, statistics

    assert_a_failed_reduce_changes_nothing(net, state)


def test_fit_keeps_the_updates_before_an_all_reduce_that_fails(in_force):
    x, y = data()
    calls = itertools.count()

    def reduce(values):
        if next(calls) == 2:
            raise ConnectionResetError

    trainer, other = fg.Trainer(model(), reduce=reduce), fg.Trainer(model())
    with pytest.raises(RuntimeError):
        trainer.fit(x, y, batch_size=8, shuffle=False)
    for start in (0, 8):
        other.step(x[start : start + 8], y[start : start + 8])
    close(trainer.model.params, other.model.params, "float32")
    assert trainer.step_count == 2


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_a_gradient_that_is_not_finite_in_one_rank_is_an_error_in_all(in_force, form):
    x, y = data("mse")

    def program(rank, reduce):
        trainer = fg.Trainer(model(form, "identity"), "mse", Adam(), reduce=reduce)
        trainer.step(x, y)
        before = bits(trainer.model.params), bits(trainer.state)
        target = y.copy()
        target[:, 2] = np.nan if rank else 0
        with pytest.raises(FloatingPointError, match=r"not finite in 0\.w, 0\.b, 1\.w, 1\.b; no update"):
            trainer.step(x, target)
        assert (bits(trainer.model.params), bits(trainer.state), trainer.step_count) == (*before, 1)

    assert shared(2, program) == [None, None]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    "differ",
    {
        "parameters": lambda rank: ({"model": model(seed=rank)}, {}),
        "rate": lambda rank: ({"optimizer": SGD(0.1 + 0.1 * rank)}, {}),
        "optimiser": lambda rank: ({"optimizer": (Adam(), AdamW())[rank]}, {}),
        "clip_norm": lambda rank: ({"clip_norm": 1.0 + rank}, {}),
        "batches": lambda rank: ({}, {"batch_size": 4 + 4 * rank}),
    }.values(),
)
def test_ranks_that_are_not_alike_are_an_error_in_all(in_force, differ, mean):
    """Before any update: they would part, or wait for each other at the end."""
    x, y = data()

    def program(rank, reduce):
        changed, options = differ(0 if rank < 2 else 1)
        trainer = fg.Trainer(**{"model": model(), **changed}, reduce=reduce)
        before = bits(trainer.model.params)
        with pytest.raises(RuntimeError) as found:
            trainer.fit(x, y, **options)
        assert bits(trainer.model.params) == before
        assert trainer.step_count == 0
        return str(found.value)

    message = (
        "Trainer: reduce: parameters, loss, settings of the optimiser, number of updates and number of batches must be the same "
        "in all processes; no update was made"
    )
    assert shared(3, program, mean) == [message] * 3


def test_what_is_no_all_reduce_is_refused(in_force):
    x, y = data()
    with pytest.raises(TypeError) as found:
        fg.Trainer(model(), reduce="sum")
    assert str(found.value) == "Trainer: reduce must be callable, got str"
    trainer = fg.Trainer(model(), reduce=lambda values: 2 * values)
    before = bits(trainer.model.params)
    with pytest.raises(TypeError) as found:
        trainer.step(x, y)
    message = "Trainer: reduce must work in place and return None, got ndarray; no update was made"
    assert str(found.value) == message
    assert bits(trainer.model.params) == before


SETTINGS = {"optimizer": Adam(0.01), "clip_norm": 0.5, "seed": 0}
SHARES = 7, 4


def train(rank, reduce):
    """Two epochs of a rank: (losses, parameters)."""
    x, y = data(n=31)
    rows = parts(31, sum(SHARES), SHARES)[rank]
    trainer = fg.Trainer(model(), **SETTINGS, reduce=reduce)
    history = trainer.fit(x[rows], y[rows], epochs=2, batch_size=SHARES[rank], shuffle=False)
    return history.loss, trainer.model.params


def train_alone():
    x, y = data(n=31)
    trainer = fg.Trainer(model(), **SETTINGS)
    history = trainer.fit(x, y, epochs=2, batch_size=sum(SHARES), shuffle=False)
    return history.loss, trainer.model.params


def as_alone(found):
    """(losses, parameters) of two processes, to the bit alike."""
    (losses, params), (other_losses, other_params) = found
    expected_losses, expected = train_alone()
    assert losses == other_losses
    assert bits(params) == bits(other_params)
    close(losses, expected_losses, "float32")
    close(params, expected, "float32")


def work(rank, pipe):
    """A process of two; what came of it goes through its pipe too."""

    def reduce(values):
        pipe.send_bytes(values)
        values += np.frombuffer(pipe.recv_bytes(), values.dtype)

    pipe.send(train(rank, reduce))


def test_two_processes_with_a_pipe(cpu):
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=work, args=(rank, end), daemon=True) for rank, (_, end) in enumerate(pipes)]
    ends = [end for end, _ in pipes]
    for process in processes:
        process.start()
    for _ in range(6):
        assert all(end.poll(PATIENCE) for end in ends)
        # each gets what the other sent
        for end, sent in zip(reversed(ends), [end.recv_bytes() for end in ends], strict=True):
            end.send_bytes(sent)
    assert all(end.poll(PATIENCE) for end in ends)
    as_alone([end.recv() for end in ends])
    for process in processes:
        process.join()
        assert process.exitcode == 0


MPI = """
import sys
import numpy as np
from mpi4py import MPI
from test_all_reduce import train

world = MPI.COMM_WORLD
losses, params = train(world.rank, lambda values: world.Allreduce(MPI.IN_PLACE, values))
np.savez(f"{sys.argv[1]}/{world.rank}.npz", losses=losses, params=params)
"""


def test_two_processes_under_mpi(cpu, tmp_path):
    pytest.importorskip("mpi4py", reason="needs the extra [mpi]")
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if mpiexec is None:
        pytest.skip("there is no mpiexec: the extra [mpi] has one")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    # Open MPI's, without which it refuses to run where tests often do
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # an error in one process ends the other
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py", "-c", MPI, str(tmp_path)]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    files = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    as_alone([(file["losses"].tolist(), file["params"]) for file in files])
