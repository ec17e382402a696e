"""fg.optim, the optimisers SGD, Adam, AdamW, Adagrad and RMSprop, as PyTorch defines them, and constraints: settings alone.

The kernels' `update_arrays` computes the updates.
"""

from typing import TYPE_CHECKING, Any

from fastgrad.core.foreign_names import unknown_name
from fastgrad.optim.adagrad import Adagrad
from fastgrad.optim.adam import Adam, AdamW
from fastgrad.optim.constraint import MaxNorm, MaxValue
from fastgrad.optim.optimizer import Optimizer
from fastgrad.optim.rmsprop import RMSprop
from fastgrad.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "MaxNorm",
    "MaxValue",
    "Optimizer",
    "RMSprop",
]

for _optimizer in Optimizer, SGD, Adam, AdamW, Adagrad, RMSprop:
    # by this name a pickle finds a class, whichever file it lies in
    _optimizer.__module__ = __name__

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise unknown_name(__name__, name)
