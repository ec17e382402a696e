"""Initial weights from a key: uniform on [low, high], normal, and matrices with orthonormal rows or columns.

Random numbers are those of dropout.py: value i is a function of the key and i alone, and has the same bits on every backend. So the
arithmetic uses only what IEEE 754 fixes to the last bit, + - * / and sqrt, and neither a library's log and sin nor fused multiply-adds.
Results are computed in float64; float32 gets them rounded.

uniform: low + (high - low) u, with u in [0, 1) from the upper 52 bits of number i.

normal: mean + std z (Box & Muller 1958). Number j gives two values, z_2j = R cos(a) and z_2j+1 = R sin(a) with R = sqrt(-2 log u). u, from
2^-31 to 1, comes from the upper 31 bits, so no z is beyond 6.6 (one of 10^10 should be). The lower 32 bits are an angle within pi / 4 of 0.
Its last two bits, too small to move it, swap sine and cosine and change both signs, which gives all angles. z is computed in float32, as
precise as other libraries draw weights, since a vector holds twice as many values. The series are those of FreeBSD's e_logf.c and of
Cephes' sinf.c.

orthogonal: gain times Q of LAPACK's QR decomposition of normal numbers. Its last bits may differ between machines.
"""

import numpy as np

from .dropout import random

# log(1 + f) = s (2 + s^2 L(s^2)) with s = f / (2 + f); sin(a) = a + a^3 S(a^2); cos(a) = 1 - a^2 / 2 + a^4 C(a^2)
L = tuple(map(np.float32, (0.66666662693, 0.40000972152, 0.28498786688, 0.24279078841)))
S = tuple(map(np.float32, (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)))
C = tuple(map(np.float32, (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)))
TWO_LN2, STEP = np.float32(1.3862943611198906), np.float32(0.7853981633974483 / 2**31)
# the bits of 1 and of sqrt(1/2), and those below the exponent
ONE, ROOT_HALF, MANTISSA = np.int32(0x3F800000), np.int32(0x3F3504F3), np.int32(0x007FFFFF)
WIDE_ONE = np.uint64(0x3FF0000000000000)


def uniform(out, key, low, high):
    """out (size,)."""
    from_one = (random(out.size, key) >> np.uint64(12) | WIDE_ONE).view(np.float64)
    out[...] = low + (high - low) * (from_one - 1)


def normal(out, key, mean, std):
    """out (size,)."""
    numbers = random((out.size + 1) // 2, key)
    pairs = np.stack(normals(numbers), axis=1).astype(np.float64)  # (size / 2, 2)
    out[...] = mean + std * pairs.reshape(-1)[: out.size]


def orthogonal(out, key, gain):
    """out (rows, columns): gain times the Q of normal numbers' QR, with a positive diagonal of R, so that all Q are equally likely.

    The shorter of rows and columns are orthonormal (Saxe, McClelland & Ganguli 2014). The QR decomposition is LAPACK's: a NumPy
    with another LAPACK, or on another processor, may round the last bits otherwise.
    """
    tall = np.empty((max(out.shape), min(out.shape)))
    normal(tall.reshape(-1), key, 0.0, 1.0)
    q, r = np.linalg.qr(tall)
    q *= np.where(np.diagonal(r) < 0, -gain, gain)
    out[...] = q if q.shape == out.shape else q.T


def normals(numbers):
    """Two normal numbers from each, float32."""
    low = numbers.astype(np.uint32).view(np.int32)
    r = radius((numbers >> np.uint64(33)).astype(np.int32))
    r = np.where(low & 2, -r, r)
    a = STEP * low.astype(np.float32)
    square = a * a
    sine = a + a * square * horner(square, S)
    cosine = 1 - np.float32(0.5) * square + square * square * horner(square, C)
    swapped = (low & 1) != 0
    return r * np.where(swapped, sine, cosine), r * np.where(swapped, cosine, sine)


def radius(high):
    """sqrt(-2 log u) for u = (high + 1) / 2^31 = 2^k (1 + f), with 1 + f from sqrt(1/2) to sqrt(2)."""
    shifted = (high.astype(np.float32) + np.float32(1)).view(np.int32) + (ONE - ROOT_HALF)
    k = (shifted >> 23) - (127 + 31)
    f = ((shifted & MANTISSA) + ROOT_HALF).view(np.float32) - np.float32(1)
    s = f / (2 + f)
    return np.sqrt(-TWO_LN2 * k.astype(np.float32) - 2 * s * (2 + s * s * horner(s * s, L)))


def horner(x, coefficients):
    """coefficients[0] + coefficients[1] x + ..."""
    y = coefficients[-1]
    for c in coefficients[-2::-1]:
        y = y * x + c
    return y
