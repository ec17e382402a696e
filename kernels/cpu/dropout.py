"""Dropout, as in kernels/reference/dropout.py: a value's number is made where it is used."""

import numpy as np
from numba import carray

from .jit import inlined, kernel
from .parallel import address_of, launch, share
from .simd import advance, pointer, real

DROPOUT = np.dtype([("size", "i8"), ("x", "i8"), ("y", "i8"), ("key", "u8"), ("limit", "u8"), ("factor", "f8")])
GAMMA, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
# a value costs about as much as this many multiplications and additions
COST = 16


@inlined
def random(key, i):
    return mixed(np.uint64(i + 1) * GAMMA + key)


@inlined
def mixed(bits):
    bits = (bits ^ bits >> SHIFTS[0]) * FIRST
    bits = (bits ^ bits >> SHIFTS[1]) * SECOND
    return bits ^ bits >> SHIFTS[2]


@kernel(DROPOUT)
def dropout_part(part, parts, job, like):
    g = carray(job, 1)[0]
    lo, hi = share(part, parts, g.size, 64)
    x, y = carray(advance(pointer(g.x, like), lo), hi - lo), carray(advance(pointer(g.y, like), lo), hi - lo)
    key, limit = g.key, g.limit
    for i in range(hi - lo):
        y[i] = x[i] * (real(g.factor, x[i]) if random(key, lo + i) >= limit else real(0, x[i]))


def dropout(x, rate, key, y):
    """y like x, and maybe x; 0 <= rate < 1. Backward is dropout(dy, rate, key, dx)."""
    job = np.array([(x.size, address_of(x), address_of(y), key, int(rate * 2**64), 1 / (1 - rate))], DROPOUT)
    launch(dropout_part, x.dtype, job, COST * x.size)
