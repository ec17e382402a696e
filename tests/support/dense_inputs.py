"""Random arrays for fg.dense, by the names of its arguments."""

import numpy as np

# every array argument of every op, by name
DENSE = {"x": (5, 4), "w": (4, 3), "b": (3,), "residual": (5, 3)}


def arrays(dtype, **shapes):
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
