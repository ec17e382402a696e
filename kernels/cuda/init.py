"""Initial weights: uniform, normal and orthogonal; formulas: kernels/reference/init.py, with the same bits.

The operations and their order are the reference's. A GPU compiler fuses a product with the sum that it is a term of, and then rounds once
in place of twice. It does not fuse an instruction that names its rounding, so every product is one of libdevice's such functions (fmul_rn,
dmul_rn). Division and square root need no such care.

Kernels are wide: values are computed in float64 and rounded; the normal number itself is float32. Orthogonal matrices come from LAPACK on
the host, as in every backend, and are copied to the device.
"""

import math
import operator

import numpy as np
from numba import cuda

from .. import reference
from ..reference.init import MANTISSA, ONE, ROOT_HALF, STEP, TWO_LN2, WIDE_ONE, C, L, S
from .engine import device
from .engine.device import (
    Bits,
    Integer,
    Real,
    Values,
    WideNumber,
    blocks,
    device_function,
    grid_start,
    grid_stride,
    launch,
    wide_kernel,
)
from .engine.random import random

try:
    single, double = cuda.libdevice.fmul_rn, cuda.libdevice.dmul_rn
except AttributeError:
    # the simulator has no libdevice, and fuses nothing
    single = double = operator.mul

SHIFT, HIGH, LOW = np.uint64(12), np.uint64(33), np.uint64(0xFFFFFFFF)
TO_ROOT, EXPONENTS = np.int32(ONE - ROOT_HALF), np.int32(127 + 31)
# bits of the angle: whether sine and cosine change places, and the sign of both
SWAP, SIGN = np.int32(1), np.int32(2)
UNIT, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)


@device_function
def cubic(x, a, b, c, d):
    """a + b x + c x^2 + d x^3"""
    return quadratic(x, a, b, single(d, x) + c)


@device_function
def quadratic(x, a, b, c):
    """a + b x + c x^2"""
    return single(single(c, x) + b, x) + a


@device_function
def radius(high):
    shifted = np.int32(np.float32(np.float32(high) + UNIT).view(np.int32) + TO_ROOT)
    k = np.float32(np.int32(np.int32(shifted >> 23) - EXPONENTS))
    f = np.int32(np.int32(shifted & MANTISSA) + ROOT_HALF).view(np.float32) - UNIT
    s = f / (TWO + f)
    x = single(s, s)
    square = single(-TWO_LN2, k) - single(single(TWO, s), TWO + single(x, cubic(x, L[0], L[1], L[2], L[3])))
    return np.float32(math.sqrt(square))


@device_function
def normals(number):
    """Two normal values of a number."""
    low = np.uint32(number & LOW).view(np.int32)
    r = radius(np.int32(number >> HIGH))
    r = -r if low & SIGN else r
    a = single(STEP, np.float32(low))
    x = single(a, a)
    sine = a + single(single(a, x), quadratic(x, S[0], S[1], S[2]))
    cosine = UNIT - single(HALF, x) + single(single(x, x), quadratic(x, C[0], C[1], C[2]))
    swapped = low & SWAP
    return single(r, sine if swapped else cosine), single(r, cosine if swapped else sine)


@wide_kernel
def uniform_values(dtype: Real, n: Integer, key: Bits, low: WideNumber, scale: WideNumber, out: Values):
    for i in range(grid_start(), n, grid_stride()):
        from_one = np.uint64(random(key, i) >> SHIFT | WIDE_ONE).view(np.float64)
        out[i] = dtype(low + double(scale, from_one - 1.0))


@wide_kernel
def normal_values(dtype: Real, n: Integer, key: Bits, mean: WideNumber, std: WideNumber, out: Values):
    """A thread computes the two values of a number."""
    for j in range(grid_start(), (n + 1) // 2, grid_stride()):
        even, odd = normals(random(key, j))
        out[2 * j] = dtype(mean + double(std, np.float64(even)))
        if 2 * j + 1 < n:
            out[2 * j + 1] = dtype(mean + double(std, np.float64(odd)))


def uniform(out, key, low, high):
    """out (size,)."""
    launch(uniform_values, out.dtype, blocks(out.size), out.size, key, low, high - low, out)


def normal(out, key, mean, std):
    """out (size,)."""
    launch(normal_values, out.dtype, blocks((out.size + 1) // 2), out.size, key, mean, std, out)


def orthogonal(out, key, gain):
    """out (rows, columns): gain times orthonormal rows or columns, the shorter."""
    host = np.empty(out.shape)
    reference.orthogonal(host, key, gain)
    out[...] = device.xp.asarray(host, out.dtype)
