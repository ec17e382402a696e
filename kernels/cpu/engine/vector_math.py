"""exp, expm1, tanh, sigmoid, log, log1p, softplus, erf and the normal distribution, for float32 and float64, in vectorisable arithmetic.

Each is an inline function of one value, for loops that LLVM vectorises: no branches, no calls, no fastmath. Every step is one operation or
an explicit fused multiply-add, so the vector body of a loop and its scalar tail give the same bits. NaN gives NaN: the clamps have the form
`hi if x > hi else x`, which keeps it. Largest errors, in units in the last place, over all float32 and 20,000 float64:

               exp   expm1  tanh  sigmoid  log   log1p  softplus  erf   normal_cdf
    float32    1.04  1.59   1.98  2.00     0.94  1.49   1.82      1.03  0.77
    float64    0.93  1.72   1.89  1.97     1.14  1.52   1.50      1.12  2.84

exp(x) = 2^n e^r with r = x - n ln 2, |r| <= ln 2 / 2, and e^r - 1 = r + r^2 P(r) (Cody and Waite's reduction). Adding
1.5 2^mantissa rounds x / ln 2 to n and leaves n in the low bits, so that one shift gives 2^n.
log(x) = k ln 2 + log(1 + f), and log(1 + f) = f - s (f - s^2 L(s^2)) with s = f / (2 + f) (the series of atanh).
The normal distribution's upper tail is e^(-a^2 / 2) t T(1 - 2 K t) with t = 1 / (a + K); near 0, erf is x + x E(x^2).

P, L, T and E are minimax polynomials, fitted for this file to the relative error of the function: Remez's exchange in 50 digits, then
rounded; for float32 the best of the neighbouring roundings. K is the value with the smallest error. In the tables of coefficients a
comment gives the error of each polynomial.
"""

from collections import namedtuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .compile import inline_function

_MANTISSA, _BIAS = {32: 23, 64: 52}, {32: 127, 64: 1023}


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding."""

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return a(a, b, c), codegen


@intrinsic
def polynomial(typingctx, x, coefficients):
    """coefficients[0] + coefficients[1] x + ..., by Horner's rule in x^2 over pairs, a chain half as long as in x."""

    def codegen(context, builder, signature, args):
        x, coefficients = args
        c = [builder.extract_value(coefficients, i) for i in range(len(signature.args[1]))]
        square = builder.fmul(x, x)
        pairs = [builder.fma(c[i + 1], x, c[i]) for i in range(0, len(c) - 1, 2)] + c[len(c) - len(c) % 2 :]
        y = pairs.pop()
        while pairs:
            y = builder.fma(y, square, pairs.pop())
        return y

    return x(x, coefficients), codegen


def _bits(builder, x):
    return builder.bitcast(x, ir.IntType(32 if x.type == ir.FloatType() else 64))


@intrinsic
def power(typingctx, t):
    """2^n, for a t with n + bias in its low bits."""

    def codegen(context, builder, signature, args):
        bits = _bits(builder, args[0])
        return builder.bitcast(builder.shl(bits, bits.type(_MANTISSA[t.bitwidth])), args[0].type)

    return t(t), codegen


@intrinsic
def powers(typingctx, t):
    """Two numbers whose product is 2^n, for a t with n + 2 bias in its low bits: n may be that of a denormal, or of overflow."""

    def codegen(context, builder, signature, args):
        bits = _bits(builder, args[0])
        half = builder.lshr(bits, bits.type(1))
        parts = [builder.shl(part, bits.type(_MANTISSA[t.bitwidth])) for part in (half, builder.sub(bits, half))]
        return context.make_tuple(builder, signature.return_type, [builder.bitcast(p, args[0].type) for p in parts])

    return types.UniTuple(t, 2)(t), codegen


@intrinsic
def exponent(typingctx, y):
    """2^mantissa + bias + the exponent of a positive y."""

    def codegen(context, builder, signature, args):
        bits = _bits(builder, args[0])
        mantissa = _MANTISSA[y.bitwidth]
        low = builder.lshr(bits, bits.type(mantissa))
        return builder.bitcast(builder.or_(low, _bits(builder, args[0].type(2.0**mantissa))), args[0].type)

    return y(y), codegen


def _table(dtype, ln2_low, shift, **given):
    """Numbers and coefficients in one dtype."""
    mantissa, bias = _MANTISSA[8 * np.dtype(dtype).itemsize], _BIAS[8 * np.dtype(dtype).itemsize]
    rounding = 1.5 * 2.0**mantissa
    values = dict(
        zero=0, quarter=0.25, half=0.5, one=1, two=2, sqrt_two=2**0.5, inf=np.inf, nan=np.nan,
        ln2=np.log(2), ln2_low=ln2_low, log2_e=1 / np.log(2),
        # added to n, they leave n, n - 1, n twice biased and n - shift in the low bits
        round=rounding + bias, round_half=rounding + bias - 1, round_twice=rounding + 2 * bias,
        round_down=rounding + bias - shift, down=2.0**-shift,
        # what `exponent` adds; log scales its argument into the normal numbers
        exponent_zero=2.0**mantissa + bias, log_up=2.0**shift, log_down=2.0**-shift, log_shift=shift,
        # below, expm1(x) is x
        tiny=2.0 ** -(mantissa + 2), **given,
    )  # fmt: skip
    values = {k: tuple(map(dtype, v)) if isinstance(v, list) else dtype(v) for k, v in values.items()}
    return namedtuple("constants", values)(**values)


# beyond smallest and largest, exp is 0 and inf; beyond one_more, 1 + e^-x is 1; beyond tail_zero, the tail is 0
_FLOAT32 = _table(
    np.float32, -1.9046543e-09, 64, smallest=-104, largest=89, one_more=19, tail_zero=14.5,
    # 2^-26.0 of e^r - 1
    exp=[0.49999997, 0.16666543, 0.041667312, 0.008366515, 0.0013882528],
    # 2^-33.0 of log(1 + f)
    log=[0.66666675, 0.39998949, 0.28615218, 0.21443719, 0.24246344],
    # 2^-29.3 of erf
    erf=[0.12837917, -0.37612626, 0.112835854, -0.026853815, 0.0051883287, -0.000801019953, 7.85387892e-05],
)  # fmt: skip
_FLOAT64 = _table(
    np.float64, 2.3190468138462996e-17, 512, smallest=-746, largest=710, one_more=39, tail_zero=39,
    # 2^-59.9 of e^r - 1, and 2^-28.3 of e^r for a float32 result
    exp=[
        0.5, 0.16666666666666677, 0.04166666666666651, 0.008333333333321693, 0.0013888888888962379,
        0.00019841269885963986, 2.480158717252145e-05, 2.755724437563438e-06, 2.7557402651822065e-07,
        2.5108978523148095e-08, 2.0875329368403417e-09,
    ],
    exp_short=[0.49999993447, 0.16666520632, 0.04166838799, 0.00836871692, 0.00138146063],
    # 2^-64.5 of log(1 + f)
    log=[
        0.6666666666666667, 0.39999999999995384, 0.2857142857233358, 0.22222222137008618, 0.18181822755371135,
        0.15384462901796167, 0.1333663131944399, 0.11717748598201841, 0.1096098866776876, 0.07036603833836852,
        0.16400433398706082,
    ],
    # 2^-56.0 of erf
    erf=[
        0.12837916709551256, -0.37612638903183343, 0.11283791670936953, -0.026866170641960254, 0.005223977596751313,
        -0.00085483254860574, 0.00012055280537991301, -1.492446662326399e-05, 1.644416499283051e-06,
        -1.6184118689656806e-07, 1.361732202380414e-08, -7.609101802760654e-10,
    ],
    # 2^-53.7 of the tail, and 2^-28.6 for a float32 result
    tail_k=4, tail_first=0.7552851304157515,
    tail=[
        -0.6078966419718921, 0.3871374007422195, -0.18652185795966536, 0.06039657489066603, -0.00754018896643636,
        -0.0034796923616026722, 0.0016308184532909176, 0.00013334424848687534, -0.0002310949037762011,
        -1.9078437871312104e-06, 3.5144569881897675e-05, 7.149749508694877e-07, -5.920011767506004e-06,
        -6.252273426203745e-07, 1.0218580247221942e-06, 2.6415327528143725e-07, -1.5659298408043022e-07,
        -7.720956971272858e-08, 1.6069809797883556e-08, 1.4618766697008449e-08, -3.3920206081669393e-10,
        -1.1965308954934233e-09,
    ],
    tail_short_k=4.25,
    tail_short=[
        0.75955420869, -0.6251298036, 0.41822749294, -0.22051503591, 0.08527285892, -0.01936809229, -0.00075469245,
        0.00218526937, -0.00035839543, -0.00023085989,
    ],
)  # fmt: skip


def constants(x):
    """The numbers and coefficients in x's dtype."""


@overload(constants, jit_options={"forceinline": True}, strict=False)
def _constants(x):
    table = {types.float32: _FLOAT32, types.float64: _FLOAT64}.get(x)
    return table and (lambda x: table)


@inline_function
def reduced(x, rounding, p):
    """x = n ln 2 + r, as t = n + rounding and q = e^r - 1."""
    c = constants(x)
    t = fma(x, c.log2_e, rounding)
    n = t - rounding
    r = fma(n, -c.ln2_low, fma(n, -c.ln2, x))
    return t, fma(r * r, polynomial(r, p), r)


@inline_function
def exp(x):
    """e^x."""
    c = constants(x)
    x = c.smallest if x < c.smallest else x
    x = c.largest if x > c.largest else x
    t, q = reduced(x, c.round_twice, c.exp)
    a, b = powers(t)
    return fma(a, q, a) * b


@inline_function
def expm1(x):
    """e^x - 1, by its half, since 2^n overflows before it does."""
    c = constants(x)
    y = -c.one_more if x < -c.one_more else x
    y = c.largest if y > c.largest else y
    t, q = reduced(y, c.round_half, c.exp)
    s = power(t)
    return x if abs(x) < c.tiny else c.two * fma(s, q, s - c.half)


@inline_function
def tanh(x):
    """tanh(x), from h = (e^y - 1) / 2 and d = (e^y + 1) / 2 = 1 + h, y = -2 |x|.

    |tanh(x)| is -h / d, which is h (h / d) - h: so the quotient's error counts only h times.
    """
    c = constants(x)
    y = -c.two * abs(x)
    y = -c.one_more if y < -c.one_more else y
    t, q = reduced(y, c.round_half, c.exp)
    s = power(t)
    h = fma(s, q, s - c.half)
    return np.copysign(fma(h, h / fma(s, q, s + c.half), -h), x)


@inline_function
def sigmoid(x):
    """1 / (1 + e^-x), with both sides of the quotient times 2^-shift: it alone rounds to a denormal, and e^-x cannot overflow."""
    c = constants(x)
    y = -c.one_more if x > c.one_more else -x
    y = -c.smallest if y > -c.smallest else y
    t, q = reduced(y, c.round_down, c.exp)
    s = power(t)
    return c.down / (s + fma(s, q, c.down))


@inline_function
def log1p_series(f):
    """log(1 + f) for -0.3 < f <= 1; as f leads, a denormal keeps its bits."""
    c = constants(f)
    s = f / (c.two + f)
    w = s * s
    return fma(-s, fma(-w, polynomial(w, c.log), f), f)


@inline_function
def softplus(x):
    """log(1 + e^x)."""
    c = constants(x)
    return (c.zero if x < c.zero else x) + log1p_series(exp(-abs(x)))


@inline_function
def log(x):
    """log(x); the factor of sqrt 2 before the exponent is taken centres f on 0."""
    c = constants(x)
    small = x < c.one
    y = x * (c.log_up if small else c.log_down)
    k = exponent(y * c.sqrt_two) - c.exponent_zero
    f = fma(y, power(c.round - k), -c.one)
    y = fma(k - (c.log_shift if small else -c.log_shift), c.ln2, log1p_series(f))
    y = y if x > c.zero else -c.inf if x == c.zero else c.nan
    return x if x == c.inf else y


@inline_function
def log1p(x):
    """log(1 + x), where f = 2^-k (1 + x) - 1 has one rounding; k is taken from a quarter of 1 + x, which does not overflow."""
    c = constants(x)
    k = exponent(fma(x, c.quarter, c.quarter) * c.sqrt_two) - c.exponent_zero
    s = power(c.round - k) * c.quarter
    y = fma(k + c.two, c.ln2, log1p_series(fma(x, s, s - c.one)))
    y = y if x > -c.one else -c.inf if x == -c.one else c.nan
    return x if x == c.inf or x == c.zero else y


def _tail_float32(a):
    # in double precision: what six corrections cost in float32, and half a unit of error instead of three
    end = constants(a).tail_zero
    a = np.float64(end if a > end else a)
    c = constants(a)
    n, q = reduced(-c.half * a * a, c.round, c.exp_short)
    t = c.one / (a + c.tail_short_k)
    y = t * polynomial(fma(-c.two * c.tail_short_k, t, c.one), c.tail_short) * power(n)
    return np.float32(fma(y, q, y))


def _tail_float64(a):
    # a relative error of t is worth 1 + 2 K t of the tail's, that of the square itself: q takes both
    c = constants(a)
    a = c.tail_zero if a > c.tail_zero else a
    half = c.half * a
    h = half * a
    n, q = reduced(-h, c.round_twice, c.exp)
    t = c.one / (a + c.tail_k)
    z = fma(-c.two * c.tail_k, t, c.one)
    p = fma(z, polynomial(z, c.tail), c.tail_first)
    error = fma(fma(-a, t, fma(-c.tail_k, t, c.one)), c.two - z, -fma(half, a, -h))
    q = fma(error, c.one + q, q)
    y = t * p
    u, v = powers(n)
    return u * (y + fma(y, q, fma(t, p, -y))) * v


def upper_tail(a):
    """1 - normal_cdf(a) for a >= 0."""


@overload(upper_tail, jit_options={"forceinline": True, "error_model": "numpy"}, strict=False)
def _upper_tail(a):
    return {types.float32: _tail_float32, types.float64: _tail_float64}.get(a)


@inline_function
def normal_cdf(x):
    """The standard normal distribution function."""
    c = constants(x)
    v = upper_tail(abs(x))
    return v if x < c.zero else c.one - v


@inline_function
def erf(x):
    """The error function."""
    c = constants(x)
    y = np.copysign(c.one - c.two * upper_tail(abs(x) * c.sqrt_two), x)
    return fma(x, polynomial(x * x, c.erf), x) if abs(x) < c.one else y
