"""What is counted is what was made, wherever a signal's exception comes: the model of each way to train is as after so many updates."""

import hashlib
import random
import signal
import sys
import threading
import warnings

import numpy as np
from interrupt_handler import install_interrupt_handler

import fastgrad as fg

TIMES, UPDATES = int(sys.argv[1]), 400
fg.set_num_threads(1)
warnings.simplefilter("error")
rng = np.random.default_rng(0)
x, y = rng.standard_normal((16, 6)).astype(np.float32), rng.integers(0, 3, 16)
# batches that are equal: the model after so many updates does not depend on when epochs began
xs, ys = np.tile(x, (8, 1)), np.tile(y, 8)
grads = [rng.standard_normal((20, 30)).astype(np.float32), rng.standard_normal(9).astype(np.float32)]


def chain():
    return fg.Trainer(fg.nn.DenseChain([6, 40, 3], output="softmax", seed=0), clip_norm=1.0)


def layers():
    nn = fg.nn
    return fg.Trainer(nn.Sequential(nn.Dense(6, 8), nn.BatchNorm(8, "relu"), nn.Dropout(0.2), nn.Dense(8, 3), seed=0))


def pruned():
    return fg.Trainer(fg.nn.DenseChain([6, 40, 3], seed=0), pruning=fg.GradualPruning(0.9, 1, 300, 3))


def updater():
    # one of the arrays is copied for each call
    return fg.Updater([np.ones((30, 20), np.float32).T, np.ones(9, np.float32)], fg.optim.Adam(0.01), 1.0)


def step(trainer):
    trainer.step(x, y)


def fit(trainer):
    trainer.fit(xs, ys, epochs=3, batch_size=16, shuffle=False, progress=False)


def fit_batches(trainer):
    trainer.fit(((x, y) for _ in range(24)), progress=False)


def update(trainer):
    trainer.step(grads)


def digest(trainer):
    model = getattr(trainer, "model", None)
    arrays = [trainer.state, *(trainer.params if model is None else [model.params, *model.statistics().values()])]
    generators = [] if model is None else [g.bit_generator.state for g in model._generators()]
    whole = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays) + repr(generators).encode()
    return hashlib.sha256(whole).digest()


WAYS = {
    "chain_step": (chain, step),
    "chain_fit": (chain, fit),
    "layers_step": (layers, step),
    "layers_fit": (layers, fit),
    "chain_batches": (chain, fit_batches),
    "layers_batches": (layers, fit_batches),
    "pruned_fit": (pruned, fit),
    "updater": (updater, update),
}


def wrong_of(make, train):
    """How often of so many times a trainer was not as after the updates that it had counted."""
    once = step if train in (fit, fit_batches) else train
    trainer = make()
    after = [digest(trainer)]
    for _ in range(UPDATES):
        once(trainer)
        after.append(digest(trainer))
    # once to have compiled what it takes
    train(make())
    trainer, wrong = make(), 0
    for _ in range(TIMES):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
            while trainer.step_count < UPDATES - 30:
                train(trainer)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (KeyboardInterrupt, UserWarning):
            pass
        wrong += digest(trainer) != after[trainer.step_count]
        if trainer.step_count > UPDATES - 200:
            trainer = make()
    if hasattr(trainer, "lock"):
        got = []
        thread = threading.Thread(target=lambda: got.append(trainer.lock.acquire(timeout=5)))
        thread.start()
        thread.join()
        assert got == [True], "the lock is free"
    return wrong


install_interrupt_handler()
random.seed(1)
for name, way in WAYS.items():
    assert wrong_of(*way) == 0, name
print("whole")
