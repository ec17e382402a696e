"""Dropout; formula and random numbers: kernels/reference/dropout.py.

No mask is stored: the loop computes the random number of value i from the key and i, in backward again. A thread has a range of values.
"""

import numpy as np

from .engine.compile import kernel
from .engine.intrinsics import advance, carray, pointer, real
from .engine.object_memory import address_of
from .engine.random import random
from .engine.thread_pool import launch, thread_range

# y (size,) = x factor where the number from key is at least limit, else x 0
DROPOUT = np.dtype([("size", "i8"), ("x", "i8"), ("y", "i8"), ("key", "u8"), ("limit", "u8"), ("factor", "f8")])
# a value costs about as much as this many multiplications and additions
COST = 16


@kernel(DROPOUT)
def dropout_part(thread_index, thread_count, record, like):
    """Drop the thread's values, of x forward and of dy backward."""
    dropout = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, dropout.size, 64)
    x = carray(advance(pointer(dropout.x, like), lo), hi - lo)  # (hi - lo,)
    y = carray(advance(pointer(dropout.y, like), lo), hi - lo)  # (hi - lo,)
    key, limit = dropout.key, dropout.limit
    for i in range(hi - lo):
        y[i] = x[i] * (real(dropout.factor, x[i]) if random(key, lo + i) >= limit else real(0, x[i]))


def dropout_forward(x, rate, key, y):
    """y like x, and maybe x; 0 <= rate < 1. Backward is dropout_forward(dy, rate, key, dx)."""
    record = np.array([(x.size, address_of(x), address_of(y), key, int(rate * 2**64), 1 / (1 - rate))], DROPOUT)
    launch(dropout_part, x.dtype, record, COST * x.size)
