"""Work on a GPU: whether there is one, and calls recorded as a CUDA graph."""

import importlib
from typing import Any

from fastgrad.core.device import cuda_device, missing

__all__ = [
    "capture",
    "is_available",
]


def is_available() -> bool:
    """Whether the backend "cuda" can run here; `python -m fastgrad info` says what is missing."""
    return not missing()


def capture(function: Any) -> Any:
    """function() over arrays on the GPU as a CUDA graph: a callable that runs it again, with no more than one launch from the host.

    It is called twice for that, and runs once. Arrays are where they were, so new values are written into them; numbers, as an update's
    rate, are as they were, but updates are counted. The callable returns what function() did, whose arrays are written anew. function
    may not wait for values: losses and norms are read outside.
    """
    cuda_device()
    return importlib.import_module("fastgrad.kernels.cuda.engine.graph").Captured(function)
