"""TrainerInterface: the attributes of a Trainer that checkpoint.py saves and loads. It cannot import Trainer, which imports it."""

import threading
from typing import Protocol, runtime_checkable

import numpy as np

from fastgrad.nn.model import Model
from fastgrad.optim import Optimizer
from fastgrad.training.step import TrainStep


@runtime_checkable
class TrainerInterface(Protocol):
    """The parts of a Trainer that belong to its state."""

    lock: threading.RLock
    rng: np.random.Generator
    val_losses: list[float]
    step_count: int
    optimizer: Optimizer
    _steps: TrainStep

    @property
    def model(self) -> Model: ...

    @property
    def state(self) -> np.ndarray: ...

    def _refuse_nested(self, op: str) -> None: ...
