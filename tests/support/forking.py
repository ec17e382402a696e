"""A child that is forked while another thread trains has locks of its own: it trains, saves and predicts."""

import os
import signal
import tempfile
import threading
import warnings

import numpy as np

import fastgrad as fg

warnings.simplefilter("ignore")
nn, rng = fg.nn, np.random.default_rng(0)
x, y = rng.standard_normal((512, 64)).astype(np.float32), rng.integers(0, 3, 512)
trainer = fg.Trainer(nn.Sequential(nn.Dense(64, 256), nn.BatchNorm(256, "relu"), nn.Dense(256, 3), seed=0))
# all is compiled before: a child's alarm does not wait for that
trainer.step(x, y)
trainer.fit(x, y, batch_size=64, progress=False)
trainer.predict(x)
over = threading.Event()


def train():
    while not over.is_set():
        trainer.fit(x, y, batch_size=64, epochs=2, progress=False)


thread = threading.Thread(target=train, daemon=True)
thread.start()
path = os.path.join(tempfile.mkdtemp(), "trainer.safetensors")
for _ in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        trainer.step(x, y)
        fg.save(path, trainer)
        trainer.predict(x)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
over.set()
thread.join()
print("forked")
