"""The checkpoint that Trainer.fit writes and resumes from: a trainer's file, with the history and the best weights so far."""

import json
import math
from typing import Any

from fastgrad.core import device
from fastgrad.kernels.types import Loss
from fastgrad.training.checkpoint import BEST, load, write
from fastgrad.training.early_stopping import EarlyStopping
from fastgrad.training.history import History, accuracy_of
from fastgrad.training.settings import kernel_loss

HISTORY = "fit.history"


def write_checkpoint(op: str, path: Any, trainer: Any, history: History, stopping: EarlyStopping | None) -> None:
    """Write the state of a fit between two epochs."""
    best = {} if stopping is None else {BEST + name: a for name, a in stopping.best.items()}
    write(f"{op}: checkpoint", path, trainer, best, {HISTORY: json.dumps(vars(history))})


def read_checkpoint(op: str, path: Any, trainer: Any, stopping: EarlyStopping | None) -> History:
    """Read it into a trainer and its EarlyStopping; returns the history. After an error all is as before."""
    from safetensors import SafetensorError, safe_open

    op = f"{op}: {path}"
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(HISTORY)
            best = {name.removeprefix(BEST): file.get_tensor(name) for name in file.keys() if name.startswith(BEST)}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{op}: not a whole safetensors file: {error}") from error
    history = _history(op, text, kernel_loss(trainer.loss, trainer.model))
    if stopping is not None:
        if len(history.val_loss) != len(history.seconds) or (history.best_epoch and not best):
            raise ValueError(f"{op}: the file has no best weights, since that fit had no patience")
        expected = stopping.arrays()
        for name, a in best.items():
            if a.shape != getattr(expected.get(name, expected["params"]), "shape", None):
                raise ValueError(f"{op}: {BEST}{name} is not of this model, got {a.shape}")
    load(path, trainer)
    if stopping is not None:
        stopping.best = {name: device.to_gpu(a) if trainer.model.on_gpu else a for name, a in best.items()}
        for loss in history.val_loss:
            stopping.is_new_best(loss)
    return history


def _history(op: str, text: str | None, loss: Loss) -> History:
    if text is None:
        raise ValueError(f"{op}: the file was not written by fit, but by fg.save; load it with fg.load")
    try:
        lists = json.loads(text)
        names, epochs = vars(History()), len(lists["seconds"])
        if "accuracy" not in lists:
            # of an older version, which did not measure it
            lists["accuracy"] = [] if accuracy_of(loss, 0.0, 0.0) is None else [math.nan] * epochs
        if lists.keys() == names.keys() and all(
            len(values) in (0, epochs) and all(type(value) in (int, float) for value in values)
            for values in lists.values()
        ):
            return History(**{name: [float(value) for value in values] for name, values in lists.items()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        pass
    raise ValueError(f"{op}: metadata {HISTORY} must be a dictionary of lists of floats")
