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

    The graph reads and writes the same arrays at every run, so write new values into them. Numbers, such as a learning
    rate, stay those of the recording; the updates of an optimiser are counted on, but a Trainer's step_count does not
    count these runs. function itself is called twice by capture, which does its work once. A step with health cannot
    be captured.

    Args:
        function: A function without arguments. It may not wait for values: losses and norms are read outside.

    Returns:
        A callable without arguments that runs the work again. It returns what function() returned, with new values in
        the same arrays.

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
