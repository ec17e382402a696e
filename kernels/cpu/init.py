"""Initial weights: uniform, normal and orthogonal; formulas: kernels/reference/init.py, with the same bits.

The operations and their order are the reference's. Loops have no branches, and keep 32-bit and 64-bit work apart as far as they can, so
that vectors are full. Normal values take three loops over blocks that stay in cache: the 64-bit random numbers, the normal numbers in
float32, the values in the dtype of the output. `orthogonal` is the reference's function, LAPACK's QR decomposition.
"""

import numpy as np

from ..reference import orthogonal
from ..reference.init import MANTISSA, ONE, ROOT_HALF, STEP, TWO_LN2, WIDE_ONE, C, L, S
from .engine.compile import inline_function, kernel
from .engine.intrinsics import advance, carray, local, pointer, real
from .engine.object_memory import address_of
from .engine.random import GAMMA, mixed
from .engine.thread_pool import launch, thread_range

__all__ = ["normal", "orthogonal", "uniform"]

# out (size,) from key: start + scale u, or mean start and standard deviation scale
DRAW = np.dtype([("size", "i8"), ("out", "i8"), ("key", "u8"), ("start", "f8"), ("scale", "f8")])
SHIFT, HIGH = np.uint64(12), np.uint64(33)
TO_ROOT, EXPONENTS = np.int32(ONE - ROOT_HALF), np.int32(127 + 31)
# bits of the angle: whether sine and cosine change places, and the sign of both
SWAP, SIGN = np.int32(1), np.int32(2)
UNIT, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)
# pairs of values whose numbers are made at once
BLOCK = 512
NORMALS = 2 * BLOCK
# a value costs about as much as this many multiplications and additions
UNIFORM_COST, NORMAL_COST = 16, 24


@inline_function
def radius(high):
    shifted = np.int32(np.float32(np.float32(high) + UNIT).view(np.int32) + TO_ROOT)
    k = np.float32(np.int32(np.int32(shifted >> 23) - EXPONENTS))
    f = np.int32(np.int32(shifted & MANTISSA) + ROOT_HALF).view(np.float32) - UNIT
    s = f / (TWO + f)
    x = s * s
    return np.sqrt(-TWO_LN2 * k - TWO * s * (TWO + x * (((L[3] * x + L[2]) * x + L[1]) * x + L[0])))


@inline_function
def normals(high, low):
    r = radius(high)
    r = -r if np.int32(low & SIGN) else r
    a = STEP * np.float32(low)
    x = a * a
    sine = a + a * x * ((S[2] * x + S[1]) * x + S[0])
    cosine = UNIT - HALF * x + x * x * ((C[2] * x + C[1]) * x + C[0])
    swapped = np.int32(low & SWAP)
    return r * (sine if swapped else cosine), r * (cosine if swapped else sine)


@kernel(DRAW)
def uniform_part(thread_index, thread_count, record, like):
    """The thread's uniform values."""
    draw = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, draw.size, 64)
    out = carray(advance(pointer(draw.out, like), lo), hi - lo)  # (hi - lo,)
    state, start, scale = draw.key + np.uint64(lo) * GAMMA, draw.start, draw.scale
    for i in range(hi - lo):
        state += GAMMA
        from_one = np.uint64(mixed(state) >> SHIFT | WIDE_ONE).view(np.float64)
        out[i] = real(start + scale * (from_one - 1), out[i])


@kernel(DRAW)
def normal_part(thread_index, thread_count, record, like):
    """The thread's pairs of values, a block at a time: numbers, normal numbers in float32, and values."""
    draw = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, (draw.size + 1) // 2, BLOCK)
    high, low, z = local(BLOCK, np.int32), local(BLOCK, np.int32), local(NORMALS, np.float32)
    mean, std = draw.start, draw.scale
    for first in range(lo, hi, BLOCK):
        n, size = min(BLOCK, hi - first), min(2 * BLOCK, draw.size - 2 * first)
        state = draw.key + np.uint64(first) * GAMMA
        for j in range(n):
            state += GAMMA
            number = mixed(state)
            high[j], low[j] = np.int32(number >> HIGH), np.int32(number)
        for j in range(n):
            z[2 * j], z[2 * j + 1] = normals(high[j], low[j])
        out = carray(advance(pointer(draw.out, like), 2 * first), size)  # (size,)
        for i in range(size):
            out[i] = real(mean + std * z[i], out[0])


def uniform(out, key, low, high):
    """out (size,)."""
    record = np.array([(out.size, address_of(out), key, low, high - low)], DRAW)
    launch(uniform_part, out.dtype, record, UNIFORM_COST * out.size)


def normal(out, key, mean, std):
    """out (size,)."""
    record = np.array([(out.size, address_of(out), key, mean, std)], DRAW)
    launch(normal_part, out.dtype, record, NORMAL_COST * out.size)
