"""Arithmetic, comparisons, conversions and moves, with PTX's rounding.

An .approx form is exact here; with `machine.approximate` it is off by its documented worst (PTX ISA 9.7.3), up or down by the
last bit of what it reads, so that equal values stay equal. A power of two stays exact: libdevice's functions, whose own documented
errors are smaller than these, count on that.
"""

import numpy as np

from ptxsim.formats import PREDICATE, TYPES, UNSIGNED, PTXError
from ptxsim.operands import Vector

FLOAT32, FLOAT64 = TYPES["f32"], TYPES["f64"]
WIDER = {TYPES[a]: TYPES[b] for a, b in {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}.items()}
COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
DIRECTED = ("rz", "rm", "rp")


def _read(machine, i, active, dtype=None):
    """The values of all operands but the first, the result."""
    dtype = dtype or i.dtype
    values = [operand.value(machine, dtype, active) for operand in i.operands[1:]]
    return [flushed(v) for v in values] if "ftz" in i.modifiers and dtype == FLOAT32 else values


def _write(machine, i, active, values, dtype=None):
    dtype = dtype or i.dtype
    values = np.asarray(values)
    if "sat" in i.modifiers and dtype.kind == "f":
        values = np.clip(np.nan_to_num(values, nan=0.0), 0, 1)
    if "relu" in i.modifiers:
        values = np.maximum(values, 0)
    values = values.astype(dtype, copy=False)
    if "ftz" in i.modifiers and dtype == FLOAT32:
        values = flushed(values)
    machine.write(i.operands[0], values, active)


def flushed(values):
    """Subnormal numbers as zeros of their sign."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values)


def _operation(function):
    """An instruction whose result is function(*operands), rounded to nearest."""

    def run(machine, i, active):
        _write(machine, i, active, function(*_read(machine, i, active)))

    return run


def _rounded(function, error):
    """Like _operation. error(result, *operands), in float64, is what the result lacks, which tells directed rounding where to go."""

    def run(machine, i, active):
        operands = _read(machine, i, active)
        mode = i.option(*DIRECTED)
        if mode is None or i.dtype.kind != "f":
            _write(machine, i, active, function(*operands))
            return
        if i.dtype != FLOAT32:
            raise PTXError(f"{i.text}: directed rounding of {i.dtype} is not supported")
        result = function(*operands).astype(FLOAT32)
        _write(machine, i, active, _redirected(result, error(result, *(o.astype(FLOAT64) for o in operands)), mode))

    return run


def _redirected(result, error, mode):
    down, up = np.nextafter(result, np.float32(-np.inf)), np.nextafter(result, np.float32(np.inf))
    if mode == "rm":
        return np.where(error < 0, down, result)
    if mode == "rp":
        return np.where(error > 0, up, result)
    return np.where((result > 0) & (error < 0), down, np.where((result < 0) & (error > 0), up, result))


def fused(a, b, c):
    """a b + c, rounded once: float32 through float64, float64 by a product and a sum without error (Dekker 1971, Knuth 1969)."""
    if a.dtype != FLOAT64:
        return (a.astype(FLOAT64) * b.astype(FLOAT64) + c.astype(FLOAT64)).astype(a.dtype)
    product = a * b
    total = product + c
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    product_error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    part = total - product
    sum_error = (product - (total - part)) + (c - part)
    exact = total + (product_error + sum_error)
    plain = (a.astype(np.longdouble) * b + c).astype(FLOAT64)
    # the halves overflow before the product does, and vanish after it
    usable = (np.abs(a) < 1e150) & (np.abs(b) < 1e150) & (np.abs(product) > 1e-250) & np.isfinite(c)
    return np.where(usable, exact, plain)


def _halves(a):
    scaled = 134217729.0 * a
    high = scaled - (scaled - a)
    return high, a - high


def _is_float(dtype):
    return dtype.kind == "f"


def _extreme(over_numbers, over_all):
    """min or max: a NaN only where both are, or with .NaN where one is."""

    def run(machine, i, active):
        function = over_numbers if _is_float(i.dtype) and "NaN" not in i.modifiers else over_all
        _write(machine, i, active, function(*_read(machine, i, active)))

    return run


def multiply(machine, i, active):
    if "wide" in i.modifiers:
        wide = WIDER[i.dtype]
        a, b = (v.astype(wide) for v in _read(machine, i, active))
        _write(machine, i, active, a * b, wide)
    elif "hi" in i.modifiers:
        a, b = _read(machine, i, active)
        bits = 8 * i.dtype.itemsize
        _write(machine, i, active, (a.astype(object) * b.astype(object) >> bits).astype(i.dtype))
    else:
        _product(machine, i, active)


_product = _rounded(np.multiply, lambda result, a, b: a * b - result)


def multiply_add(machine, i, active):
    if "wide" in i.modifiers:
        wide = WIDER[i.dtype]
        a, b = (operand.value(machine, i.dtype, active).astype(wide) for operand in i.operands[1:3])
        _write(machine, i, active, a * b + i.operands[3].value(machine, wide, active), wide)
    elif i.option("hi", "cc") or i.op == "madc":
        _long_multiply_add(machine, i, active)
    else:
        a, b, c = _read(machine, i, active)
        _write(machine, i, active, a * b + c)


def _long_multiply_add(machine, i, active):
    """mad.lo|hi[.cc] and madc: half of a product of 32 bits, plus c, with the carry of the one before, and kept for the next."""
    wide = WIDER[i.dtype]
    a, b, c = (v.astype(wide) for v in _read(machine, i, active))
    chosen = slice(None) if active is None else active
    half = (a * b >> wide.type(32)) if "hi" in i.modifiers else (a * b)
    total = (half & wide.type(0xFFFFFFFF)) + (c & wide.type(0xFFFFFFFF))
    if i.op == "madc":
        total = total + machine.carry[chosen]
    if "cc" in i.modifiers:
        machine.carry[chosen] = total > 0xFFFFFFFF
    _write(machine, i, active, total)


def divide(machine, i, active):
    a, b = _read(machine, i, active)
    if _is_float(i.dtype):
        _write(machine, i, active, _near(machine, i, a / b, a, 2.0**-22))
        return
    by = np.where(b == 0, 1, b).astype(i.dtype)
    quotient = a // by
    if i.dtype.kind == "i":
        # towards zero
        quotient = quotient + ((quotient * by != a) & ((a < 0) ^ (by < 0)))
    _write(machine, i, active, np.where(b == 0, np.array(-1).astype(i.dtype), quotient))


def _near(machine, i, exact, argument, relative, absolute=0.0):
    """An approximation as far from the exact value as is documented."""
    if not machine.approximate or "approx" not in i.modifiers:
        return exact
    odd = argument.view(UNSIGNED[argument.itemsize]) & 1
    sign = np.where(odd == 1, 1.0, -1.0)
    rough = exact * (1 + sign * relative) + sign * absolute
    return np.where(np.frexp(exact)[0] == 0.5, exact, rough)


def _function(function, relative=0.0, absolute=0.0):
    """A function of one operand, taken in float64."""

    def run(machine, i, active):
        (a,) = _read(machine, i, active)
        _write(machine, i, active, _near(machine, i, function(a.astype(FLOAT64)), a, relative, absolute))

    return run


def _root_of(function):
    """rcp and rsqrt. Their .approx.ftz.f64 reads and gives the upper half of the bits only: a first guess for Newton's method."""

    def run(machine, i, active):
        (a,) = _read(machine, i, active)
        if i.dtype == FLOAT64 and "approx" in i.modifiers:
            upper = np.uint64(0xFFFFFFFF00000000)
            exact = function((a.view(np.uint64) & upper).view(FLOAT64))
            _write(machine, i, active, (exact.view(np.uint64) & upper).view(FLOAT64))
        else:
            _write(machine, i, active, _near(machine, i, function(a.astype(FLOAT64)), a, 2.0**-22.9))

    return run


def _shift(function):
    def run(machine, i, active):
        a = i.operands[1].value(machine, i.dtype, active)
        by = i.operands[2].value(machine, TYPES["u32"], active)
        bits = 8 * i.dtype.itemsize
        if by.ndim == 0 and by < bits:
            _write(machine, i, active, function(a, by.astype(i.dtype)))
            return
        result = function(a, np.minimum(by, bits - 1).astype(i.dtype))
        if i.op == "shl" or i.dtype.kind == "u":
            result = np.where(by >= bits, 0, result)
        _write(machine, i, active, result)

    return run


def insert_bits(machine, i, active):
    """bfi d, a, b, at, count: b with the lowest `count` bits of a put at bit `at`."""
    a, b = (operand.value(machine, i.dtype, active) for operand in i.operands[1:3])
    at, count = (operand.value(machine, TYPES["u32"], active) & 0xFF for operand in i.operands[3:])
    bits = 8 * i.dtype.itemsize
    one = i.dtype.type(1)
    kept = np.where(count >= bits, ~i.dtype.type(0), (one << np.minimum(count, bits - 1).astype(i.dtype)) - one)
    shift = np.minimum(at, bits - 1).astype(i.dtype)
    mask = np.where(at >= bits, 0, kept << shift).astype(i.dtype)
    _write(machine, i, active, (b & ~mask) | ((a << shift) & mask))


def _by_bits(function):
    """A function of one integer and how many bits it has."""

    def run(machine, i, active):
        unsigned = UNSIGNED[i.dtype.itemsize]
        a = np.atleast_1d(i.operands[1].value(machine, unsigned, active))
        values = [function(int(v), 8 * a.itemsize) for v in a]
        machine.write(i.operands[0], np.array(values, i.dtype if i.op == "brev" else np.uint32), active)

    return run


def set_predicate(machine, i, active):
    """setp.cmp[.and|or|xor] p[|q], a, b[, c]: q is the opposite of p."""
    joined = i.option("and", "or", "xor")
    *results, first, second = i.operands[:-1] if joined else i.operands
    a, b = first.value(machine, i.dtype, active), second.value(machine, i.dtype, active)
    if "ftz" in i.modifiers and i.dtype == FLOAT32:
        a, b = flushed(a), flushed(b)
    found = _compared(i.modifiers[0], a, b)
    if joined:
        other = i.operands[-1].value(machine, PREDICATE, active)
        found = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[joined](found, other)
    for result, value in zip(results, (found, ~found), strict=False):
        machine.write(result, value, active)


def _compared(how, a, b):
    if a.dtype.kind != "f":
        return COMPARISONS[how](a, b)
    unordered = np.isnan(a) | np.isnan(b)
    if how == "nan":
        return unordered
    if how == "num":
        return ~unordered
    if how in COMPARISONS:
        return COMPARISONS[how](a, b) & ~unordered
    # equ, ltu ...: true of a NaN
    return COMPARISONS[how[:-1]](a, b) | unordered


def select(machine, i, active):
    a, b = (operand.value(machine, i.dtype, active) for operand in i.operands[1:3])
    machine.write(i.operands[0], np.where(i.operands[3].value(machine, PREDICATE, active), a, b), active)


def convert(machine, i, active):
    to, of = i.types[0], i.types[1]
    a = i.operands[1].value(machine, of, active)
    rounding = i.option(*TO_INTEGER)
    if of.kind == "f" and to.kind in "iu":
        machine.write(i.operands[0], _to_integer(TO_INTEGER[rounding or "rni"](a.astype(FLOAT64)), to), active)
        return
    if of.kind == to.kind == "f" and rounding:
        a = TO_INTEGER[rounding](a)
    _write(machine, i, active, a.astype(to), to)


def _to_integer(values, dtype):
    """Past the ends: the ends; NaN: 0."""
    ends = np.iinfo(dtype)
    values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
    inside = (values > ends.min) & (values < ends.max)
    result = np.where(values >= ends.max, ends.max, ends.min).astype(dtype)
    return np.where(inside, np.where(inside, values, 0).astype(dtype), result)


def move(machine, i, active):
    """mov, and its packing {a, b} into one register and unpacking of one."""
    to, of = i.operands
    if isinstance(of, Vector):
        part = UNSIGNED[i.dtype.itemsize // len(of.parts)]
        n = machine.count(active)
        values = np.stack([np.broadcast_to(p.value(machine, part, active), n) for p in of.parts], axis=1)
        machine.write(to, np.ascontiguousarray(values).view(UNSIGNED[i.dtype.itemsize])[:, 0], active)
    elif isinstance(to, Vector):
        part = UNSIGNED[i.dtype.itemsize // len(to.parts)]
        values = np.ascontiguousarray(
            np.broadcast_to(of.value(machine, UNSIGNED[i.dtype.itemsize], active), machine.count(active))
        )
        for operand, column in zip(to.parts, values.view(part).reshape(-1, len(to.parts)).T, strict=True):
            machine.write(operand, column, active)
    else:
        machine.write(to, of.value(machine, i.dtype, active), active)


def _reversed_bits(value, bits):
    return int(format(value, f"0{bits}b")[::-1], 2)


OPERATIONS = {
    "add": _rounded(np.add, lambda result, a, b: (a - (result - b)) + (b - (result - (result - b)))),
    "sub": _rounded(np.subtract, lambda result, a, b: (a - (result + b)) - (b - ((result + b) - result))),
    "mul": multiply,
    "mad": multiply_add,
    "madc": multiply_add,
    "fma": _rounded(fused, lambda result, a, b, c: a * b + c - result),
    "div": divide,
    "rem": _operation(lambda a, b: np.fmod(a, np.where(b == 0, 1, b).astype(a.dtype))),
    "min": _extreme(np.fmin, np.minimum),
    "max": _extreme(np.fmax, np.maximum),
    "and": _operation(np.bitwise_and),
    "or": _operation(np.bitwise_or),
    "xor": _operation(np.bitwise_xor),
    "not": _operation(np.invert),
    "neg": _operation(np.negative),
    "abs": _operation(np.abs),
    # PTX: the sign of a, the size of b
    "copysign": _operation(lambda a, b: np.copysign(b, a)),
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "bfi": insert_bits,
    "popc": _by_bits(lambda value, _: value.bit_count()),
    "clz": _by_bits(lambda value, bits: bits - value.bit_length()),
    "brev": _by_bits(_reversed_bits),
    "setp": set_predicate,
    "selp": select,
    "cvt": convert,
    "mov": move,
    "sqrt": _function(np.sqrt, relative=2.0**-23),
    "rcp": _root_of(np.reciprocal),
    "rsqrt": _root_of(lambda a: 1 / np.sqrt(a)),
    "ex2": _function(np.exp2, relative=2.0**-22.5),
    "lg2": _function(np.log2, absolute=2.0**-22),
    "sin": _function(np.sin, absolute=2.0**-20.5),
    "cos": _function(np.cos, absolute=2.0**-20.5),
    "tanh": _function(np.tanh, relative=2.0**-11),
}
