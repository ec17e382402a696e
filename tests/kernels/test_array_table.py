"""The table of a list of arrays is what NumPy says of each, and its blocks are walked in order."""

import numba
import numpy as np
import pytest

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
