"""Vector math: units in the last place from the true value over the whole range, specials, bits, vectorisation."""

import re

import mpmath
import numpy as np
import pytest
from numba import njit

pytest.importorskip("scipy.special")
from fastgrad.kernels.cpu import vmath
from scipy import special

mpmath.mp.dps = 40
# (float64 truth, exact truth, most ulp in float32, in float64)
FUNCTIONS = {
    "exp": (np.exp, mpmath.exp, 2, 4),
    "expm1": (np.expm1, mpmath.expm1, 2, 4),
    "tanh": (np.tanh, mpmath.tanh, 2, 4),
    "sigmoid": (special.expit, lambda x: 1 / (1 + mpmath.exp(-x)), 2, 4),
    "log": (np.log, mpmath.log, 2, 4),
    "log1p": (np.log1p, mpmath.log1p, 2, 4),
    "softplus": (lambda x: np.logaddexp(0, x), lambda x: mpmath.log1p(mpmath.exp(x)), 2, 4),
    "erf": (special.erf, mpmath.erf, 2, 4),
    # its tail has the relative error of exp(-x^2 / 2), whose argument is large
    "normal_cdf": (special.ndtr, mpmath.ncdf, 6, 32),
}
# at -inf, -0.0, 0.0, inf
LIMITS = {
    "exp": (0, 1, 1, np.inf),
    "expm1": (-1, -0.0, 0, np.inf),
    "tanh": (-1, -0.0, 0, 1),
    "sigmoid": (0, 0.5, 0.5, 1),
    "log": (np.nan, -np.inf, -np.inf, np.inf),
    "log1p": (np.nan, -0.0, 0, np.inf),
    "softplus": (0, np.log(2), np.log(2), np.inf),
    "erf": (-1, -0.0, 0, 1),
    "normal_cdf": (0, 0.5, 0.5, 1),
}


@pytest.fixture(params=FUNCTIONS, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def loop(name):
    """The function over arrays, as a kernel has it: a plain loop."""
    function = getattr(vmath, name)

    @njit(error_model="numpy")
    def over(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    def run(x):
        y = np.empty_like(x)
        over(x, y)
        return y

    run.compiled = over
    return run


def worst_ulp(actual, true):
    """The largest distance in float32 units; NaN, infinities and overflow must agree."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = true.astype(np.float32)
    special_value = ~np.isfinite(rounded)
    np.testing.assert_array_equal(actual[special_value], rounded[special_value])
    actual, true = actual[~special_value].astype(np.float64), true[~special_value]
    unit = np.spacing(np.maximum(np.abs(true), np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
    return np.max(np.abs(actual - true) / unit, initial=0)


def check_patterns(name, loop, patterns):
    x = patterns.astype(np.uint32).view(np.float32)
    truth, _, most, _ = FUNCTIONS[name]
    with np.errstate(all="ignore"):
        true = truth(x.astype(np.float64))
    assert worst_ulp(loop(x), true) <= most


def test_float32_over_a_sample_of_all_patterns(name, loop):
    check_patterns(name, loop, np.arange(0, 2**32, 1009, dtype=np.uint64))


@pytest.mark.slow
def test_float32_over_a_dense_sample(name, loop):
    """Every 127th pattern: all of them would take an hour."""
    for start in range(0, 2**32, 2**30):
        check_patterns(name, loop, np.arange(start, start + 2**30, 127, dtype=np.uint64))


def chosen_points():
    """Near 0, the ordinary range, both tails to denormal results, and around multiples of ln 2 / 2, where reductions turn."""
    rng = np.random.default_rng(0)
    powers = 10.0 ** rng.uniform(-307, 2.8, 300)
    turns = np.arange(-60, 60) * (np.log(2) / 2)
    near = [turns, np.nextafter(turns, np.inf), np.nextafter(turns, -np.inf)]
    ordinary = [rng.uniform(-2, 2, 400), rng.uniform(-40, 40, 400), rng.uniform(-745, 709, 300)]
    return np.concatenate([powers, -powers, *near, *ordinary, [-38.4, -744.9, -708.5, 709.7, 1e300, 5e-324]])


def test_float64_at_chosen_points(name, loop):
    _, truth, _, most = FUNCTIONS[name]
    x = chosen_points()
    x = x[x > 0] if name == "log" else x[x > -1] if name == "log1p" else x
    tiny, worst = np.finfo(np.float64).tiny, 0
    for argument, result in zip(x.tolist(), loop(x).tolist(), strict=True):
        true = truth(mpmath.mpf(argument))
        if abs(true) > np.finfo(np.float64).max:
            assert result == np.inf
            continue
        unit = np.spacing(max(abs(float(true)), tiny))
        worst = max(worst, float(abs(mpmath.mpf(result) - true) / mpmath.mpf(float(unit))))
    assert worst <= most


def test_limits_and_nan(name, loop, dtype):
    y = loop(np.array([-np.inf, -0.0, 0.0, np.inf, np.nan], dtype))
    expected = np.array([*LIMITS[name], np.nan], dtype)
    np.testing.assert_allclose(y, expected, rtol=2 * np.finfo(dtype).eps, atol=0)
    np.testing.assert_array_equal(np.signbit(y[1:3]), np.signbit(expected[1:3]))


def test_denormal_results_are_right():
    """Where the tails end: not flushed to zero."""

    @njit(error_model="numpy")
    def tails(x):
        return vmath.exp(x), vmath.sigmoid(x), vmath.softplus(x)

    for result in tails(np.float32(-100)):
        assert abs(float(result) - np.exp(-100.0)) <= 2**-149
    for result in tails(-740.0):
        assert abs(result - np.exp(-740.0)) <= 2.0**-1074


@pytest.mark.parametrize("count", [*range(1, 35), 63, 70])
def test_a_loop_gives_the_same_bits_in_its_body_and_its_tail(loop, dtype, count):
    x = np.random.default_rng(0).uniform(0.01, 9, 128).astype(dtype)
    assert loop(x[:count].copy()).tobytes() == loop(x)[:count].tobytes()


def test_loops_keep_their_dtype_and_vectorise(loop, dtype):
    x = np.ones(3, dtype)
    assert loop(x).dtype == dtype
    (assembly,) = (
        text for signature, text in loop.compiled.inspect_asm().items() if signature[0].dtype.name == dtype.name
    )
    if "vfmadd" not in assembly:
        pytest.skip("the pattern below is x86's")
    packed, other = ("ps", "pd") if dtype == np.float32 else ("pd", "ps")
    assert re.search(rf"vfn?madd\d+{packed}\s.*%[yz]mm", assembly)
    assert not re.search(rf"vfn?madd\d+{other}\s", assembly)
    assert not re.search(r"call\S*\s+.*(exp|log|tanh|erf)", assembly)
