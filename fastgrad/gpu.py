"""fg.gpu: whether the "cuda" backend can run (is_available), and calls recorded as a CUDA graph (capture)."""

import importlib
from typing import Any

from fastgrad.core.device import cuda_device, missing

__all__ = [
    "capture",
    "is_available",
]


def is_available() -> bool:
    """Whether the backend "cuda" can run here; `python -m fastgrad info` says what is missing.

    Returns:
        True or False.

    Example:
        >>> backend = "cuda" if fg.gpu.is_available() else "cpu"
    """
    return not missing()


def capture(function: Any) -> Any:
    """Record the calls of function(), over arrays on the GPU, as a CUDA graph, which runs them again in one launch.

    function is called twice for that, and its work is done once. Arrays are where they were, so new values are written
    into them. Numbers, as an update's rate, are as they were; but updates are counted. A Trainer's step_count knows
    nothing of these runs, and a step with health cannot be captured.

    Args:
        function: A function without arguments. It may not wait for values: losses and norms are read outside.

    Returns:
        A callable without arguments that runs the work again. It returns what function() did, whose arrays are written
        anew.

    Raises:
        BackendError: The backend "cuda" cannot run here.
        RuntimeError: A step in function is one with health.

    Example:
        >>> replay = fg.gpu.capture(lambda: trainer.step(x, y))  # doctest: +SKIP
        >>> x[...] = next_x  # doctest: +SKIP
        >>> loss = float(replay())  # doctest: +SKIP
    """
    cuda_device()
    return importlib.import_module("fastgrad.kernels.cuda.engine.graph").Captured(function)
