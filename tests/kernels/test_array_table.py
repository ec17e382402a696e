"""The table of a list of arrays is what NumPy says of each, and plain lists are told from others."""

import numba
import numpy as np
import pytest
from arrays import LAYOUTS, laid_out

from fastgrad.core.array_list import ArrayList, check_same_shapes
from fastgrad.kernels.cpu.engine import array_table


def test_the_table_is_what_numpy_says(dtype, rng):
    arrays = [np.zeros(rng.integers(0, 5, rng.integers(0, 6)), dtype) for _ in range(200)]
    arrays += [np.zeros(3 * array_table.BLOCK + 1, dtype), np.zeros((), dtype)]
    rows = array_table.table(arrays)
    assert rows[:-1, array_table.ADDRESS].tolist() == [a.ctypes.data for a in arrays]
    sizes = [a.size for a in arrays]
    assert np.diff(rows[:, array_table.START]).tolist() == sizes
    assert np.diff(rows[:, array_table.SUMS]).tolist() == [-(-n // array_table.BLOCK) for n in sizes]
    assert array_table.table(arrays)[:-1, array_table.ADDRESS].tolist() == [a.ctypes.data for a in arrays]


def test_blocks_of_rows_are_whole_rows():
    arrays = [np.zeros((1000, 40)), np.zeros((70, 20_000)), np.zeros((0, 7))]
    rows = array_table.table(arrays, np.array([40, 20_000, 7]))
    assert rows[:-1, array_table.LENGTH].tolist() == [
        array_table.BLOCK // 40 * 40,
        64 * 20_000,
        array_table.BLOCK // 7 * 7,
    ]
    assert rows[:, array_table.SUMS].tolist() == [0, 3 * 40, 3 * 40 + 2 * 20_000, 3 * 40 + 2 * 20_000]


@numba.njit
def walk(t, n, lo, hi):
    """The blocks that begin in lo .. hi: array, first value, values, place of the sums."""
    found = []
    a, at = array_table.first_block(t, n, lo)
    while a < n and t[a, array_table.START] + at < hi:
        found.append((a, at, array_table.block_size(t, a, at), array_table.sums_of(t, a, at)))
        a, at = array_table.next_block(t, n, a, at)
    return found


@numba.njit
def walk_back(t, n, lo, hi):
    found = []
    a, at = array_table.previous_block(t, *array_table.first_block(t, n, hi))
    while a >= 0 and t[a, array_table.START] + at >= lo:
        found.append((a, at, array_table.block_size(t, a, at), array_table.sums_of(t, a, at)))
        a, at = array_table.previous_block(t, a, at)
    return found


@pytest.mark.parametrize("grain", [7, 64, 1000, 10_000_000])
def test_every_block_is_in_one_share_and_both_ways_meet_the_same(grain):
    sizes = [0, 5, 0, 0, 40_000, 1, 16_384, 0, 16_385, 0]
    rows, n, total = array_table.table([np.zeros(size, np.float32) for size in sizes]), len(sizes), sum(sizes)
    blocks = [
        (a, at, min(array_table.BLOCK, size - at))
        for a, size in enumerate(sizes)
        for at in range(0, size, array_table.BLOCK)
    ]
    blocks = [(*block, number) for number, block in enumerate(blocks)]
    found = []
    for lo in range(0, total, grain):
        here = walk(rows, n, lo, lo + grain)
        assert walk_back(rows, n, lo, lo + grain) == here[::-1]
        found += here
    assert found == blocks


def test_plain_lists_are_told_from_others(backend):
    single, double = np.zeros((2, 3), np.float32), np.zeros(2)
    for arrays in ([single], [single, single[:0], single[0]], [double] * 20):
        assert backend.plain(arrays)
    read_only, text = laid_out(single, "read_only"), "no array"
    for other in (
        single.T,
        double,
        read_only,
        text,
        None,
        1.0,
        np.float32(1),
        single.astype(int),
        single.astype(">f4"),
    ):
        assert not backend.plain([single, other])
        assert not backend.plain([other, other]) or other is double
    for other in (np.zeros(2).view(np.recarray), np.ma.zeros(2), np.zeros(2, np.int64), laid_out(double, "misaligned")):
        assert not backend.plain([other])


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "read_only"])
def test_copies_are_written_back(in_force, layout, dtype, rng):
    values = rng.standard_normal((4, 5)).astype(dtype)
    array, other, expected = laid_out(values, layout), values.copy(), 2 * values
    arrays = ArrayList("op", "grads", [other, array])
    for flat in arrays.flat:
        assert flat.flags.carray
        flat *= 2
    arrays.write()
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(other, expected)


def test_lists_that_are_refused(in_force):
    single, double = np.zeros((2, 3), np.float32), np.zeros(2)
    with pytest.raises(ValueError, match=r"^op: grads must have length at least 1, got 0$"):
        ArrayList("op", "grads", [])
    with pytest.raises(TypeError, match=r"^op: grads must be a list or tuple, got dict$"):
        ArrayList("op", "grads", {"w": single})
    with pytest.raises(TypeError, match=r"^op: grads\[1\] must be float32, got float64 \(one call has one dtype\)$"):
        ArrayList("op", "grads", (single, double))
    with pytest.raises(TypeError, match=r"^op: grads\[0\] must be float64, got float32"):
        ArrayList("op", "grads", [single], double)
    with pytest.raises(TypeError, match=r"^op: grads\[1\] must be a NumPy array, got NoneType"):
        ArrayList("op", "grads", [single, None])
    with pytest.raises(TypeError, match=r"^op: grads must be float32 or float64 in native byte order, got int64$"):
        ArrayList("op", "grads", np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"^op: grads\[0\] must be writable, got a read-only array$"):
        ArrayList("op", "grads", [laid_out(single, "read_only")])
    assert ArrayList("op", "params", [laid_out(single, "read_only")], written=False).flat[0].shape == (2, 3)
    with pytest.raises(ValueError, match=r"^op: grads must have length 2 like params, got 1$"):
        check_same_shapes("op", "grads", [single], "params", [single, double])
    with pytest.raises(ValueError, match=r"^op: grads\[0\] must be \(2,\) like params\[0\], got \(2, 3\)$"):
        check_same_shapes("op", "grads", [single], "params", [double])
