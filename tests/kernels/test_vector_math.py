"""Vector math: units in the last place from the true value over the whole range, specials, bits, vectorisation."""

import math
import platform
import re

import mpmath
import numpy as np
import pytest
from numba import njit

from fastgrad.kernels.cpu.engine import vector_math

mpmath.mp.dps = 40
MOST = {"float32": 2, "float64": 4}
# (truth in float64 for float32, truth in 40 digits for float64, results at -inf, -0.0, 0.0, inf)
FUNCTIONS = {
    "exp": (lambda x: np.exp(x), mpmath.exp, (0, 1, 1, np.inf)),
    "expm1": (lambda x: np.expm1(x), mpmath.expm1, (-1, -0.0, 0, np.inf)),
    "tanh": (lambda x: np.tanh(x), mpmath.tanh, (-1, -0.0, 0, 1)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x: 1 / (1 + mpmath.exp(-x)), (0, 0.5, 0.5, 1)),
    "log": (lambda x: np.log(x), mpmath.log, (np.nan, -np.inf, -np.inf, np.inf)),
    "log1p": (lambda x: np.log1p(x), mpmath.log1p, (np.nan, -0.0, 0, np.inf)),
    "softplus": (
        lambda x: (0 if x < 0 else x) + np.log1p(np.exp(-abs(x))),
        lambda x: mpmath.log1p(mpmath.exp(x)),
        (0, np.log(2), np.log(2), np.inf),
    ),
    "erf": (lambda x: math.erf(x), mpmath.erf, (-1, -0.0, 0, 1)),
    "normal_cdf": (lambda x: 0.5 * math.erfc(-x * math.sqrt(0.5)), mpmath.ncdf, (0, 0.5, 0.5, 1)),
}


@pytest.fixture(params=FUNCTIONS, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def compiled(name):
    """The function over arrays, as a kernel has it: a plain loop."""
    function = getattr(vector_math, name)

    @njit(error_model="numpy")
    def over(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    return over


@pytest.fixture(scope="module")
def loop(compiled):
    def run(x):
        y = np.empty_like(x)
        compiled(x, y)
        return y

    return run


@pytest.fixture(scope="module")
def worst(name):
    """The largest distance of float32 results y(x) from the truth, in units of the truth's last place; inf where one alone is NaN."""
    truth = njit(FUNCTIONS[name][0])
    # the next power of two stands for infinity, so that an overflow is as far off as it is
    end = 2.0**128

    @njit(error_model="numpy")
    def measure(x, y):
        most = 0.0
        for i in range(x.size):
            true, actual = truth(np.float64(x[i])), np.float64(y[i])
            if math.isnan(true) or math.isnan(actual):
                if math.isnan(true) != math.isnan(actual):
                    return np.inf
                continue
            true, actual = min(max(true, -end), end), min(max(actual, -end), end)
            unit = math.ldexp(1.0, max(math.frexp(true)[1] - 24, -149))
            most = max(most, abs(actual - true) / unit)
        return most

    return measure


def test_float32_over_a_sample_of_all_patterns(loop, worst):
    x = np.arange(0, 2**32, 1009, dtype=np.uint64).astype(np.uint32).view(np.float32)
    assert worst(x, loop(x)) <= MOST["float32"]


@pytest.mark.full
def test_float32_over_every_97th_pattern(loop, worst):
    """All of them, which the table in vector_math.py is from, take ten minutes."""
    chunk = 97 * 2**20
    for start in range(0, 2**32, chunk):
        x = np.arange(start, min(start + chunk, 2**32), 97, dtype=np.uint64).astype(np.uint32).view(np.float32)
        assert worst(x, loop(x)) <= MOST["float32"]


def chosen_points():
    """Around 0, the ordinary range, both tails to denormal results, and both sides of where a reduction or a formula turns."""
    rng = np.random.default_rng(0)
    powers = 10.0 ** rng.uniform(-323, 100, 200)
    ordinary = [rng.uniform(-reach, reach, 200) for reach in (1e-3, 0.5, 2, 6, 40)] + [rng.uniform(-746, 710, 200)]
    reductions = np.concatenate([np.arange(-59, 60, 2) * math.log(2) / 2, 2.0 ** np.arange(-30, 30) * math.sqrt(2)])
    ends = [1, -1, 0.5, 19, -19, 38, -38, -38.5, -708.4, -745.1, 709.78, 5e-324]
    turns = np.concatenate([reductions, reductions - 1, ends])
    beside = [np.nextafter(turns, np.inf), np.nextafter(turns, -np.inf)]
    return np.concatenate([powers, -powers, *ordinary, turns, *beside])


def test_float64_at_chosen_points(name, loop):
    x = chosen_points()
    x = x[x > {"log": 0, "log1p": -1}.get(name, -np.inf)]
    end = mpmath.mpf(2) ** 1024
    for argument, actual in zip(x.tolist(), loop(x).tolist(), strict=True):
        true = FUNCTIONS[name][1](mpmath.mpf(argument))
        # 2^1024 stands for infinity
        true, actual = min(true, end), min(mpmath.mpf(actual), end)
        unit = mpmath.ldexp(1, max(mpmath.frexp(true)[1] - 53, -1074))
        assert abs(actual - true) <= MOST["float64"] * unit, argument


def test_limits_and_nan(name, loop, dtype):
    y = loop(np.array([-np.inf, -0.0, 0.0, np.inf, np.nan, -np.nan], dtype))
    expected = np.array([*FUNCTIONS[name][2], np.nan, np.nan], dtype)
    np.testing.assert_allclose(y, expected, rtol=2 * np.finfo(dtype).eps, atol=0)
    np.testing.assert_array_equal(np.signbit(y[1:3]), np.signbit(expected[1:3]))


@pytest.mark.parametrize("name", ["tanh", "expm1", "log1p"], indirect=True)
def test_a_denormal_argument_is_its_own_result(loop, dtype):
    x = np.finfo(dtype).smallest_subnormal * np.array([1, 3, -7, 1e5], dtype)
    np.testing.assert_array_equal(loop(x), x)


@pytest.mark.parametrize("name", ["exp", "sigmoid", "softplus"], indirect=True)
def test_a_denormal_result_is_not_flushed_to_zero(loop, dtype):
    x = np.array([-100 if dtype == np.float32 else -740], dtype)
    unit = np.finfo(dtype).smallest_subnormal
    np.testing.assert_allclose(loop(x), [math.exp(x[0])], rtol=0, atol=unit)


def test_a_loop_gives_the_same_bits_in_its_body_and_its_tail(loop, dtype):
    x = np.random.default_rng(0).uniform(0.01, 9, 4096).astype(dtype)
    y = loop(x)
    for count in range(1, 71):
        part = slice(7 * count, 8 * count)
        assert loop(x[part].copy()).tobytes() == y[part].tobytes()


def machine_code(compiled, dtype):
    """The assembly of the loop alone: what follows it is numba's wrappers."""
    x = np.ones(3, dtype)
    compiled(x, x.copy())
    (text,) = (t for signature, t in compiled.inspect_asm().items() if signature[0].dtype.name == dtype.name)
    return text[: text.index(".Lfunc_end0")]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
def test_a_loop_is_vectorised_and_keeps_its_dtype(name, compiled, dtype):
    code = machine_code(compiled, dtype)
    own, other = ("s", "d") if dtype == np.float32 else ("d", "s")
    assert re.search(rf"\tv?(mul|sub)p{own}\s", code)
    assert not re.search(r"\tcall", code)
    # the tail of the normal distribution is worked out in double precision
    if name not in ("erf", "normal_cdf"):
        assert not re.search(rf"\tv?(cvt|mul|add|div|fmadd\d+)[sp]{other}", code)


def test_only_floats_are_taken():
    with pytest.raises(Exception, match="No implementation of function"):
        njit(lambda x: vector_math.exp(x))(1)
