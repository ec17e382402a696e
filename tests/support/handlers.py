"""What a signal's handler may do while its thread is in a step or a fit: save, predict and ops work, and a step raises; none hangs."""

import os
import signal
import tempfile

import numpy as np

import fastgrad as fg
from fastgrad.core import allocator

fg.set_num_threads(1)
nn, rng = fg.nn, np.random.default_rng(0)
x, y = rng.standard_normal((64, 6)).astype(np.float32), rng.integers(0, 3, 64)
nets = {
    "chain": lambda: nn.DenseChain([6, 8, 3], seed=0),
    "layers": lambda: nn.Sequential(nn.Dense(6, 8), nn.BatchNorm(8, "relu"), nn.Dropout(0.2), nn.Dense(8, 3), seed=0),
}
path = os.path.join(tempfile.mkdtemp(), "trainer.safetensors")


def check(name, net):
    trainer, twin, counts, errors = fg.Trainer(net()), fg.Trainer(net()), [], []

    def handler(*_):
        fg.save(path, trainer)
        trainer.predict(x)
        trainer.evaluate(x, y)
        allocator.empty((1 << 14,), np.dtype("f4"))
        try:
            if len(errors) % 2:
                fg.load(path, trainer)
            trainer.step(x, y)
        except RuntimeError as error:
            errors.append(str(error))
        counts.append(trainer.step_count)
        # what was saved is what so many updates lead to
        saved = fg.Trainer(net())
        fg.load(path, saved)
        while twin.step_count < saved.step_count:
            twin.step(x, y)
        assert saved.model.params.tobytes() == twin.model.params.tobytes(), name
        assert saved.state.tobytes() == twin.state.tobytes(), name
        for a, b in zip(saved.model.statistics().values(), twin.model.statistics().values(), strict=True):
            assert a.tobytes() == b.tobytes(), name
        for a, b in zip(saved.model._generators(), twin.model._generators(), strict=True):
            assert a.bit_generator.state == b.bit_generator.state, name

    trainer.step(x, y)
    trainer.predict(x)
    signal.signal(signal.SIGALRM, handler)
    while len(errors) < 15:
        # before the timer, which may end at once
        seen = len(counts)
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0002, 0.002))
        while len(counts) == seen:
            trainer.step(x, y)
            while len(counts) == seen and trainer.step_count % 2:
                trainer.fit(x, y, batch_size=64, shuffle=False, progress=False)
    assert all("in the middle of a step or a fit in this thread" in error for error in errors)


for each in nets.items():
    check(*each)
print("ok")
