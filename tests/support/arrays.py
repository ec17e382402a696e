"""Arrays in every memory layout, outputs filled with NaN, numerical gradients, and the same bits on any number of threads."""

import numpy as np
from tolerances import assert_close

import fastgrad as fg
from fastgrad.core import allocator

LAYOUTS = (
    "contiguous", "fortran", "strided", "padded", "reversed", "backwards", "misaligned", "read_only",
)  # fmt: skip


def laid_out(array, layout):
    """An equal array with the memory layout of that name."""
    match layout:
        case "contiguous":
            return np.ascontiguousarray(array)
        case "fortran":
            return np.asfortranarray(array)
        case "strided":
            wide = np.full([2 * n for n in array.shape], np.nan, array.dtype)
            view = wide[(slice(None, None, 2),) * array.ndim]
        case "padded":
            wide = np.full([n + 3 for n in array.shape], np.nan, array.dtype)
            view = wide[tuple(slice(1, 1 + n) for n in array.shape)]
        case "reversed":
            view = np.empty_like(array)[(slice(None, None, -1),) * array.ndim]
        case "backwards":
            view = np.empty_like(array, order="F")[::-1]
        case "misaligned":
            view = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        case "read_only":
            view = array.copy()
            view.flags.writeable = False
            return view
    view[...] = array
    return view


def unwritten(shape, dtype):
    """An output, where the library has its own: whatever a kernel leaves unwritten is NaN."""
    array = allocator.empty(shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype))
    array[...] = np.nan
    return array


def numerical_gradient(function, array):
    """Central differences of the scalar function() in every element of float64 `array`, which is restored."""
    gradient, step = np.empty_like(array), 1e-6
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = function()
        array[index] = value - step
        below = function()
        array[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient


def assert_is_gradient(gradient, function, array, directions=8):
    """gradient is that of the scalar function() in float64 `array`, which is restored: along random directions of length 1, each of which
    changes all elements, its products with them are central differences. In many elements that takes fewer calls than one at a time.
    """
    assert gradient.shape == array.shape
    rng, start, step = np.random.default_rng(6), array.copy(), 1e-6
    for _ in range(min(directions, array.size)):
        direction = rng.standard_normal(array.shape)
        direction /= np.linalg.norm(direction)
        array[...] = start + step * direction
        above = function()
        array[...] = start - step * direction
        below = function()
        array[...] = start
        assert_close("numerical", np.vdot(gradient, direction), (above - below) / (2 * step), size=10)


def bits(array):
    """The bytes of an array's values, in row order: equal bits mean equal results, NaN included."""
    return np.ascontiguousarray(array).tobytes()


def all_bits(found):
    """The bits of arrays by name."""
    return {name: bits(a) for name, a in found.items()}


def with_threads(function):
    """What function() gives on 1, 2, 3 and 7 threads."""
    before, results = fg.get_num_threads(), []
    try:
        for n in (1, 2, 3, 7):
            fg.set_num_threads(n)
            results.append(function())
    finally:
        fg.set_num_threads(before)
    return results
