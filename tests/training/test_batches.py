"""Iterables of batches in fit: the bits of arrays in the same order, made in a thread meanwhile; errors say which batch."""

import signal
import threading
import time

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses
from trainers import data, model

import fastgrad as fg
from fastgrad.nn import LSTM, BatchNorm, Dense, Dropout, Sequential
from fastgrad.training.batches import prefetched


def layers():
    return Sequential(Dense(4, 8), BatchNorm(8, "relu"), Dropout(0.3), Dense(8, 3), seed=7)


def batches_of(x, y, size=8):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def state_of(trainer):
    generators = [g.bit_generator.state for g in (trainer.rng, *trainer.model._generators())]
    arrays = [trainer.model.params, trainer.state, *trainer.model.statistics().values()]
    return [bits(a) for a in arrays], trainer.step_count, generators


def one_buffer(x, y):
    """Batches that are all in the same memory."""
    for x_batch, y_batch in batches_of(x, y):
        if len(x_batch) == 8:
            x_buffer, y_buffer = x_batch.copy(), y_batch.copy()
        x_buffer[: len(x_batch)], y_buffer[: len(x_batch)] = x_batch, y_batch
        yield x_buffer[: len(x_batch)], y_buffer[: len(x_batch)]
        x_buffer[...], y_buffer[...] = np.nan, -9


SOURCES = {
    "list": batches_of,
    "function": lambda x, y: lambda epoch: iter(batches_of(x, y)),
    "one buffer": lambda x, y: lambda epoch: one_buffer(x, y),
    "lists": lambda x, y: [[xs.copy(order="F"), ys.astype("int32")] for xs, ys in batches_of(x, y)],
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("make", [layers, model])
def test_batches_have_the_bits_of_arrays_in_the_same_order(in_force, make, source):
    x, y = data()
    whole, parts = (
        fg.Trainer(
            make(),
            optimizer=fg.optim.Adam(fg.schedule.Cosine(0.1, 20)),
            clip_norm=1.0,
            pruning=fg.GradualPruning(0.5, 1, 8, 2) if make is model else None,
            health=2,
        )
        for _ in range(2)
    )
    expected = whole.fit(x, y, epochs=3, batch_size=8, shuffle=False, validation=(x, y))
    history = parts.fit(SOURCES[source](x, y), epochs=3, validation=(x, y))
    assert state_of(parts) == state_of(whole)
    assert bits(parts.health().history) == bits(whole.health().history)
    assert vars(history) | {"seconds": 0} == vars(expected) | {"seconds": 0}


@pytest.mark.parametrize("window", [None, 3])
def test_batches_of_sequences_have_the_bits_of_arrays(in_force, window):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 7, 4)).astype(np.float32), rng.integers(0, 3, (6, 7))
    lengths = np.array([7, 3, 5, 1, 7, 2])
    whole, parts = (fg.Trainer(Sequential(LSTM(4, 5), Dense(5, 3), seed=0)) for _ in range(2))
    whole.fit(x, y, epochs=2, batch_size=2, shuffle=False, lengths=lengths, window=window)
    triples = [(x[i : i + 2], y[i : i + 2], lengths[i : i + 2]) for i in (0, 2, 4)]
    parts.fit(triples, epochs=2, window=window)
    assert state_of(parts) == state_of(whole)


def test_tensors_of_a_data_loader_are_arrays(in_force):
    torch = pytest.importorskip("torch")
    x, y = data()
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    whole, parts = fg.Trainer(model()), fg.Trainer(model())
    whole.fit(x, y, epochs=2, batch_size=8, shuffle=False)
    parts.fit(torch.utils.data.DataLoader(dataset, batch_size=8), epochs=2)
    assert state_of(parts) == state_of(whole)


def test_a_function_gets_the_epoch_and_a_fit_goes_on_at_the_next(in_force, tmp_path):
    x, y = data()

    def batches(epoch):
        order = np.random.default_rng(epoch).permutation(len(x))
        return batches_of(x[order], y[order])

    whole, first, second = (fg.Trainer(model(seed=seed)) for seed in (1, 1, 2))
    whole.fit(batches, epochs=4)
    path = tmp_path / "run"
    first.fit(batches, epochs=4, checkpoint=path, callback=lambda result: result.epoch == 2)
    second.fit(batches, epochs=4, checkpoint=path, resume=True)
    assert state_of(second) == state_of(whole)


RAISED = {"raises": (KeyError, "row"), "exits": (SystemExit, 3), "stops": (StopIteration, None)}


def failing(batches, kind):
    yield from batches[:2]
    if kind in RAISED:
        error, argument = RAISED[kind]
        raise error(argument)
    x, y = batches[2]
    if kind == "short row":
        x = x[:, :3]
    if kind == "label":
        y = y + 9
    if kind == "not finite":
        x = x * np.float32(np.inf)
    yield {
        "no tuple": x,
        "no y": (x,),
        "dtype": (x.astype("f8"), y),
        "axes": (x[:, None], y),
        "no rows": (x[:0], y[:0]),
        "rows of y": (x, y[1:]),
        "negative": (x, y, None, -np.ones(len(x))),
        "NaN": (x, y, None, np.full(len(x), np.nan)),
        "rows of weights": (x, y, None, np.ones(len(x) + 1)),
    }.get(kind, (x, y))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("raises", KeyError, "row"),
        ("short row", ValueError, r"Trainer\.fit: epoch 1, batch 3: x must be \(N, C\) = \(_, 4\), got \(4, 3\)"),
        ("label", ValueError, r"Trainer\.fit: epoch 1, batch 3: y"),
        ("not finite", FloatingPointError, r"Trainer\.fit: epoch 1, batch 3: the gradient is not finite"),
        ("no tuple", TypeError, r"epoch 1, batch 3: a batch must be a list or tuple, got ndarray"),
        ("no y", ValueError, r"epoch 1, batch 3: a batch must be \(x, y\), .*, got 1 values"),
        ("dtype", TypeError, r"epoch 1, batch 3: x must be float32 like the model, got float64"),
        ("exits", SystemExit, "3"),
        ("stops", RuntimeError, "generator raised StopIteration"),
        ("axes", ValueError, r"epoch 1, batch 3: x must be \(N, C\) = \(_, 4\), got \(4, 1, 4\)"),
        ("no rows", ValueError, r"epoch 1, batch 3: x must have at least one row, got \(0, 4\)"),
        ("rows of y", ValueError, r"epoch 1, batch 3: y must be integers \(4,\)"),
        ("negative", ValueError, r"epoch 1, batch 3: sample_weight must be at least 0 and finite, got -1.0 at index 0"),
        ("NaN", ValueError, r"epoch 1, batch 3: sample_weight must be at least 0 and finite, got nan at index 0"),
        ("rows of weights", ValueError, r"epoch 1, batch 3: sample_weight must be \(N,\) = \(4,\), got \(5,\)"),
    ],
)
@pytest.mark.parametrize("make", [layers, model])
def test_after_a_bad_batch_the_trainer_is_as_after_the_last_update(in_force, make, kind, error, message):
    x, y = data()
    trainer, expected = fg.Trainer(make()), fg.Trainer(make())
    for batch in batches_of(x, y)[:2]:
        expected.step(*batch)
    with pytest.raises(error, match=message) as caught:
        trainer.fit(failing(batches_of(x, y), kind))
    assert state_of(trainer) == state_of(expected)
    if kind == "raises":
        (note,) = caught.value.__notes__
        assert note.startswith("Trainer.fit: epoch 1, batch 3: this came out of the iterable; the 2 batches before it")


def test_a_keyboard_interrupt_in_the_iterable_ends_the_fit_after_whole_updates(in_force):
    """Also out of one whose epoch was whole before: the history has that epoch."""
    x, y = data()

    def batches(epoch):
        yield from batches_of(x, y)[: 3 if epoch == 1 else 2]
        if epoch == 2:
            raise KeyboardInterrupt

    trainer, expected = fg.Trainer(layers()), fg.Trainer(layers())
    for batch in [*batches_of(x, y), *batches_of(x, y)[:2]]:
        expected.step(*batch)
    with pytest.warns(UserWarning, match=r"Training interrupted by user.*1 of 4 epochs.*step_count is 5"):
        history = trainer.fit(batches, epochs=4, progress=False)
    assert state_of(trainer) == state_of(expected)
    assert len(history.loss) == 1


def test_an_iterator_has_the_last_epoch_of_a_fit_that_goes_on(in_force, tmp_path):
    x, y = data()
    whole, first, second = (fg.Trainer(model(seed=seed)) for seed in (1, 1, 2))
    path, batches = tmp_path / "run", batches_of(x, y)
    whole.fit(batches, epochs=2)
    first.fit(iter(batches), epochs=1, checkpoint=path)
    history = second.fit(iter(batches), epochs=2, checkpoint=path, resume=True)
    assert state_of(second) == state_of(whole)
    assert len(history.loss) == 2
    message = (
        "Trainer.fit: x is an iterator, which ends after one epoch, and epochs is 4 and 2 are left; "
        "a function of the epoch that returns an iterable has one for each"
    )
    refuses(ValueError, message, second.fit, iter(batches), epochs=4, checkpoint=path, resume=True)
    # nothing is left to do
    assert len(second.fit(iter(batches), epochs=2, checkpoint=path, resume=True).loss) == 2


def test_iterables_that_end_early_are_named(in_force, tmp_path):
    x, y = data()
    trainer = fg.Trainer(layers())
    fit, batches = trainer.fit, batches_of(x, y)
    refuses(ValueError, "Trainer.fit: epoch 1: the iterable has no batch", fit, [])
    message = (
        "Trainer.fit: x is an iterator, which ends after one epoch, and epochs is 2; "
        "a function of the epoch that returns an iterable has one for each"
    )
    refuses(ValueError, message, fit, iter(batches), epochs=2)
    refuses(ValueError, message, fit, iter(batches), epochs=2, checkpoint=tmp_path / "missing", resume=True)
    assert trainer.step_count == 0
    message = "Trainer.fit: epoch 2: the iterable has no batch"
    refuses(ValueError, message, fit, lambda epoch: batches if epoch == 1 else [], epochs=2)
    assert trainer.step_count == 3
    message = "Trainer.fit: epoch 1: the function must return an iterable of batches, got NoneType"
    refuses(TypeError, message, fit, lambda epoch: None)

    def no_arguments():
        return batches

    message = (
        "Trainer.fit: the function of batches is called with the number of the epoch, which no_arguments() does not take: "
        "too many positional arguments"
    )
    refuses(TypeError, message, fit, no_arguments)
    # a callable without a signature that Python can read is called
    refuses(TypeError, "Trainer.fit: epoch 1: the function must return an iterable of batches, got int", fit, int)
    message = (
        "Trainer.fit: lengths, sample_weight and drop_last are for arrays; "
        "batches of an iterable are (x, y, lengths, sample_weight)"
    )
    refuses(ValueError, message, fit, batches, drop_last=True)
    with pytest.raises(ValueError, match=r"epoch 1, batch 2: the batch has one row, too few for a batch norm"):
        fit([batches[0], (x[:1], y[:1])])
    assert trainer.step_count == 4


def test_a_batch_is_made_while_the_one_before_is_used():
    made, main = [], threading.get_ident()

    def items():
        for i in range(4):
            made.append((i, threading.get_ident() != main))
            yield i

    for i in prefetched(items()):
        for _ in range(200):
            if len(made) >= min(i + 2, 4):
                break
            time.sleep(0.01)
        # one ahead, and no more
        assert len(made) == min(i + 2, 4)
    assert all(elsewhere for _, elsewhere in made)


def test_the_thread_ends_with_the_fit(in_force):
    x, y = data()

    def names():
        return [t.name for t in threading.enumerate() if t.name == "fastgrad-batches"]

    fg.Trainer(model()).fit(batches_of(x, y), epochs=2)
    with pytest.raises(KeyError):
        fg.Trainer(model()).fit(failing(batches_of(x, y), "raises"))
    with pytest.raises(ValueError, match="batch 1"):
        fg.Trainer(model()).fit((xs[:, :2], ys) for xs, ys in batches_of(x, y))
    for _ in range(200):
        if not names():
            break
        time.sleep(0.01)
    assert names() == []


def test_the_error_state_and_backend_are_those_of_the_caller(in_force):
    backends = []

    def batches(epoch):
        backends.append(fg.backend())
        yield data()
        backends.append(fg.backend())

    fg.Trainer(model()).fit(batches)
    assert backends == [in_force] * 2


def test_ctrl_c_ends_a_fit_whose_iterable_waits(in_force):
    x, y = data()
    waiting = threading.Event()

    def batches():
        yield from batches_of(x, y)[:2]
        waiting.wait(60)

    def interrupt(*arguments):
        if trainer.step_count == 2:
            raise KeyboardInterrupt

    trainer = fg.Trainer(model())
    expected = fg.Trainer(model())
    for batch in batches_of(x, y)[:2]:
        expected.step(*batch)
    if not hasattr(signal, "setitimer"):
        pytest.skip("there is no timer's signal")
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with pytest.warns(UserWarning, match=r"Training interrupted by user.*0 of 1 epochs.*step_count is 2"):
            history = trainer.fit(batches())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        waiting.set()
    assert history.loss == []
    assert state_of(trainer) == state_of(expected)
