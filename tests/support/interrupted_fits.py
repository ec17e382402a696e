"""Interrupts at random moments of fits and of loops of steps: the trainer, the history and the checkpoint are as after a whole number of
updates of an uninterrupted run, to the bit, and the fit goes on to that run's end.

Arguments: the number of interrupts, and the seed. Prints how many came where, and "whole".
"""

import hashlib
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from interrupt_handler import install_interrupt_handler

import fastgrad as fg
from fastgrad import nn
from fastgrad.core import pace
from fastgrad.training.step import TrainStep

TIMES, SEED = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
EPOCHS, ROWS, BATCH = 6, 70, 8
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((ROWS, 6)).astype(np.float32), rng.integers(0, 3, ROWS)
WEIGHTS = rng.random(ROWS)
XS, YS = rng.standard_normal((24, 9, 6)).astype(np.float32), rng.integers(0, 3, (24, 9))
LENGTHS = rng.integers(1, 10, 24)
GROUPS = {"*.b": {"weight_decay": 0.0}, "0.*": {"lr": 0.02}, "2.b": {"frozen": True}}


def chain_model(masked=True):
    model = nn.Sequential(nn.Dense(6, 20, "tanh"), nn.Dense(20, 12, "relu"), nn.Dense(12, 3), seed=0)
    if masked:
        fg.prune(model, 0.3)
    return model


def layers_model():
    model = nn.Sequential(nn.Dense(6, 16), nn.BatchNorm(16, "relu"), nn.Dropout(0.2), nn.Dense(16, 3), seed=0)
    fg.prune(model, 0.3)
    return model


def chain():
    optimizer = fg.optim.AdamW(fg.schedule.Cosine(0.05, 100), groups=GROUPS)
    return fg.Trainer(chain_model(), optimizer=optimizer, clip_norm=0.5, seed=3)


def pruned_chain():
    rates = fg.schedule.ReduceOnPlateau(0.05, patience=0)
    pruning, constraint = fg.GradualPruning(0.8, 3, 45, 4), fg.optim.MaxNorm(1.0)
    optimizer = fg.optim.SGD(rates, 0.9, groups=GROUPS)
    return fg.Trainer(chain_model(False), optimizer=optimizer, clip_norm=0.5, pruning=pruning, constraint=constraint)


def layers():
    groups = {"*.b": {"weight_decay": 0.0}, "0.*": {"lr": 0.02}, "3.b": {"frozen": True}}
    optimizer = fg.optim.AdamW(fg.schedule.WarmUp(9, fg.schedule.Exponential(0.05, 0.99)), groups=groups)
    return fg.Trainer(layers_model(), optimizer=optimizer, clip_norm=0.5, seed=3)


def pruned_layers():
    model = nn.Sequential(nn.Dense(6, 16), nn.BatchNorm(16, "relu"), nn.Dropout(0.2), nn.Dense(16, 3), seed=0)
    optimizer = fg.optim.RMSprop(0.01, groups={"1.*": {"frozen": True}})
    return fg.Trainer(model, optimizer=optimizer, pruning=fg.GradualPruning(0.8, 3, 45, 4), clip_norm=1.0)


def reducing():
    trainer = layers()
    trainer.reduce = lambda values: None
    return trainer


def recurrent():
    model = nn.Sequential(nn.LSTM(6, 8, recurrent_dropout=0.2), nn.Dropout(0.1), nn.Dense(8, 3), seed=0)
    optimizer = fg.optim.Adam(fg.schedule.Cosine(0.05, 100), groups={"2.*": {"lr": 0.01}})
    return fg.Trainer(model, optimizer=optimizer, clip_norm=0.5)


def told(result):
    # work that an interrupt can come into
    for i in range(1500):
        str(i)


# the checkpoints would take most of the time
FIT = {"epochs": EPOCHS, "callback": told, "progress": False, "checkpoint_every": 4}


def arrays(trainer, **options):
    validation = X[:20], Y[:20]
    return trainer.fit(X, Y, batch_size=BATCH, sample_weight=WEIGHTS, validation=validation, **FIT, **options)


def stopping_early(trainer, **options):
    return arrays(trainer, patience=2, **options)


def iterable(trainer, **options):
    def batches(epoch):
        order = np.random.default_rng(epoch).permutation(ROWS)
        for first in range(0, ROWS, BATCH):
            rows = order[first : first + BATCH]
            time.sleep(random.uniform(0, 0.0005))
            yield X[rows], Y[rows], None, WEIGHTS[rows]

    return trainer.fit(batches, validation=(X[:20], Y[:20]), patience=9, **FIT, **options)


def sequences(trainer, **options):
    return trainer.fit(XS, YS, batch_size=5, window=4, lengths=LENGTHS, **FIT, **options)


def steps(trainer, checkpoint=None, resume=False):
    """A loop of a user's own."""
    if resume and checkpoint.exists():
        fg.load(checkpoint, trainer)
    while trainer.step_count < 40:
        rows = np.random.default_rng(trainer.step_count).integers(0, ROWS, BATCH)
        trainer.step(X[rows], Y[rows])
        if checkpoint is not None and trainer.step_count % 24 == 0:
            fg.save(checkpoint, trainer)


WAYS = {
    "chain, arrays": (chain, arrays),
    "chain, iterable": (chain, iterable),
    "chain, steps": (chain, steps),
    "chain, pruned, arrays": (pruned_chain, arrays),
    "chain, early stopping": (chain, stopping_early),
    "layers, arrays": (layers, arrays),
    "layers, iterable": (layers, iterable),
    "layers, steps": (layers, steps),
    "layers, pruned, arrays": (pruned_layers, arrays),
    "layers, early stopping": (layers, stopping_early),
    "layers, all-reduce": (reducing, arrays),
    "sequences, windows": (recurrent, sequences),
}


def digest(trainer):
    model = trainer.model
    values = [
        model.params,
        trainer.state,
        *model.statistics().values(),
        *(() if model._mask is None else [model._mask]),
    ]
    generators = [g.bit_generator.state for g in (trainer.rng, *model._generators())]
    whole = b"".join(np.ascontiguousarray(a).tobytes() for a in values) + repr(generators).encode()
    return hashlib.sha256(whole).hexdigest()


def numbers(history):
    """The lists of a history but the seconds."""
    return {} if history is None else {name: v for name, v in vars(history).items() if name != "seconds"}


def uninterrupted(make, train):
    """(the trainer after each number of updates, the history of all epochs) of a run whose chain makes one update a call."""
    trainer, after, kept = make(), {}, (pace.CALL, pace.Pace.measure, TrainStep._update, fg.Trainer._prune)

    def recording(function):
        def call(self, *arguments):
            result = function(self, *arguments)
            after[trainer.step_count] = {digest(trainer)}
            return result

        return call

    after[0] = {digest(trainer)}
    pace.CALL = 0.0
    pace.Pace.measure, TrainStep._update, fg.Trainer._prune = (recording(f) for f in kept[1:])
    step = fg.Trainer.step
    if train is steps:
        fg.Trainer.step = recording(step)
    try:
        history = train(trainer)
    finally:
        pace.CALL, pace.Pace.measure, TrainStep._update, fg.Trainer._prune = kept
        fg.Trainer.step = step
    # early stopping restores the best epoch
    after[trainer.step_count].add(digest(trainer))
    assert [*after] == [*range(trainer.step_count + 1)]
    return after, trainer, history


def place(frame):
    """Where an interrupt comes, by the functions that run."""
    names = set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    for where, functions in (
        ("callback", {"told"}),
        ("checkpoint", {"write_checkpoint", "save", "load"}),
        ("validation", {"evaluate"}),
        ("data loading", {"prefetched", "batches", "plan", "_plan", "checked_data", "select_rows", "default_rng"}),
        ("step", {"_compiled_epoch", "_update", "_step"}),
    ):
        if names & functions:
            return where
    return "between steps" if names & {"_train_epoch", "steps"} else "around the epochs"


def is_free(lock):
    """Whether another thread gets it."""
    got = []

    def take():
        if lock.acquire(timeout=5):
            got.append(lock)
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return got == [lock]


def interrupted(make, train, expected, seconds, path, name):
    """One run with an interrupt after some of so many seconds, and the fit that goes on. Whether it came in time."""
    after, whole, history = expected
    trainer, before, found = make(), len(places), None
    pace.CALL = random.choice([0.1, 0.001, 0.0001])
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, seconds))
        found = train(trainer, checkpoint=path)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except (KeyboardInterrupt, UserWarning):
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    if len(places) == before:
        return False
    at = f"{name}, {places[-1]}, step_count {trainer.step_count}"
    assert digest(trainer) in after[trainer.step_count], at
    assert not trainer._running, at
    assert is_free(trainer.lock), at
    # a temporary file of the checkpoint that was interrupted is gone
    assert {p.name for p in path.parent.iterdir()} <= {path.name}, at
    if path.exists():
        read = make()
        fg.load(path, read)
        assert digest(read) in after[read.step_count], at
    other = trainer if path.exists() and random.random() < 0.5 else make()
    found = train(other, checkpoint=path, resume=True)
    assert digest(other) == digest(whole), at
    assert numbers(found) == numbers(history), at
    return True


def main():
    fg.set_num_threads(1)
    # the warning of an interrupted fit ends it as an error; of files in the middle of opening nobody needs one
    warnings.simplefilter("error", UserWarning)
    install_interrupt_handler(lambda frame: places.append(place(frame)))
    random.seed(SEED)
    expected, seconds = {}, {}
    for name, (make, train) in WAYS.items():
        expected[name] = uninterrupted(make, train)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            train(make(), checkpoint=Path(folder) / "run")
        seconds[name] = time.perf_counter() - started
    came = Counter()
    while sum(came.values()) < TIMES:
        for name, (make, train) in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "run"
                if sum(came.values()) < TIMES and interrupted(make, train, expected[name], seconds[name], path, name):
                    came[places[-1]] += 1
    print(dict(came))
    print("whole")


places: list[str] = []
if __name__ == "__main__":
    main()
