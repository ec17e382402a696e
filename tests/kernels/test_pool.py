"""Pooling through the public API: the reference against central differences and PyTorch, every backend against the reference."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from arrays import LAYOUTS, all_bits, bits, laid_out, numerical_gradient, unwritten, with_threads
from convs import POOLS, geometry, pair, pool_forward, pool_run, random_pool, torch_pool_run
from error_messages import refuses, refuses_other_types
from tolerances import assert_close

import fastgrad as fg
from fastgrad.functional.geometry import PADDINGS

pytestmark = pytest.mark.cuda

# windows apart, side by side, overlapping and with pixels between; (size, options)
WINDOWS = {
    "2x2": (2, {}),
    "1x1": (1, {}),
    "1x1_stride": (1, {"stride": 2}),
    "stem": (3, {"stride": 2, "padding": 1}),
    "overlapping": (3, {"stride": 1, "padding": 1}),
    "overlapping_even": (4, {"stride": (1, 3), "padding": (2, 0)}),
    "uneven": ((2, 3), {"stride": (3, 1), "padding": (0, 1)}),
    "apart": (2, {"stride": 3}),
    "same": (3, {"stride": 2, "padding": "same"}),
    "same_even": ((2, 4), {"stride": 1, "padding": "same"}),
    "same_apart": (2, {"stride": 3, "padding": "same"}),
    "valid": (3, {"stride": 2, "padding": "valid"}),
    "sides": ((3, 4), {"stride": 2, "padding": ((1, 0), (0, 2))}),
    "side": (3, {"stride": (1, 2), "padding": ((0, 1), 1)}),
    # a last window that ends past the image, past the padding; that begins in the padding, and is dropped
    "ceil": (3, {"stride": 2, "ceil_mode": True}),
    "ceil_apart": (2, {"stride": 3, "ceil_mode": True}),
    "ceil_padding": ((3, 4), {"stride": (2, 3), "padding": (1, 2), "ceil_mode": True}),
    "ceil_dropped": (2, {"stride": 3, "padding": 1, "ceil_mode": True}),
    "ceil_sides": (3, {"stride": (4, 2), "padding": ((0, 1), (1, 0)), "ceil_mode": True}),
    "ceil_same": (2, {"stride": 3, "padding": "same", "ceil_mode": True}),
}
# whose padding PyTorch's pools have as their own, where windows end past it
PYTORCHS = {name: windows for name, windows in WINDOWS.items() if name not in ("ceil_sides", "ceil_same")}
CHANNELS = (1, 5, 8, 17, 64)
IMAGES = ((1, 1), (1, 7), (5, 4), (9, 11))
# past the threading threshold
LARGE = {
    "stem": (3, (61, 47), 67, 3, {"stride": 2, "padding": 1}),
    "images": (130, 7, 19, 2, {}),
    "wide": (1, (3, 900), 33, 3, {"stride": 1, "padding": 1}),
    "whole": (5, (33, 31), 40, (33, 31), {}),
    "channels": (1, (5, 6), 3001, (2, 3), {"stride": 1}),
}


@pytest.fixture(params=POOLS)
def kind(request):
    return request.param


def window(rng, kind, name, dtype=np.float64, n=2, image=(8, 7), channels=3):
    size, options = WINDOWS[name]
    return random_pool(rng, kind, n, image, channels, size, dtype, **options)


def assert_all_close(problem, found, expected):
    assert found.keys() == expected.keys()
    for name, actual in found.items():
        assert actual.dtype == problem.x.dtype
        size = np.abs(expected[name][np.isfinite(expected[name])]).max(initial=1)
        # a pixel is in many windows, a window has many pixels
        pixels = problem.x[0, :, :, 0].size
        assert_close("pool", actual, expected[name], size, terms=pixels)


def assert_matches_reference(problem):
    """Results and gradients of the backend in force, in the problem's dtype, against the reference in float64."""
    found = pool_run(problem)
    with fg.use_backend("numpy"):
        expected = pool_run(problem.map(lambda a: a.astype(np.float64)))
    assert_all_close(problem, found, expected)
    if problem.kind == "max_pool2d":
        np.testing.assert_array_equal(found["y"], expected["y"])


def windows_of(problem):
    """Every window's (i, j) and the slices of its pixels, by the definition."""
    (top, left, _, _), outputs = problem.geometry()
    if problem.kind == "global_avg_pool2d":
        size = stride = problem.x.shape[1:3]
    else:
        size = problem.size if isinstance(problem.size, tuple) else (problem.size,) * 2
        stride = problem.options.get("stride", size)
        stride = stride if isinstance(stride, tuple) else (stride,) * 2
    for i, j in np.ndindex(*outputs):
        row, column = i * stride[0] - top, j * stride[1] - left
        yield (i, j), (slice(max(row, 0), row + size[0]), slice(max(column, 0), column + size[1]))


def counted(problem, i, j):
    """How many pixels of window (i, j) are of the image and its padding."""
    image, pads = problem.x.shape[1:3], problem.geometry()[0]
    size = pair(problem.size)
    stride = pair(problem.options.get("stride", size))
    padded = [pads[axis] + image[axis] + pads[axis + 2] for axis in (0, 1)]
    return np.prod([
        np.isin(range(k * s, k * s + n), range(m)).sum() for k, s, n, m in zip((i, j), stride, size, padded, strict=True)
    ])  # fmt: skip


def by_windows(y):
    """y (N, H', W', C), of a global pool too."""
    return y if y.ndim == 4 else y[:, None, None]


@pytest.mark.parametrize("name", WINDOWS)
def test_reference_gradients_are_central_differences(numpy_backend, kind, name, rng):
    problem = window(rng, kind, name, n=1, image=(5, 4), channels=2)
    # the maximum has no derivative where two values are equal
    problem.x[...] = rng.permutation(problem.x.size).reshape(problem.x.shape) / 10
    found = pool_run(problem)
    numerical = numerical_gradient(lambda: float((pool_forward(problem)[0] * problem.dy).sum()), problem.x)
    assert_close("numerical", found["dx"], numerical, size=20)


@pytest.mark.pairwise
@pytest.mark.parametrize("name", WINDOWS)
def test_is_what_the_definition_says(in_force, dtype, kind, name, rng):
    """Window by window, in a loop over them."""
    problem = window(rng, kind, name, dtype)
    found = pool_run(problem)
    x, dy = problem.x.astype(np.float64), by_windows(problem.dy.astype(np.float64))
    y, dx = np.empty(dy.shape), np.zeros(x.shape)
    for (i, j), pixels in windows_of(problem):
        part = x[:, *pixels]
        n, height, width, channels = part.shape
        flat = part.reshape(n, -1, channels)
        if kind == "max_pool2d":
            y[:, i, j] = flat.max(axis=1)
            share = np.arange(height * width)[:, None] == flat.argmax(axis=1)[:, None]
        else:
            share = np.full(flat.shape, 1 / (counted(problem, i, j) if kind == "avg_pool2d" else height * width))
            y[:, i, j] = (flat * share).sum(axis=1)
        dx[:, *pixels] += (share * dy[:, i, j][:, None]).reshape(part.shape)
    assert_all_close(problem, found, {"y": y.reshape(found["y"].shape), "dx": dx})


@pytest.mark.pairwise
@pytest.mark.parametrize("name", PYTORCHS)
def test_matches_pytorch(in_force, dtype, kind, name, rng, torch):
    """Ties included: PyTorch takes the first of equal values too."""
    for n, image, channels in ((1, (8, 7), 1), (3, (9, 12), 17)):
        problem = window(rng, kind, name, dtype, n, image, channels)
        assert_all_close(problem, pool_run(problem), torch_pool_run(torch, problem))


@pytest.mark.pairwise
@pytest.mark.parametrize("seed", range(30))
def test_random_problems_match_pytorch(in_force, dtype, kind, seed, torch):
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(1, 6, 2))
    image = tuple(int(k + rng.integers(0, 9)) for k in size)
    padding = "same" if rng.random() < 0.3 else tuple(int(rng.integers(0, k // 2 + 1)) for k in size)
    stride = tuple(int(n) for n in rng.integers(1, 5, 2))
    n, channels = (int(n) for n in rng.integers(1, [4, 40]))
    options = {"stride": stride, "padding": padding, "ceil_mode": padding != "same" and rng.random() < 0.6}
    problem = random_pool(rng, kind, n, image, channels, size, dtype, **options)
    assert_all_close(problem, pool_run(problem), torch_pool_run(torch, problem))


def test_include_pad_is_pytorchs_count_include_pad(in_force, dtype, rng, torch):
    for kind, count_include_pad in (("avg_pool2d", True), ("avg_pool2d_without_pad", False)):
        problem = random_pool(rng, kind, 2, (7, 8), 5, (3, 4), dtype, stride=2, padding=(1, 2))
        x = torch.tensor(problem.x.astype(np.float64)).permute(0, 3, 1, 2)
        expected = torch.nn.functional.avg_pool2d(x, (3, 4), 2, (1, 2), count_include_pad=count_include_pad)
        assert_close("pool", pool_run(problem)["y"], expected.permute(0, 2, 3, 1).numpy(), 4, terms=12)


@pytest.mark.pairwise
@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 2), (3, 1), (3, 2), ((2, 5), (3, 1))], ids=str)
def test_matches_the_reference_at_awkward_shapes(in_force, dtype, kind, size, stride, image, rng):
    for channels in CHANNELS:
        options = {"stride": stride, "padding": "same"}
        assert_matches_reference(random_pool(rng, kind, 2, image, channels, size, dtype, **options))


@pytest.mark.pairwise
@pytest.mark.parametrize("name", LARGE)
def test_matches_the_reference_at_large_shapes(in_force, dtype, kind, name, rng):
    n, image, channels, size, options = LARGE[name]
    assert_matches_reference(random_pool(rng, kind, n, image, channels, size, dtype, **options))


@pytest.mark.pairwise
@pytest.mark.parametrize("name", WINDOWS)
def test_no_images(in_force, dtype, kind, name, rng):
    problem = window(rng, kind, name, dtype, n=0)
    found = pool_run(problem)
    assert found["y"].shape == problem.dy.shape
    assert found["dx"].shape == problem.x.shape
    assert {a.dtype for a in found.values()} == {dtype}


def test_one_pixel_is_its_own_maximum_and_mean(in_force, dtype, kind, rng):
    for size, padding in ((1, 0), (3, "same"), (2, 1)):
        if size == 2:
            # four windows, each with the pixel
            problem = random_pool(rng, kind, 3, 1, 5, size, dtype, stride=1, padding=padding)
        else:
            problem = random_pool(rng, kind, 3, 1, 5, size, dtype, padding=padding)
        found = pool_run(problem)
        share = 1 / size**2 if kind == "avg_pool2d" else 1
        y = by_windows(found["y"])
        np.testing.assert_allclose(y, np.broadcast_to(problem.x * share, y.shape), rtol=1e-6)
        dx = by_windows(problem.dy).astype(np.float64).sum(axis=(1, 2), keepdims=True) * share
        assert_close("pool", found["dx"], dx, 4)


@pytest.mark.pairwise
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", WINDOWS)
def test_nan_and_infinity_stay_within_the_windows_that_see_them(in_force, dtype, kind, name, bad, rng):
    problem = window(rng, kind, name, dtype, n=3, channels=9)
    clean = pool_run(problem)
    row, column, channel = 2, 3, 4
    x = problem.x.copy()
    x[1, row, column, channel] = bad
    found = pool_run(replace(problem, x=x))
    expected = by_windows(clean["y"].copy())
    for (i, j), (rows, columns) in windows_of(problem):
        if rows.start <= row < rows.stop and columns.start <= column < columns.stop:
            lowest = kind == "max_pool2d" and bad == -np.inf
            expected[1, i, j, channel] = x[1, rows, columns, channel].max() if lowest else bad
    np.testing.assert_array_equal(by_windows(found["y"]), expected)
    if kind == "max_pool2d":
        # the gradient goes to what was taken: nothing is lost, and nothing goes anywhere else
        assert_all_close(problem, {"dx": found["dx"]}, {"dx": gradient_of_maximum(replace(problem, x=x))})
    else:
        assert bits(found["dx"]) == bits(clean["dx"])


def gradient_of_maximum(problem):
    """dx in float64, in a loop over windows; argmax takes the first NaN, or the first of equal values."""
    x, dy = problem.x.astype(np.float64), problem.dy.astype(np.float64)
    dx = np.zeros(x.shape)
    for (i, j), (rows, columns) in windows_of(problem):
        part = x[:, rows, columns]
        for n, c in np.ndindex(len(x), x.shape[3]):
            a, b = np.unravel_index(part[n, :, :, c].argmax(), part.shape[1:3])
            dx[n, rows.start + a, columns.start + b, c] += dy[n, i, j, c]
    return dx


@pytest.mark.pairwise
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -7.0])
@pytest.mark.parametrize("name", WINDOWS)
def test_the_gradient_of_a_constant_image_goes_to_the_first_pixel_of_a_window(in_force, dtype, name, value, rng):
    """Never to the padding, though of -inf that has the largest value too."""
    problem = window(rng, "max_pool2d", name, dtype, channels=17)
    problem.x[...] = value
    found = pool_run(problem)
    np.testing.assert_array_equal(found["y"], np.full(problem.dy.shape, value))
    assert_all_close(problem, {"dx": found["dx"]}, {"dx": gradient_of_maximum(problem)})


def test_zeros_of_either_sign_are_equal(in_force, dtype, rng):
    problem = random_pool(rng, "max_pool2d", 2, (6, 8), 17, 2, dtype)
    problem.x[...] = rng.choice(np.array([0.0, -0.0], dtype), problem.x.shape)
    expected = np.zeros(problem.x.shape, dtype)
    expected[:, ::2, ::2] = problem.dy
    np.testing.assert_array_equal(pool_run(problem)["dx"], expected)


def test_negative_images_are_larger_than_the_padding(in_force, dtype, rng):
    problem = random_pool(rng, "max_pool2d", 2, (5, 6), 17, 3, dtype, stride=2, padding=1)
    problem.x[...] = -np.abs(problem.x) - 1
    assert (pool_run(problem)["y"] <= -1).all()
    assert_matches_reference(problem)


@pytest.mark.pairwise
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", WINDOWS)
def test_nan_and_infinity_upstream_stay_within_their_window(in_force, dtype, kind, name, bad, rng):
    problem = window(rng, kind, name, dtype, channels=9)
    clean = pool_run(problem)
    dy = problem.dy.copy()
    by_windows(dy)[1, -1, -1, 4] = bad
    found = pool_run(replace(problem, dy=dy))
    touched = np.zeros(problem.x.shape, bool)
    for (i, j), (rows, columns) in windows_of(problem):
        if (i, j) == tuple(n - 1 for n in by_windows(dy).shape[1:3]):
            part = touched[1, rows, columns, 4]
            if kind == "max_pool2d":
                part.flat[problem.x[1, rows, columns, 4].argmax()] = True
            else:
                part[...] = True
    assert touched.any()
    np.testing.assert_array_equal(found["dx"], np.where(touched, bad, clean["dx"]))


@pytest.mark.parametrize("kind", POOLS[1:])
def test_the_mean_of_large_values_does_not_overflow_without_need(in_force, dtype, kind):
    """Sums that stay below the largest number; one above it is infinity, in every backend, and no warning."""
    largest = np.finfo(dtype).max
    for value, expected in ((largest / 8, largest / 8), (largest, np.inf)):
        x = np.full((1, 2, 2, 3), value, dtype)
        y = pool_forward(replace(random_pool(np.random.default_rng(0), kind, 1, 2, 3, 2, dtype), x=x))[0]
        np.testing.assert_array_equal(by_windows(y), np.full((1, 1, 1, 3), expected))


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter_and_inputs_are_not_written(in_force, dtype, kind, layout, rng):
    for name in ("2x2", "stem", "same_even"):
        problem = window(rng, kind, name, dtype, channels=17)
        before = bits(problem.x), bits(problem.dy)
        laid = problem.map(lambda a: laid_out(a, layout))
        assert all_bits(pool_run(laid)) == all_bits(pool_run(problem))
        for one in ({"x": laid.x}, {"dy": laid.dy}):
            assert all_bits(pool_run(replace(problem, **one))) == all_bits(pool_run(problem))
        assert (bits(laid.x), bits(laid.dy)) == (bits(problem.x), bits(problem.dy)) == before


def test_broadcast_inputs(in_force, dtype, kind, rng):
    problem = window(rng, kind, "stem", dtype, channels=17)
    wide = problem.map(lambda a: np.broadcast_to(a[..., :1], a.shape))
    assert all_bits(pool_run(wide)) == all_bits(pool_run(wide.map(np.array)))


@pytest.mark.pairwise
@pytest.mark.parametrize("name", WINDOWS)
def test_backward_runs_again_and_its_gradient_is_the_callers_own(in_force, dtype, kind, name, rng):
    problem = window(rng, kind, name, dtype)
    y, backward = pool_forward(problem)
    kept, before = bits(y), (bits(problem.x), bits(problem.dy))
    dx = backward(problem.dy)
    first = bits(dx)
    assert not any(np.shares_memory(dx, a) for a in (y, problem.x, problem.dy))
    assert not np.shares_memory(y, problem.x)
    dx[...] = np.nan
    assert bits(backward(problem.dy)) == first
    assert bits(y) == kept
    assert (bits(problem.x), bits(problem.dy)) == before


def large_or_window(rng, kind, name, dtype, n):
    if name in LARGE:
        n, image, channels, size, options = LARGE[name]
        return random_pool(rng, kind, n, image, channels, size, dtype, **options)
    return window(rng, kind, name, dtype, n, channels=17)


@pytest.mark.pairwise
@pytest.mark.parametrize("name", [*WINDOWS, *LARGE])
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, kind, name, rng):
    problem = large_or_window(rng, kind, name, dtype, n=3)
    first, *others = with_threads(lambda: all_bits(pool_run(problem)))
    assert all(other == first for other in others)


@pytest.mark.pairwise
@pytest.mark.parametrize("name", [*WINDOWS, *LARGE])
def test_an_image_alone_has_the_bits_it_has_in_a_batch(cpu, dtype, kind, name, rng):
    problem = large_or_window(rng, kind, name, dtype, n=5)
    together, n = pool_run(problem), len(problem.x)
    for first, count in product({0, n // 2, n - 1}, (1, 2)):
        rows = slice(first, first + count)
        alone = pool_run(problem.map(lambda a, rows=rows: a[rows]))
        assert all_bits(alone) == {name: bits(a[rows]) for name, a in together.items()}


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 1, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_kernels_take_uneven_padding_and_write_every_output_and_nothing_else(backend, dtype, stride, pads, rng):
    size, (top, left, bottom, right) = (3, 2), pads
    x = np.round(rng.standard_normal((2, 6, 7, 17)).astype(dtype), 1)
    around = ((0, 0), (top, bottom), (left, right), (0, 0))
    outputs = geometry((6 + top + bottom, 7 + left + right), size, stride)[1]
    dy = rng.standard_normal((2, *outputs, 17)).astype(dtype)
    inside = np.s_[:, top : top + 6, left : left + 7]
    buffers = []

    def output(shape):
        buffers.append(np.full(int(np.prod(shape)) + 128, 7, dtype))
        array = buffers[-1][64:-64].reshape(shape)
        array[...] = unwritten(shape, dtype)
        return array

    def expect(kind, value):
        padded = np.pad(x.astype(np.float64), around, constant_values=value)
        with fg.use_backend("numpy"):
            found = pool_run(replace(random_pool(rng, kind, 2, padded.shape[1:3], 17, size, stride=stride), x=padded,
                                     dy=dy.astype(np.float64)))  # fmt: skip
        return found["y"], found["dx"][inside]

    y, dx = output(dy.shape), output(x.shape)
    backend.max_pool2d_forward(x, size, stride, pads, y)
    backend.max_pool2d_backward(dy, x, y, size, stride, pads, dx)
    for actual, expected in zip((y, dx), expect("max_pool2d", -np.inf), strict=True):
        assert_close("pool", actual, expected, 4)
    y, dx = output(dy.shape), output(x.shape)
    backend.avg_pool2d_forward(x, size, stride, pads, True, y)
    backend.avg_pool2d_backward(dy, size, stride, pads, True, dx)
    for actual, expected in zip((y, dx), expect("avg_pool2d", 0), strict=True):
        assert_close("pool", actual, expected, 4)
    y, dx = output(dy.shape), output(x.shape)
    backend.avg_pool2d_forward(np.ones_like(x), size, stride, pads, False, y)
    backend.avg_pool2d_backward(dy, size, stride, pads, False, dx)
    assert_close("pool", y, np.ones(y.shape), terms=6)
    # all of every upstream value comes down
    come, given = (a.astype(np.float64).sum(axis=(1, 2)) for a in (dx, dy))
    assert_close("pool", come.astype(dtype), given, np.abs(dy).sum(axis=(1, 2)).max())
    for buffer in buffers:
        np.testing.assert_array_equal(buffer[:64], 7)
        np.testing.assert_array_equal(buffer[-64:], 7)


# bad input, exact messages


POOL_FUNCTIONS = ("max_pool2d", "avg_pool2d")


@pytest.mark.parametrize("op", [*POOL_FUNCTIONS, "global_avg_pool2d"])
def test_bad_images_are_refused(op):
    size = () if op == "global_avg_pool2d" else (2,)

    def fails(x, message):
        refuses(ValueError, f"{op}: x must {message}", getattr(fg, op), x, *size)

    x = np.ones((2, 5, 4, 3), np.float32)
    fails(x[0], "be (N, H, W, C), got (5, 4, 3)")
    fails(x[:, :0], "have at least one row, column and channel, got (2, 0, 4, 3)")
    fails(x[:, :, :0], "have at least one row, column and channel, got (2, 5, 0, 3)")
    fails(x[..., :0], "have at least one row, column and channel, got (2, 5, 4, 0)")
    refuses_other_types(op, "x", x, lambda value: getattr(fg, op)(value, *size), first=True)


@pytest.mark.parametrize("op", POOL_FUNCTIONS)
@pytest.mark.parametrize(
    ("error", "size", "options", "message"),
    [
        (ValueError, 0, {}, "size must be an integer of at least 1, got 0"),
        (ValueError, (2, -1), {}, "size must be an integer of at least 1, got -1"),
        (TypeError, 2.0, {}, "size must be an integer, got float"),
        (TypeError, None, {}, "size must be an integer, got NoneType"),
        (ValueError, (2, 2, 2), {}, "size must be an integer or a pair (vertical, horizontal), got (2, 2, 2)"),
        (ValueError, 5, {}, "size must be at most the padded image (5, 4), got (5, 5)"),
        (ValueError, (6, 1), {}, "size must be at most the padded image (5, 4), got (6, 1)"),
        (ValueError, 7, {"padding": (0, 1)}, "size must be at most the padded image (5, 6), got (7, 7)"),
        (ValueError, 2, {"stride": 0}, "stride must be an integer of at least 1, got 0"),
        (TypeError, 2, {"stride": (2, 1.5)}, "stride must be an integer, got float"),
        (ValueError, 2, {"stride": (2,)}, "stride must be an integer or a pair (vertical, horizontal), got (2,)"),
        (ValueError, 3, {"padding": 2}, "padding must be at most half of size (3, 3), got (2, 2)"),
        (ValueError, (2, 1), {"padding": 1}, "padding must be at most half of size (2, 1), got (1, 1)"),
        (ValueError, 2, {"padding": -1}, "padding must be an integer of at least 0, got -1"),
        (TypeError, 2, {"padding": 0.0}, "padding must be an integer, got float"),
        (ValueError, 2, {"padding": "full"}, f"padding must be {PADDINGS}, got 'full'"),
        (ValueError, 2, {"padding": ((1, 0, 0), 1)}, f"padding must be {PADDINGS}, got ((1, 0, 0), 1)"),
        (ValueError, 2, {"padding": ((0, 2), 0)}, "padding must be at most half of size (2, 2), got ((0, 2), (0, 0))"),
        (ValueError, 7, {"stride": 2, "ceil_mode": True}, "size must be at most the padded image (5, 4), got (7, 7)"),
    ],
)
def test_bad_options_are_refused(op, error, size, options, message):
    x = np.ones((2, 5, 4, 3), np.float32)
    refuses(error, f"{op}: {message}", getattr(fg, op), x, size, **options)


def test_options_are_keyword_only():
    for op in POOL_FUNCTIONS:
        with pytest.raises(TypeError, match="positional"):
            getattr(fg, op)(np.ones((2, 5, 4, 3)), 2, 2)


def test_bad_upstream_gradients_are_refused_and_leave_the_next_as_it_was(kind, rng):
    problem = random_pool(rng, kind, 2, (5, 4), 3, 2, np.float32)
    op, y = kind.removesuffix("_without_pad"), problem.dy
    _, backward = pool_forward(problem)
    before = bits(backward(y))
    refuses(TypeError, f"{op}: backward needs dy, an array {y.shape} like the output, got None", backward, None)
    wrong = f"{op}: dy must be like the output = {y.shape}, got"
    refuses(ValueError, f"{wrong} (2, 5, 4, 3)", backward, problem.x)
    refuses(ValueError, f"{wrong} {y.shape[1:]}", backward, y[0])
    mixed = f"{op}: dy must be float32, got float64 (one call has one dtype)"
    refuses(TypeError, mixed, backward, y.astype(np.float64))
    assert bits(backward(y)) == before
