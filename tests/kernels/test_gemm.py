"""The CPU backend's GEMM: exact on integers, within rounding of float64, the same bits in every way of running it."""

import hashlib
import itertools

import numpy as np
import pytest
from arrays import LAYOUTS, bits, laid_out, unwritten
from tolerances import assert_close

TRANSPOSES = ("NN", "NT", "TN", "TT")
# around vectors of 4, 8 and 16 values, rows of a tile, and tiles of 2 to 4 vectors
SMALL = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 33, 40)
PRIMES = (41, 97, 151, 293)
# past the blocks of the cache in each dimension, alone and together
LARGE = (
    (700, 33, 1100), (33, 1500, 600), (301, 1100, 530), (1, 1500, 1100), (2, 700, 1100), (3, 1030, 260),
    (1100, 1, 1100), (2, 3, 5000), (1500, 700, 2), (1030, 1040, 17), (128, 64, 784), (784, 64, 128), (127, 65, 785),
    (521, 521, 521), (77, 1600, 1024),
)  # fmt: skip


def shape_id(shape):
    return "x".join(map(str, shape))


@pytest.fixture(autouse=True)
def threads():
    """The number of threads is what it was, whatever products ran on."""
    thread_pool = pytest.importorskip("fastgrad.kernels.cpu.engine.thread_pool")
    before = thread_pool.get_num_threads()
    yield
    thread_pool.set_num_threads(before)


def matmul(a, b, out=None, accumulate=False, threads=(2, 3, 1)):
    """a @ b in an output first filled with NaN, which has the same bits on each of these numbers of threads."""
    from fastgrad.kernels.cpu import gemm
    from fastgrad.kernels.cpu.engine import thread_pool

    if out is None:
        out = unwritten((a.shape[0], b.shape[1]), a.dtype)
    *others, last = threads
    copies = [out.copy() for _ in others]
    for count, found in zip(threads, [*copies, out], strict=True):
        thread_pool.set_num_threads(count)
        gemm.matmul(a, b, found, accumulate)
    assert all(bits(found) == bits(out) for found in copies), f"{last} threads and {others}"
    return out


def integers(rng, *shape, dtype):
    """Small integers: every product and sum of thousands of them is exact in float32."""
    return rng.integers(-8, 9, shape).astype(dtype)


def operands(rng, transposes, M, N, K, dtype, make=integers):
    a = make(rng, M, K, dtype=dtype) if transposes[0] == "N" else make(rng, K, M, dtype=dtype).T
    b = make(rng, K, N, dtype=dtype) if transposes[1] == "N" else make(rng, N, K, dtype=dtype).T
    return a, b


def normal(rng, *shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def check(transposes, M, N, K, dtype, accumulate, rng, **threads):
    """Exact on integers."""
    a, b = operands(rng, transposes, M, N, K, dtype)
    start = integers(rng, M, N, dtype=dtype) if accumulate else unwritten((M, N), dtype)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    if accumulate:
        expected += start
    matmul(a, b, start, accumulate, **threads)
    np.testing.assert_array_equal(start, expected, err_msg=f"{transposes} {M}x{N}x{K} accumulate={accumulate}")


@pytest.mark.parametrize("transposes", TRANSPOSES)
def test_small_products_are_exact(transposes, dtype, rng):
    for M, N, K in itertools.product(SMALL, repeat=3):
        check(transposes, M, N, K, dtype, (M + N + K) % 2 == 1, rng, threads=(1,))


@pytest.mark.parametrize("transposes", TRANSPOSES)
def test_prime_products_are_exact(transposes, dtype, rng):
    for M, N, K in itertools.product(PRIMES, repeat=3):
        check(transposes, M, N, K, dtype, (M + N + K) % 4 == 1, rng)


@pytest.mark.pairwise
@pytest.mark.parametrize("transposes", TRANSPOSES)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("shape", LARGE, ids=shape_id)
def test_large_products_are_exact(transposes, dtype, accumulate, shape, rng):
    check(transposes, *shape, dtype, accumulate, rng)


@pytest.mark.parametrize("K", [1, 7, 15, 301, 500])
def test_rows_a_multiple_of_2_kib_apart_are_copied_right(dtype, K, rng):
    b = integers(rng, K, 1600, dtype=dtype)
    for M in (*range(1, 21), 77):
        a = integers(rng, M, 512, dtype=dtype)[:, :K]
        np.testing.assert_array_equal(matmul(a, b), a.astype(np.float64) @ b.astype(np.float64), err_msg=f"{M} rows")


@pytest.mark.pairwise
@pytest.mark.parametrize("transposes", TRANSPOSES)
@pytest.mark.parametrize("shape", [(17, 33, 40), *LARGE], ids=shape_id)
def test_rounding_is_that_of_a_sum(transposes, dtype, shape, rng):
    a, b = operands(rng, transposes, *shape, dtype, normal)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    assert_close("gemm", matmul(a, b), a64 @ b64, np.abs(a64) @ np.abs(b64), terms=1)


@pytest.mark.parametrize("layout_a", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 7, 3), (37, 41, 43), (301, 97, 300)], ids=shape_id)
def test_layouts_of_inputs_do_not_change_a_bit(dtype, layout_a, shape, rng):
    a, b = operands(rng, "NN", *shape, dtype, normal)
    expected, laid_a = bits(matmul(a, b)), laid_out(a, layout_a)
    for layout_b in LAYOUTS:
        laid_b = laid_out(b, layout_b)
        assert bits(matmul(laid_a, laid_b)) == expected, layout_b
        assert (bits(laid_a), bits(laid_b)) == (bits(a), bits(b))


@pytest.mark.parametrize("shape", [(5, 7, 3), (37, 41, 43), (301, 97, 300)], ids=shape_id)
def test_broadcast_inputs(dtype, shape, rng):
    """Strides of 0 in rows, in columns, in both."""
    M, N, K = shape
    a, b = operands(rng, "NN", *shape, dtype, normal)
    for a_view in (np.broadcast_to(a[:1], (M, K)), np.broadcast_to(a[:, :1], (M, K)), np.broadcast_to(a[0, 0], (M, K))):
        for b_view in (np.broadcast_to(b[:1], (K, N)), np.broadcast_to(b[:, :1], (K, N)), b):
            assert bits(matmul(a_view, b_view)) == bits(matmul(a_view.copy(), b_view.copy()))


OUTPUTS = {
    "padded rows": lambda out: np.full((out.shape[0] + 2, out.shape[1] + 3), 7, out.dtype)[1:-1, 1:-2],
    "column-major": lambda out: np.full(out.shape[::-1], 7, out.dtype).T,
    "padded columns": lambda out: np.full((out.shape[1] + 2, out.shape[0] + 3), 7, out.dtype)[1:-1, 1:-2].T,
    "rows upside down": lambda out: np.full(out.shape, 7, out.dtype)[::-1],
}


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", OUTPUTS)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("transposes", TRANSPOSES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (37, 41, 43), (301, 97, 300)], ids=shape_id)
def test_layouts_of_outputs(dtype, layout, accumulate, transposes, shape, rng):
    """The same bits, and nothing written around them."""
    a, b = operands(rng, transposes, *shape, dtype, normal)
    start = normal(rng, *shape[:2], dtype=dtype)
    out = OUTPUTS[layout](start)
    out[...] = start if accumulate else np.nan
    matmul(a, b, out, accumulate)
    assert bits(out) == bits(matmul(a, b, start.copy(), accumulate))
    if "padded" in layout:
        around = out.base.base if out.base.base is not None else out.base
        assert (around == 7).sum() >= around.size - out.size


@pytest.mark.parametrize("transposes", TRANSPOSES)
@pytest.mark.parametrize(
    "shape", [(9, 3, 17), (40, 33, 40), (301, 97, 300), (130, 700, 1100), (67, 1, 300)], ids=shape_id
)
def test_a_row_alone_has_the_bits_it_has_in_company(dtype, transposes, shape, rng):
    a, b = operands(rng, transposes, *shape, dtype, normal)
    together = matmul(a, b)
    for i in [*range(min(9, len(a))), len(a) // 2, len(a) - 2, len(a) - 1]:
        for rows in (1, 2, 3, 5):
            assert bits(matmul(a[i : i + rows], b)) == bits(together[i : i + rows]), f"row {i}, {rows} of them"


@pytest.mark.parametrize("transposes", TRANSPOSES)
def test_a_column_alone_has_the_bits_it_has_in_company(dtype, transposes, rng):
    a, b = operands(rng, transposes, 130, 131, 300, dtype, normal)
    together = matmul(a, b)
    for j in (0, 1, 7, 8, 31, 32, 64, 129, 130):
        assert bits(matmul(a, b[:, j : j + 1])) == bits(together[:, j : j + 1]), f"column {j}"


@pytest.mark.parametrize("transposes", TRANSPOSES)
def test_accumulating_adds_to_the_sum_in_order(dtype, transposes, rng):
    """Two halves of K, the second accumulated, are the whole to the bit."""
    a, b = operands(rng, transposes, 67, 65, 600, dtype, normal)
    halves = matmul(a[:, 256:], b[256:], matmul(a[:, :256], b[:256]), accumulate=True)
    assert bits(halves) == bits(matmul(a, b))


def test_empty_sums(dtype):
    for M, N in ((0, 3), (3, 0), (3, 5), (0, 0)):
        a, b = np.empty((M, 0), dtype), np.empty((0, N), dtype)
        assert not matmul(a, b).any()
        np.testing.assert_array_equal(matmul(a, b, np.full((M, N), 3, dtype), accumulate=True), 3)


@pytest.mark.parametrize("transposes", TRANSPOSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(5, 7, 3), (37, 41, 43), (301, 97, 300)], ids=shape_id)
def test_nan_and_infinity_stay_in_their_row_and_column(dtype, transposes, bad, shape, rng):
    a, b = operands(rng, transposes, *shape, dtype, normal)
    clean = matmul(a, b)
    a[3, 1] = b[2, 4] = bad
    out = matmul(a, b)
    touched = np.zeros(out.shape, bool)
    touched[3], touched[:, 4] = True, True
    np.testing.assert_array_equal(~np.isfinite(out), touched)
    assert bits(out[~touched]) == bits(clean[~touched])
    b[1, :] = 0
    assert np.isnan(matmul(a, b)[3]).all()


def digest():
    """A hash of products of every kind of shape, after checking each against float64."""
    rng, found = np.random.default_rng(5), hashlib.sha256()
    shapes = [*itertools.product((1, 2, 5, 8, 17, 33), repeat=3), (67, 131, 293), (293, 41, 97), *LARGE]
    for dtype, transposes, shape in itertools.product((np.float32, np.float64), TRANSPOSES, shapes):
        a, b = operands(rng, transposes, *shape, dtype, normal)
        out = matmul(a, b)
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert_close("gemm", out, a @ b, np.abs(a) @ np.abs(b))
        found.update(bits(out))
    return found.hexdigest()
