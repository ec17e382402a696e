"""Arrays for tests of batch norm and layer norm."""

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

FLOAT64 = np.dtype(np.float64)


@dataclass
class NormProblem:
    """The arrays that both norms take, and an upstream gradient."""

    x: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    residual: np.ndarray | None
    dy: np.ndarray

    def map(self, function):
        return replace(self, **{name: None if a is None else function(a) for name, a in vars(self).items()})

    def arrays(self):
        return [a for a in vars(self).values() if a is not None]


def norm_problem(rng, shape, dtype=FLOAT64, residual=True, mean=0.0):
    """Random everything: zeros and ones hide swaps."""

    def normal(*shape, scale=1.0, mean=0.0):
        return (scale * rng.standard_normal(shape) + mean).astype(dtype)

    return NormProblem(
        x=normal(*shape, scale=2.0, mean=mean),
        gamma=normal(shape[-1]),
        beta=normal(shape[-1], scale=0.5),
        residual=normal(*shape) if residual else None,
        dy=normal(*shape),
    )


def streamed_shape(columns, dtype):
    """Rows of so many columns, so many that outputs are written past the caches."""
    return (17 << 20) // dtype.itemsize // columns + 3, columns


@st.composite
def norm_problems(draw, problem, rows, columns):
    """Problems of up to so many rows and columns, made by `problem`."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(0, rows)), draw(st.integers(1, columns))
    # as many values as are far enough from each other for a variance that is none of rounding
    mean = draw(st.sampled_from([0.0, 1.0, -30.0]))
    return problem(rng, shape, np.dtype(draw(st.sampled_from(["f4", "f8"]))), draw(st.booleans()), mean)
