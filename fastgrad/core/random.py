"""Random generators, and keys for the random numbers of kernels."""

import numpy as np


def generator(seed: int | None, op: str = "") -> np.random.Generator:
    """The generator of this seed; 0 for None. op: the caller, for errors."""
    try:
        return np.random.Generator(np.random.PCG64(0 if seed is None else seed))
    except (ValueError, TypeError) as error:
        raise type(error)(f"{op}: seed must be an integer of at least 0, got {seed!r}") from None


def draw_key(rng: np.random.Generator) -> int:
    """A key for the kernels' random numbers."""
    return int(rng.integers(2**64, dtype=np.uint64))
