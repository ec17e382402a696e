"""Features of numba-cuda's language, compiled, through ptxas and executed by ptxsim, each against NumPy."""

import math

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

from numba import cuda, float32, int32, types
from numba.cuda import libdevice
from ptxsim import Module, PTXError, launch
from ptxsim.compile import assembled, compiled, ptxas

F2, F4, F8, I4 = types.float16, types.float32, types.float64, types.int32
N = 64
POSITIVE = np.linspace(0.1, 3.1, N)


def array(kind, ndim=1):
    return types.Array(kind, ndim, "C")


def run(function, arguments, grid=1, block=N, shared=0, **options):
    """Execute a kernel over arrays."""
    kinds = {"float16": F2, "float32": F4, "float64": F8, "int32": I4}
    ptx = compiled(function, tuple(array(kinds[a.dtype.name], a.ndim) for a in arguments), **options)
    if ptxas():
        assembled(ptx, (9, 0))
    return launch(Module(ptx), grid, block, arguments, shared=shared)


def of_each(function, x, dtype=np.float32, **options):
    """function of each value, by a kernel."""

    def kernel(x, out):
        out[cuda.grid(1)] = function(x[cuda.grid(1)])

    out = np.zeros(N, dtype)
    run(kernel, (x.astype(dtype), out), **options)
    return out


EVERYWHERE = np.linspace(-3, 3, N)
FUNCTIONS = [
    (math.tanh, EVERYWHERE), (math.exp, EVERYWHERE), (math.erf, EVERYWHERE), (math.erfc, EVERYWHERE), (math.expm1, EVERYWHERE),
    (math.sin, EVERYWHERE), (math.cos, EVERYWHERE), (math.log, POSITIVE), (math.log1p, POSITIVE), (math.sqrt, POSITIVE),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("function", "x"), FUNCTIONS, ids=[f.__name__ for f, _ in FUNCTIONS])
def test_functions_of_math(function, x, dtype):
    expected = np.vectorize(function)(x.astype(dtype).astype(np.float64))
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(of_each(function, x, dtype), expected, rtol=tolerance, atol=tolerance)


LIBRARY = {"expf": np.exp, "tanhf": np.tanh, "fast_expf": np.exp, "rsqrtf": lambda x: 1 / np.sqrt(x)}


@pytest.mark.parametrize("name", LIBRARY)
def test_functions_of_libdevice(name):
    found = of_each(getattr(libdevice, name), POSITIVE)
    np.testing.assert_allclose(found, LIBRARY[name](POSITIVE), rtol=1e-5)


@pytest.mark.parametrize("function", [math.exp, math.tanh])
def test_fastmath(function):
    np.testing.assert_allclose(of_each(function, POSITIVE, fastmath=True), np.vectorize(function)(POSITIVE), rtol=1e-5)


def test_power_in_a_device_function():
    power = cuda.jit(device=True)(lambda x: math.pow(x, float32(2.5)))
    np.testing.assert_allclose(of_each(power, POSITIVE), POSITIVE**2.5, rtol=1e-5)


def test_dynamic_shared_memory():
    def kernel(x, out):
        values, t = cuda.shared.array(0, float32), cuda.threadIdx.x
        values[t] = x[t]
        cuda.syncthreads()
        out[t] = values[cuda.blockDim.x - 1 - t]

    x, out = POSITIVE.astype(np.float32), np.zeros(N, np.float32)
    run(kernel, (x, out), shared=4 * N)
    np.testing.assert_array_equal(out, x[::-1])


def test_local_array_with_an_index_of_the_data():
    def kernel(x, out):
        values = cuda.local.array(16, float32)
        for i in range(16):
            values[i] = x[(cuda.threadIdx.x + i) % x.size]
        total = float32(0)
        for i in range(16):
            total += values[int(values[i] * 0) + i]
        out[cuda.grid(1)] = total

    x, out = POSITIVE.astype(np.float32), np.zeros(N, np.float32)
    run(kernel, (x, out))
    np.testing.assert_allclose(out, [sum(x[(t + i) % N] for i in range(16)) for t in range(N)], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_atomics(dtype):
    def kernel(x, out):
        cuda.atomic.max(out, 0, x[cuda.grid(1)])
        cuda.atomic.min(out, 1, x[cuda.grid(1)])
        cuda.atomic.add(out, 2, x[cuda.grid(1)])

    x, out = POSITIVE.astype(dtype), np.array([-9, 9, 0], dtype)
    run(kernel, (x, out))
    np.testing.assert_allclose(out, [x.max(), x.min(), x.sum()], rtol=1e-6)


def test_votes():
    def kernel(x, out):
        i = cuda.grid(1)
        ballot = cuda.ballot_sync(0xFFFFFFFF, x[i] > 1)
        out[i] = cuda.popc(ballot) + cuda.any_sync(0xFFFFFFFF, x[i] > 3) * 100 + cuda.laneid * 0

    x, out = POSITIVE.astype(np.float32), np.zeros(N, np.int32)
    run(kernel, (x, out))
    warps = x.reshape(2, 32)
    np.testing.assert_array_equal(out, np.repeat((warps > 1).sum(1) + 100 * (warps > 3).any(1), 32))


def test_shuffles():
    def kernel(x, out):
        value, distance = x[cuda.grid(1)], 16
        while distance > 0:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, distance)
            distance //= 2
        cuda.syncwarp()
        out[cuda.grid(1)] = value

    x, out = POSITIVE.astype(np.float32), np.zeros(N, np.float32)
    run(kernel, (x, out))
    np.testing.assert_allclose(out, np.repeat(x.reshape(2, 32).sum(1), 32), rtol=1e-6)


@pytest.mark.parametrize(
    ("shuffle", "source"),
    [
        (cuda.shfl_up_sync, lambda lane: max(lane - 3, lane if lane < 3 else 0)),
        (cuda.shfl_down_sync, lambda lane: lane + 3 if lane + 3 < 32 else lane),
        (cuda.shfl_sync, lambda lane: 3),
    ],
)
def test_shuffles_up_down_and_to_all(shuffle, source):
    def kernel(x, out):
        out[cuda.grid(1)] = shuffle(0xFFFFFFFF, x[cuda.grid(1)], 3)

    x, out = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    run(kernel, (x, out), block=32)
    np.testing.assert_array_equal(out, [source(lane) for lane in range(32)])


def test_what_is_not_in_the_ptx_is_named():
    def kernel(x, out):
        i = cuda.grid(1)
        out[i] = x[i] * x[i] + x[i]

    x = POSITIVE.astype(np.float16)
    with pytest.raises(PTXError, match="call of an external function"):
        launch(Module(compiled(kernel, (array(F2), array(F2)))), 1, N, (x, np.zeros_like(x)))


def test_float16_read_as_float32():
    def kernel(x, out):
        out[cuda.grid(1)] = float32(x[cuda.grid(1)]) * float32(2)

    x, out = POSITIVE.astype(np.float16), np.zeros(N, np.float32)
    run(kernel, (x, out))
    np.testing.assert_array_equal(out, x.astype(np.float32) * 2)


def test_barrier_of_the_grid():
    def kernel(a, out):
        grid, i = cuda.cg.this_grid(), cuda.grid(1)
        a[i] = i
        grid.sync()
        out[i] = a[a.size - 1 - i]

    a, out = np.zeros(N, np.float32), np.zeros(N, np.float32)
    launch(Module(compiled(kernel, (array(F4), array(F4)))), 2, 32, (a, out))
    np.testing.assert_array_equal(out, np.arange(N)[::-1])


def test_grids_of_two_dimensions():
    def kernel(x, out):
        i, j = cuda.grid(2)
        out[i, j] = x[j, i]

    x, out = np.arange(64, dtype=np.float32).reshape(8, 8), np.zeros((8, 8), np.float32)
    run(kernel, (x, out), (2, 2), (4, 4))
    np.testing.assert_array_equal(out, x.T)


def test_views_keep_their_strides():
    def kernel(x, out):
        out[cuda.grid(1)] = x[cuda.grid(1)]

    x, out = np.arange(2 * N, dtype=np.float32), np.zeros(N, np.float32)
    launch(Module(compiled(kernel, (types.Array(F4, 1, "A"), array(F4)))), 1, N, (x[::2], out))
    np.testing.assert_array_equal(out, x[::2])


TABLE = np.arange(8, dtype=np.float32)


def test_constant_memory():
    def kernel(out):
        table = cuda.const.array_like(TABLE)
        out[cuda.grid(1)] = table[cuda.grid(1) % 8]

    out = np.zeros(N, np.float32)
    run(kernel, (out,))
    np.testing.assert_array_equal(out, np.tile(TABLE, 8))


def test_barriers_that_count():
    def kernel(x, out):
        out[cuda.grid(1)] = cuda.syncthreads_count(int32(x[cuda.grid(1)] > 1))

    x, out = np.tile(POSITIVE, 2).astype(np.float32), np.zeros(2 * N, np.int32)
    x[:N] += 1
    run(kernel, (x, out), grid=2)
    np.testing.assert_array_equal(out, np.repeat((x.reshape(2, N) > 1).sum(1), N))


def test_fused_multiply_add():
    np.testing.assert_allclose(
        of_each(cuda.jit(device=True)(lambda x: cuda.fma(x, x, x)), POSITIVE), POSITIVE**2 + POSITIVE, rtol=1e-6
    )


def test_a_fused_product_keeps_the_bits_that_rounding_drops():
    def kernel(x, out):
        i = cuda.grid(1)
        product = x[i] * x[i]
        out[i] = cuda.fma(x[i], x[i], -product)

    x, out = 1 + np.arange(N) / 3e9, np.zeros(N)
    run(kernel, (x, out))
    exact = [float(_fraction(v) ** 2 - _fraction(v * v)) for v in x.tolist()]
    np.testing.assert_array_equal(out, exact)
    assert out.any()


def _fraction(value):
    from fractions import Fraction

    return Fraction(value)


def test_divergent_branches_loops_and_returns():
    def kernel(x, out):
        i = cuda.grid(1)
        if i < x.size:
            if x[i] > 1:
                out[i] = x[i] * 2
            elif x[i] > 0.5:
                total = float32(0)
                for j in range(i):
                    total += x[j]
                out[i] = total
            else:
                return

    x, out = POSITIVE.astype(np.float32), np.zeros(N, np.float32)
    run(kernel, (x, out), 3, 32)
    expected = [v * 2 if v > 1 else (x[:i].sum() if v > 0.5 else 0) for i, v in enumerate(x)]
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_integers():
    def kernel(a, b, out):
        i = cuda.grid(1)
        out[i, 0] = a[i] // b[i]
        out[i, 1] = a[i] % b[i]
        out[i, 2] = a[i] * b[i]
        out[i, 3] = (a[i] << 3) ^ (b[i] >> 1)
        out[i, 4] = cuda.clz(a[i]) + cuda.brev(b[i])

    rng = np.random.default_rng(0)
    a, b = rng.integers(-1000, 1000, N).astype(np.int32), rng.integers(1, 50, N).astype(np.int32)
    out = np.zeros((N, 5), np.int32)
    run(kernel, (a, b, out))
    bits = [format(v & 0xFFFFFFFF, "032b") for v in a.tolist()]
    last = [(len(s) - len(s.lstrip("0"))) for s in bits]
    turned = np.array([int(format(v, "032b")[::-1], 2) for v in b.tolist()], np.uint32).view(np.int32)
    np.testing.assert_array_equal(out, np.stack([a // b, a % b, a * b, (a << 3) ^ (b >> 1), last + turned], 1))


def test_approximations_are_off_by_no_more_than_is_documented():
    x = POSITIVE.astype(np.float32)
    out, rough = np.zeros(N, np.float32), np.zeros(N, np.float32)

    def kernel(x, out):
        out[cuda.grid(1)] = libdevice.fast_expf(x[cuda.grid(1)])

    module = Module(compiled(kernel, (array(F4), array(F4))))
    launch(module, 1, N, (x, out))
    launch(module, 1, N, (x, rough), approximate=True)
    assert (rough != out).any()
    np.testing.assert_allclose(rough, out, rtol=2e-6)


def test_float64_in_a_float32_kernel_is_seen_in_its_ptx():
    def kernel(x, out):
        out[cuda.grid(1)] = x[cuda.grid(1)] / 0.3

    assert ".f64" in compiled(kernel, (array(F4), array(F4))).replace(".reg .f64", "")


def test_traffic_is_counted_by_argument():
    def kernel(x, out):
        i = cuda.grid(1)
        if i < 10:
            out[i] = x[i] + x[i + 10]

    statistics = run(kernel, (np.ones(20, np.float32), np.zeros(10, np.float32)))
    x, out = statistics.traffic
    assert (x, out) == ((80, 0), (0, 40))


def test_lists_of_arrays_are_pointers_to_pointers():
    pointers = types.CPointer(types.CPointer(F4))

    def kernel(x, out):
        i = cuda.grid(1)
        out[i % 2][i // 2] = x[i % 2][i // 2] * float32(2)

    x = [np.arange(N // 2, dtype=np.float32), np.full(N // 2, 7, np.float32)]
    out = [np.zeros_like(a) for a in x]
    statistics = launch(Module(compiled(kernel, (pointers, pointers))), 1, N, (x, out), pointers=True)
    np.testing.assert_array_equal(out, [2 * a for a in x])
    assert statistics.traffic == [(4 * N, 0), (0, 4 * N)]


def test_unknown_instructions_are_named():
    ptx = ".visible .entry k(\n)\n{\n.reg .b32 %r<2>;\nwmma.load %r1;\nret;\n}"
    with pytest.raises(PTXError, match=r"unknown instruction: wmma\.load"):
        Module(ptx)
