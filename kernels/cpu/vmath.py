"""exp, expm1, tanh, sigmoid, log, log1p, softplus, erf and the normal distribution, for float32 and float64, in plain arithmetic.

Written on one value, for loops that LLVM vectorises: no branches, no calls, no fastmath. Every step is one operation or a fused
multiply-add that is asked for, so a loop's vector body and its scalar tail give the same bits. NaN gives NaN: the clamps are of
the form `hi if x > hi else x`, which keeps it. Errors, in units in the last place, over the whole range (see tests/test_vmath.py):

               exp   expm1  tanh  sigmoid  log1p  softplus  erf   log   normal_cdf
    float32    0.9   1.5    1.7   1.4      1.4    1.6       1.3   0.9   5
    float64    0.8   1.1    1.5   1.5      1.2    1.5       1.1   1.2   20

exp(x) = 2^n e^r with r = x - n ln 2, |r| <= ln 2 / 2, and e^r - 1 = r + r^2 P(r) (Cody & Waite's reduction). Adding 1.5 2^mantissa rounds
x / ln 2 to n and leaves n in the low bits, so that one shift makes 2^n; a factor of 2^-64 (2^-512) apart reaches the denormals.
log(x) = k ln 2 + log(1 + f), and log(1 + f) = f - s (f - s^2 L(s^2)) with s = f / (2 + f) (the series of atanh).
The upper tail of the normal law is e^(-a^2 / 2) t T(1 - 2 k t) with t = 1 / (a + k), near 0 erf is x + x E(x^2).
P, L, T and E are minimax fits of our own (Remez in 50 digits, weighted by the relative error of the result), rounded to the dtype.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .jit import inlined

_MANTISSA = {32: 23, 64: 52}


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding."""

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return a(a, b, c), codegen


@intrinsic
def polynomial(typingctx, x, coefficients):
    """coefficients[0] + coefficients[1] x + ..., by Horner's rule."""

    def codegen(context, builder, signature, args):
        x, coefficients = args
        *rest, y = (builder.extract_value(coefficients, i) for i in range(len(signature.args[1])))
        for c in reversed(rest):
            y = builder.fma(y, x, c)
        return y

    return x(x, coefficients), codegen


@intrinsic
def power(typingctx, t):
    """2^n, for a t with n + bias in its low bits."""

    def codegen(context, builder, signature, args):
        integer = ir.IntType(t.bitwidth)
        bits = builder.bitcast(args[0], integer)
        return builder.bitcast(builder.shl(bits, integer(_MANTISSA[t.bitwidth])), args[0].type)

    return t(t), codegen


@intrinsic
def exponent(typingctx, y):
    """2^mantissa + bias + the exponent of a positive y."""

    def codegen(context, builder, signature, args):
        integer = ir.IntType(y.bitwidth)
        mantissa = _MANTISSA[y.bitwidth]
        low = builder.lshr(builder.bitcast(args[0], integer), integer(mantissa))
        one = builder.bitcast(args[0].type(2.0**mantissa), integer)
        return builder.bitcast(builder.or_(low, one), args[0].type)

    return y(y), codegen


class _Constants(NamedTuple):
    """Numbers and coefficients in one dtype."""

    zero: Any
    half: Any
    one: Any
    two: Any
    quarter: Any
    inf: Any
    sqrt_half: Any
    sqrt_two: Any
    ln2: Any
    log2_e: Any
    # ln 2 in two parts
    ln2_high: Any
    ln2_low: Any
    # added to x / ln 2, they round it and hold n + bias, n + bias - 1, and n + bias shifted up or down
    round: Any
    round_half: Any
    round_low: Any
    round_high: Any
    scale_low: Any
    scale_high: Any
    exponent_zero: Any
    log_scale: Any
    log_unscale: Any
    log_shift: Any
    # below, expm1(x) is x
    tiny: Any
    # beyond these exp is 0 or inf, tanh 1, expm1 -1, the tail 0
    smallest: Any
    largest: Any
    tanh_one: Any
    expm1_low: Any
    tail_zero: Any
    # up to here the normal law is taken from erf near 0, where the tail was not fitted
    cdf_near: Any
    tail_k: Any
    tail_2k: Any
    tail_slope: Any
    # P, L, T and E
    exp: Any
    log: Any
    tail: Any
    erf: Any


def _constants_of(real, ln2_low, shift, **given):
    mantissa, bias = (23, 127) if real is np.float32 else (52, 1023)
    magic = 1.5 * 2.0**mantissa + bias
    values = dict(
        zero=0, half=0.5, one=1, two=2, quarter=0.25, inf=np.inf, sqrt_half=0.5**0.5, sqrt_two=2**0.5,
        ln2=np.log(2), log2_e=1 / np.log(2), ln2_high=np.log(2), ln2_low=ln2_low,
        round=magic, round_half=magic - 1, round_low=magic + shift, round_high=magic - shift,
        scale_low=2.0**-shift, scale_high=2.0**shift, exponent_zero=2.0**mantissa + bias,
        log_scale=2.0 ** (shift // 2), log_unscale=2.0 ** -(shift // 2), log_shift=shift // 2,
        tiny=2.0 ** -(mantissa + 2), cdf_near=1.2, **given,
    )  # fmt: skip
    return _Constants(**{k: tuple(map(real, v)) if isinstance(v, list) else real(v) for k, v in values.items()})


_F32 = _constants_of(
    np.float32, -1.904654323148236e-09, 64,
    smallest=-104, largest=89, tanh_one=19, expm1_low=-18, tail_zero=14.5, tail_k=4, tail_2k=8, tail_slope=6.3,
    exp=[
        0.4999999701976776, 0.1666654348373413, 0.04166731238365173, 0.008366514928638935, 0.0013882528292015195,
    ],
    log=[
        0.6666667461395264, 0.3999894857406616, 0.286152184009552, 0.21443718671798706, 0.24246343970298767,
    ],
    tail=[
        0.7552851438522339, -0.6078965663909912, 0.387136846780777, -0.18652351200580597, 0.06040383130311966,
        -0.007525272201746702, -0.0035125575959682465, 0.001569923129864037, 0.0001793593546608463,
        -0.00013196869986131787,
    ],
    erf=[
        0.12837916612625122, -0.3761262595653534, 0.1128358542919159, -0.026853814721107483, 0.005188328679651022,
        -0.0008010199526324868, 7.85387892392464e-05,
    ],
)  # fmt: skip
_F64 = _constants_of(
    np.float64, 2.3190468138462996e-17, 512,
    smallest=-746, largest=710, tanh_one=39, expm1_low=-38, tail_zero=39, tail_k=5, tail_2k=10, tail_slope=6.3,
    exp=[
        0.5, 0.16666666666666677, 0.04166666666666669, 0.008333333333321747, 0.0013888888888884093,
        0.00019841269885232372, 2.480158728963825e-05, 2.755724554550043e-06, 2.7557338031461313e-07,
        2.5108469402185854e-08, 2.088443531061724e-09,
    ],
    log=[
        0.6666666666666667, 0.39999999999995384, 0.2857142857233358, 0.22222222137008618, 0.18181822755371135,
        0.15384462901796167, 0.1333663131944399, 0.11717748598201841, 0.1096098866776876, 0.07036603833836852,
        0.16400433398706082,
    ],
    tail=[
        0.769193049750063, -0.6653825028900557, 0.49530561596997064, -0.313533156671404, 0.1650203661707174,
        -0.06911863870325259, 0.020795066792867696, -0.002993376814278998, -0.0007978693267586675,
        0.000544899415919102, -5.9376129009472005e-05, -4.9764543102173605e-05, 1.6682486698050884e-05,
        3.986345883560154e-06, -2.7714275146051164e-06, -3.4763809971670946e-07, 4.343878375581989e-07,
        5.617385444579081e-08, -6.424986451211978e-08, -1.924781255771087e-08, 4.552043757198031e-09,
        4.824432817675346e-09, 1.2747254605382167e-09,
    ],
    erf=[
        0.12837916709551256, -0.37612638903183343, 0.11283791670936953, -0.026866170641960254, 0.005223977596751313,
        -0.00085483254860574, 0.00012055280537991301, -1.492446662326399e-05, 1.644416499283051e-06,
        -1.6184118689656806e-07, 1.361732202380414e-08, -7.609101802760654e-10,
    ],
)  # fmt: skip


def constants(x):
    """The constants of x's dtype."""


@overload(constants, jit_options={"forceinline": True}, strict=False)
def _constants(x):
    table = {types.float32: _F32, types.float64: _F64}.get(x)
    return table and (lambda x: table)


@inlined
def reduced(x, low, magic):
    """s = 2^n and q = e^r - 1 of x + low; magic says by how much n is shifted.

    What r loses in rounding is added to its square's term.
    """
    c = constants(x)
    t = fma(x, c.log2_e, magic)
    n = t - magic
    near = fma(n, -c.ln2_high, x)
    r = fma(n, -c.ln2_low, near) + low
    rest = fma(n, -c.ln2_low, near - r) + low
    return power(t), r + fma(r * r, polynomial(r, c.exp), rest)


@inlined
def exp_negative(x):
    """e^x for x <= 0."""
    c = constants(x)
    x = c.smallest if x < c.smallest else x
    s, q = reduced(x, c.zero, c.round_low)
    return fma(s, q, s) * c.scale_low


@inlined
def exp(x):
    c = constants(x)
    x = c.smallest if x < c.smallest else x
    x = c.largest if x > c.largest else x
    negative = x < c.zero
    s, q = reduced(x, c.zero, c.round_low if negative else c.round_high)
    return fma(s, q, s) * (c.scale_low if negative else c.scale_high)


@inlined
def half_expm1(x):
    """(e^x - 1) / 2: half, so that s stays finite as long as the result."""
    c = constants(x)
    s, q = reduced(x, c.zero, c.round_half)
    return fma(s, q, s - c.half)


@inlined
def expm1(x):
    c = constants(x)
    y = c.expm1_low if x < c.expm1_low else x
    y = c.largest if y > c.largest else y
    y = c.two * half_expm1(y)
    return x if abs(x) < c.tiny else y


@inlined
def over_one_more(a, b):
    """a / (1 + b) for b >= 0, with hardly more than one rounding: the remainder knows what 1 + b lost."""
    c = constants(a)
    d = c.one + b
    lost = b - (d - c.one)
    r = c.one / d
    y = a * r
    return fma(fma(-y, lost, fma(-y, d, a)), r, y)


@inlined
def tanh(x):
    c = constants(x)
    y = c.two * abs(x)
    y = c.tanh_one if y > c.tanh_one else y
    h = half_expm1(y)
    return np.copysign(over_one_more(h, h), x)


@inlined
def sigmoid(x):
    c = constants(x)
    e = exp_negative(-abs(x))
    return over_one_more(e if x < c.zero else c.one, e)


@inlined
def log1p_series(f):
    """log(1 + f) for f around 0, exact for denormals."""
    c = constants(f)
    s = f / (c.two + f)
    w = s * s
    return fma(-s, fma(-w, polynomial(w, c.log), f), f)


@inlined
def softplus(x):
    c = constants(x)
    return (c.zero if x < c.zero else x) + log1p_series(exp_negative(-abs(x)))


@inlined
def log(x):
    c = constants(x)
    small = x < c.one
    y = x * (c.log_scale if small else c.log_unscale)
    k = exponent(y * c.sqrt_two) - c.exponent_zero
    f = fma(y, power(c.round - k), -c.one)
    y = fma(k + (-c.log_shift if small else c.log_shift), c.ln2, log1p_series(f))
    y = y if x > c.zero else (-c.inf if x == c.zero else c.zero / c.zero)
    return x if x == c.inf else y


@inlined
def log1p(x):
    c = constants(x)
    k = exponent(fma(x, c.quarter, c.quarter) * c.sqrt_two) - c.exponent_zero
    s = power(c.round - k) * c.quarter
    y = fma(k + c.two, c.ln2, log1p_series(fma(x, s, s - c.one)))
    y = y if x > -c.one else (-c.inf if x == -c.one else c.zero / c.zero)
    return x if (x == c.inf or x == c.zero) else y


@inlined
def upper_tail(a):
    """1 - normal_cdf(a) for a >= 0; the square's low half goes into the reduction, the reciprocal's error into the product."""
    c = constants(a)
    a = c.tail_zero if a > c.tail_zero else a
    b = c.half * a
    h = b * a
    s, q = reduced(-h, -fma(b, a, -h), c.round_low)
    t = c.one / (a + c.tail_k)
    e = fma(-a, t, fma(-c.tail_k, t, c.one))
    p = polynomial(fma(-c.tail_2k, t, c.one), c.tail)
    q = fma(e, fma(c.tail_slope, t, c.one), q)
    Q = t * p
    return (s * (Q + fma(Q, q, fma(t, p, -Q)))) * c.scale_low


@inlined
def normal_cdf(x):
    """The standard normal distribution function, small in the left tail to the relative accuracy of its exponential."""
    c = constants(x)
    v = upper_tail(abs(x))
    u = x * c.sqrt_half
    near = fma(c.half, fma(u, polynomial(u * u, c.erf), u), c.half)
    return near if abs(x) < c.cdf_near else v if x < c.zero else c.one - v


@inlined
def erf(x):
    c = constants(x)
    y = np.copysign(c.one - c.two * upper_tail(abs(x) * c.sqrt_two), x)
    return fma(x, polynomial(x * x, c.erf), x) if abs(x) < c.one else y
