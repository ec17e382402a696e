"""Convolution through the public API: the reference against central differences and PyTorch, every backend against the reference."""

from dataclasses import replace
from itertools import cycle, product

import numpy as np
import pytest
from arrays import LAYOUTS, all_bits, assert_is_gradient, bits, laid_out, with_threads
from convs import (
    INPUTS,
    conv_forward,
    conv_loss,
    conv_run,
    conv_terms,
    geometry,
    kernel_run,
    pair,
    random_conv,
    torch_conv_run,
)
from tolerances import assert_close

import fastgrad as fg
from fastgrad.kernels.types import ACTIVATIONS

pytestmark = pytest.mark.cuda

# what a convolution may have beside its kernel: (channels, outputs, kernel, options)
OPTIONS = {
    "plain": (3, 4, (3, 2), {}),
    "1x1": (3, 4, 1, {}),
    "1x1_stride": (3, 4, 1, {"stride": 2}),
    "stride": (3, 4, (3, 2), {"stride": (2, 1)}),
    "stride_past_the_kernel": (3, 4, (2, 1), {"stride": (3, 2)}),
    "padding": (3, 4, (3, 2), {"padding": 1}),
    "paddings": (3, 4, (2, 3), {"padding": (1, 2)}),
    "same": (3, 4, (3, 2), {"padding": "same"}),
    "same_stride": (3, 4, (4, 3), {"padding": "same", "stride": 3}),
    "dilation": (3, 4, (2, 3), {"dilation": (3, 1), "padding": 1}),
    "groups": (4, 6, (3, 2), {"groups": 2, "padding": 1}),
    "depthwise": (4, 4, 3, {"groups": 4, "padding": "same"}),
    "depthwise_multiplier": (3, 6, 2, {"groups": 3, "stride": 2}),
    # enough channels for kernels/cpu/winograd.py
    "tiles": (9, 18, 3, {"padding": 1}),
    "tiles_within": (17, 8, 3, {}),
    "tiles_5x5": (9, 18, 5, {"padding": 2}),
    "tiles_5x5_sides": (9, 18, 5, {"padding": ((4, 1), (0, 3))}),
    "valid": (3, 4, (3, 2), {"padding": "valid"}),
    "sides": (3, 4, (3, 2), {"padding": ((2, 0), (0, 1))}),
    "sides_stride": (3, 4, (4, 3), {"padding": ((0, 3), 1), "stride": (3, 2)}),
    "sides_groups": (4, 6, (3, 2), {"groups": 2, "padding": (1, (1, 0)), "dilation": 2}),
    "sides_depthwise": (4, 4, 3, {"groups": 4, "padding": ((0, 2), (1, 0))}),
    "tiles_sides": (9, 18, 3, {"padding": ((2, 0), (1, 2))}),
    "everything": (4, 6, (3, 2), {"groups": 2, "padding": (2, 1), "dilation": (1, 2), "stride": (2, 1)}),
}
IMAGES = ((1, 1), (1, 7), (5, 4), (9, 11))
KERNELS = (
    ((1, 1), {}), ((1, 3), {}), ((3, 3), {}), ((5, 5), {}), ((7, 7), {"stride": 2}), ((2, 2), {}), ((4, 4), {}),
    ((3, 3), {"stride": 2}), ((1, 1), {"stride": 2}), ((3, 3), {"dilation": 2}),
)  # fmt: skip
CHANNELS, OUTPUTS = (1, 3, 5, 16, 17, 33), (1, 7, 16, 19, 64)
# past the blocks of every dimension and past the threading threshold
LARGE = {
    "odd": (3, (33, 31), 17, 35, 3, {"padding": 1}),
    "body": (4, 32, 64, 64, 3, {"padding": 1}),
    "stem": (5, 28, 3, 32, 7, {"stride": 2, "padding": 3}),
    "odd_stem": (3, (17, 22), 2, 35, (5, 3), {"stride": (3, 2), "padding": (2, 0)}),
    "down": (3, (31, 30), 33, 66, 3, {"stride": 2, "padding": "same"}),
    "projection": (3, (31, 30), 33, 66, 1, {"stride": 2}),
    "1x1": (2, (29, 31), 300, 130, 1, {}),
    "deep": (1, (9, 8), 310, 70, 3, {"padding": 1}),
    "narrow": (5, (41, 3), 12, 31, 3, {"padding": 2}),
    "5x5": (2, (21, 40), 20, 24, 5, {"padding": 2, "residual": True}),
    "dilated": (2, (27, 30), 19, 21, 3, {"dilation": 4, "padding": 4}),
    "groups": (3, (25, 24), 48, 80, 3, {"groups": 4, "padding": 1}),
    "depthwise": (3, (33, 31), 67, 67, 3, {"groups": 67, "padding": "same"}),
    "depthwise_stride": (2, (30, 45), 40, 40, 5, {"groups": 40, "stride": 2, "padding": 2}),
    "wide": (1, (3, 400), 16, 16, (1, 9), {"padding": "same"}),
    "images": (130, 4, 8, 12, 3, {"padding": 1}),
    # of kernels/cpu/winograd_weights.py: channels and outputs in panels
    "panels": (5, (9, 8), 190, 215, 3, {"padding": 1}),
    "panels_5x5": (2, (11, 12), 190, 215, 5, {"padding": 2}),
    "few_tiles_5x5": (1, (12, 11), 150, 150, 5, {"padding": 2}),
    # of kernels/cpu/conv.py: outputs shared by threads, w in several blocks, and tiles of three vectors, in either dtype
    "few_pixels": (2, (5, 6), 130, 128, 3, {"stride": 2, "padding": 1}),
    "few_pixels_1x1": (1, 5, 200, 192, 1, {}),
    "blocks": (2, (31, 29), 120, 500, 1, {}),
    "three_vectors": (2, (19, 18), 10, 24, 3, {"stride": 2}),
    "three_vectors_1x1": (2, (19, 18), 10, 12, 1, {}),
    # of kernels/cpu/conv_inputs.py and conv_weights.py
    "many_pixels": (3, (65, 67), 3, 16, 3, {"padding": 1, "stride": (1, 2)}),
}


def option(rng, name, dtype=np.float64, n=2, image=(6, 5), **more):
    if name.startswith("tiles_5x5"):
        # enough tiles for kernels/cpu/winograd.py
        image = (12, 13)
    channels, outputs, size, options = OPTIONS[name]
    return random_conv(rng, n, image, channels, outputs, size, dtype, **options, **more)


def large(rng, name, dtype):
    n, image, channels, outputs, size, options = LARGE[name]
    return random_conv(rng, n, image, channels, outputs, size, dtype, **options)


def assert_all_close(problem, found, expected):
    """Errors are measured against the largest value of an array, and 1, where sums of a few terms may cancel."""
    assert found.keys() == expected.keys()
    for name, terms in conv_terms(problem).items():
        if name in found:
            assert found[name].dtype == problem.x.dtype
            size = np.abs(expected[name][np.isfinite(expected[name])]).max(initial=1)
            assert_close("conv", found[name], expected[name], size, terms)


def assert_matches_reference(problem):
    """Results and gradients of the backend in force, in the problem's dtype, against the reference in float64."""
    found = conv_run(problem)
    with fg.use_backend("numpy"):
        expected = conv_run(problem.map(lambda a: a.astype(np.float64)))
    assert_all_close(problem, found, expected)
    return found


def assert_untouched(name, found, expected):
    """To the bit; but a tile with a value that is not finite is made another way."""
    if name.startswith("tiles"):
        assert_close("conv", found, expected, np.abs(expected[np.isfinite(expected)]).max(), terms=200)
    else:
        np.testing.assert_array_equal(found, expected)


def kink_distance(problem):
    """How far from a kink of the activation every z is: rounding must not move a z across one."""
    with fg.use_backend("numpy"):
        identity = {**problem.options, "activation": "identity"}
        z, _ = conv_forward(replace(problem.map(lambda a: a.astype(np.float64)), options=identity))
    return min(np.abs(z - kink).min() for kink in (0, 1, 6))


def pixels_under(problem, i, j):
    """(a, b, row, column) of a window: its place a, b lies on that pixel, perhaps of the padding. By the definition."""
    (top, left, _, _), _ = problem.geometry()
    (sh, sw), (dh, dw) = (pair(problem.options.get(name, 1)) for name in ("stride", "dilation"))
    for a, b in np.ndindex(*problem.w.shape[:2]):
        yield a, b, i * sh + a * dh - top, j * sw + b * dw - left


# to the reference, what is made in tiles elsewhere is a convolution like the others, with so many weights that it takes seconds
@pytest.mark.parametrize("name", [name for name in OPTIONS if not name.startswith("tiles")])
def test_reference_gradients_are_central_differences(numpy_backend, name, rng):
    problem = option(rng, name, image=(4, 4), residual=True, activation="tanh")
    found = conv_run(problem)
    for which, array in problem.named(INPUTS).items():
        assert_is_gradient(found[f"d{which}"], lambda: conv_loss(problem), array)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, ("leaky_relu", 0.3), ("clipped_relu", 0.5), ("elu", 0.7)])
def test_reference_gradients_of_every_activation_are_central_differences(numpy_backend, activation, rng):
    problem = random_conv(rng, 2, (2, 3), 2, 3, 2, residual=True, padding=1, activation=activation)
    found = conv_run(problem)
    for which, array in problem.named(INPUTS).items():
        assert_is_gradient(found[f"d{which}"], lambda: conv_loss(problem), array)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("given", [(), ("b",), ("residual",), ("b", "residual")], ids="+".join)
@pytest.mark.parametrize("activation", ["identity", "gelu"])
def test_gradients_come_in_the_order_of_the_given_inputs(in_force, given, activation, rng):
    options = {"bias": "b" in given, "residual": "residual" in given, "activation": activation}
    problem = option(rng, "everything", n=1, image=(4, 3), **options)
    _, backward = conv_forward(problem)
    gradients = backward(problem.dy)
    assert isinstance(gradients, tuple)
    for gradient, array in zip(gradients, problem.named(INPUTS).values(), strict=True):
        assert_is_gradient(gradient, lambda: conv_loss(problem), array)


@pytest.mark.parametrize("name", OPTIONS)
def test_matches_pytorch(in_force, dtype, name, rng, torch):
    for n, image in ((1, (6, 5)), (3, (11, 13))):
        problem = option(rng, name, dtype, n, image, residual=n == 3, activation="silu")
        assert_all_close(problem, conv_run(problem), torch_conv_run(torch, problem))


def random_problem(rng, dtype):
    """Any shape and any options that fit it."""
    size, dilation = (tuple(int(n) for n in rng.integers(1, most, 2)) for most in (6, 4))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)]
    image = tuple(int(r + rng.integers(0, 9)) for r in reach)
    padding = "same" if rng.random() < 0.3 else tuple(int(rng.integers(0, r)) for r in reach)
    groups = int(rng.choice([1, 1, 2, 3, 8]))
    channels, outputs = (groups * int(n) for n in rng.integers(1, 20 // groups + 1, 2))
    options = {"stride": tuple(int(n) for n in rng.integers(1, 4, 2)), "padding": padding, "dilation": dilation}
    activation = rng.choice(["identity", "tanh", "gelu", "softmax"])
    bias, residual, n = rng.random() < 0.7, rng.random() < 0.5, int(rng.integers(1, 5))
    return random_conv(
        rng, n, image, channels, outputs, size, dtype,
        bias=bias, residual=residual, groups=groups, activation=str(activation), **options,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_random_problems_match_pytorch(in_force, dtype, seed, torch):
    problem = random_problem(np.random.default_rng(seed), dtype)
    assert_all_close(problem, conv_run(problem), torch_conv_run(torch, problem))


@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize(("size", "options"), KERNELS, ids=str)
def test_matches_the_reference_at_awkward_shapes(in_force, dtype, size, options, image, rng):
    """Every number of channels, and every number of outputs, on both sides of a vector and of several."""
    options = {"padding": "same", **options}
    for channels, outputs in [*zip(CHANNELS, cycle(OUTPUTS), strict=False), (16, 64), (3, 64), (17, 19)]:
        assert_matches_reference(random_conv(rng, 2, image, channels, outputs, size, dtype, **options))


@pytest.mark.pairwise
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_matches_the_reference_at_every_pair_of_widths(in_force, dtype, channels, outputs, rng):
    for padding in (0, 1):
        problem = random_conv(rng, 2, (5, 6), channels, outputs, 3, dtype, padding=padding, residual=True)
        assert_matches_reference(problem)
    assert_matches_reference(random_conv(rng, 1, (5, 6), channels, outputs, 1, dtype, bias=False))


@pytest.mark.parametrize("width", range(1, 21))
def test_matches_the_reference_at_every_width_of_an_image(in_force, dtype, width, rng):
    """Tiles of pixels end anywhere in a row, and beside the padding."""
    for size, stride in (((3, 3), 1), ((3, 3), 2), ((1, 5), 1), ((3, 1), 3)):
        problem = random_conv(rng, 2, (3, width), 6, 9, size, dtype, stride=stride, padding="same", activation="tanh")
        assert_matches_reference(problem)


@pytest.mark.pairwise
@pytest.mark.parametrize("groups", [2, 3, 5, 16, 33])
@pytest.mark.parametrize(("each_channels", "each_outputs"), [(1, 1), (1, 2), (3, 1), (4, 5), (17, 16)])
def test_matches_the_reference_in_groups(in_force, dtype, groups, each_channels, each_outputs, rng):
    for options in ({"padding": 1}, {"stride": 2, "dilation": 2, "padding": "same"}):
        problem = random_conv(
            rng, 2, (5, 7), groups * each_channels, groups * each_outputs, 3, dtype, groups=groups, **options
        )
        assert_matches_reference(problem)


@pytest.mark.parametrize("name", LARGE)
def test_matches_the_reference_at_large_shapes(in_force, dtype, name, rng):
    if in_force == "numpy":
        pytest.skip("it has no blocks")
    assert_matches_reference(large(rng, name, dtype))


@pytest.mark.pairwise
@pytest.mark.parametrize("name", [*ACTIVATIONS, ("leaky_relu", 0.3), ("clipped_relu", 0.5)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_every_activation(in_force, dtype, name, residual, rng):
    for bias, (channels, outputs) in product((True, False), ((3, 7), (16, 19))):
        problem = random_conv(
            rng, 2, (5, 4), channels, outputs, 3, dtype, bias=bias, residual=residual, padding=1, activation=name
        )
        assert kink_distance(problem) > 1e-5
        assert_matches_reference(problem)


@pytest.mark.pairwise
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_bias_and_residual_may_be_missing(in_force, dtype, name, bias, residual, rng):
    assert_matches_reference(option(rng, name, dtype, bias=bias, residual=residual, activation="silu"))


def test_1x1_is_a_dense_layer(in_force, dtype, rng):
    problem = random_conv(rng, 3, (5, 7), 13, 17, 1, dtype, residual=True, activation="tanh")
    found = conv_run(problem)
    x, residual, dy = (a.reshape(-1, a.shape[-1]) for a in (problem.x, problem.residual, problem.dy))
    y, backward = fg.dense(x, problem.w[0, 0], problem.b, activation="tanh", residual=residual)
    expected = dict(zip(["y", "dx", "dw", "db", "dresidual"], [y, *backward(dy)], strict=True))
    expected = {name: a.reshape(found[name].shape).astype(np.float64) for name, a in expected.items()}
    # both have errors
    for name in found:
        assert_close("conv", found[name], expected[name], 2 * np.abs(expected[name]).max(), terms=105)


def test_one_pixel_under_a_padded_kernel_meets_its_middle_only(in_force, dtype, rng):
    problem = random_conv(rng, 4, 1, 5, 7, 3, dtype, padding=1)
    found = conv_run(problem)
    assert_matches_reference(problem)
    x, dy = problem.x[:, 0, 0].astype(np.float64), problem.dy[:, 0, 0].astype(np.float64)
    assert_close("conv", found["y"][:, 0, 0], x @ problem.w[1, 1] + problem.b, 4, terms=5)
    assert_close("conv", found["dw"][1, 1], x.T @ dy, 4, terms=4)
    assert_close("conv", found["dx"][:, 0, 0], dy @ problem.w[1, 1].T, 4, terms=7)
    found["dw"][1, 1] = 0
    assert not found["dw"].any()


@pytest.mark.parametrize("name", OPTIONS)
def test_no_images_give_zero_gradients(in_force, dtype, name, rng):
    problem = option(rng, name, dtype, n=0, residual=True, activation="gelu")
    found = conv_run(problem)
    assert found["y"].shape == found["dresidual"].shape == problem.dy.shape
    assert found["dx"].shape == problem.x.shape
    assert found["dw"].shape == problem.w.shape
    assert not found["dw"].any()
    assert not found["db"].any()
    assert {a.dtype for a in found.values()} == {dtype}


@pytest.mark.pairwise
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, (2, 7)])
@pytest.mark.parametrize("stride", [1, 2, 3, (3, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_is_zeros_around_the_image_the_odd_one_last(in_force, dtype, size, stride, dilation, rng):
    for image in ((1, 1), (5, 4), (9, 11)):
        problem = random_conv(rng, 2, image, 3, 5, size, dtype, stride=stride, dilation=dilation, padding="same")
        found = conv_run(problem)
        sh, sw = pair(stride)
        assert found["y"].shape == (2, -(-image[0] // sh), -(-image[1] // sw), 5)
        (top, left, bottom, right), _ = geometry(image, problem.w.shape[:2], stride, "same", dilation)
        assert top in (bottom, bottom - 1)
        assert left in (right, right - 1)
        padded = np.pad(problem.x, ((0, 0), (top, bottom), (left, right), (0, 0)))
        explicit = replace(problem, x=padded, options={**problem.options, "padding": 0})
        assert explicit.geometry()[1] == found["y"].shape[1:3]
        expected = {name: a.astype(np.float64) for name, a in conv_run(explicit).items()}
        expected["dx"] = expected["dx"][:, top : top + image[0], left : left + image[1]]
        for name, actual in found.items():
            assert_close("conv", actual, expected[name], 2 * np.abs(expected[name]).max(initial=1), terms=99)


@pytest.mark.pairwise
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", OPTIONS)
def test_nan_and_infinity_stay_within_the_outputs_whose_windows_see_them(in_force, dtype, name, bad, rng):
    problem = option(rng, name, dtype, n=3, image=(11, 9))
    clean = conv_run(problem)
    row, column, channel = 4, 6, 1
    x = problem.x.copy()
    x[1, row, column, channel] = bad
    found = conv_run(replace(problem, x=x))
    expected_y, touched = clean["y"].copy(), np.zeros(problem.w.shape, bool)
    each_channels, each_outputs = problem.w.shape[2], problem.w.shape[3] // problem.groups()
    first = channel // each_channels * each_outputs
    k, c = slice(first, first + each_outputs), channel % each_channels
    for i, j in np.ndindex(*problem.geometry()[1]):
        for a, b in [place[:2] for place in pixels_under(problem, i, j) if place[2:] == (row, column)]:
            expected_y[1, i, j, k] = dtype.type(bad) * problem.w[a, b, c, k]
            touched[a, b, c, k] = True
    assert touched.any() == (name not in ("1x1_stride", "stride_past_the_kernel") or (row % 2 + column % 2 == 0))
    assert_untouched(name, found["y"], expected_y)
    np.testing.assert_array_equal(np.isfinite(found["dw"]), ~touched)
    assert_untouched(name, found["dw"][~touched], clean["dw"][~touched])
    assert [bits(found[which]) for which in ("dx", "db")] == [bits(clean[which]) for which in ("dx", "db")]


@pytest.mark.pairwise
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", OPTIONS)
def test_nan_and_infinity_upstream_stay_within_the_pixels_of_their_window(in_force, dtype, name, bad, rng):
    problem = option(rng, name, dtype, n=3, image=(13, 12))
    clean = conv_run(problem)
    _, (down, across) = problem.geometry()
    # a window that lies within the image
    i, j, k = down // 2, across // 2, 2
    dy = problem.dy.copy()
    dy[1, i, j, k] = bad
    found = conv_run(replace(problem, dy=dy))
    each_channels, each_outputs = problem.w.shape[2], problem.w.shape[3] // problem.groups()
    first = k // each_outputs * each_channels
    expected_dx = clean["dx"].copy()
    for a, b, row, column in pixels_under(problem, i, j):
        assert 0 <= row < 13
        assert 0 <= column < 12
        expected_dx[1, row, column, first : first + each_channels] = dtype.type(bad) * problem.w[a, b, :, k]
    assert_untouched(name, found["dx"], expected_dx)
    for which in ("dw", "db"):
        touched = np.broadcast_to(np.arange(problem.w.shape[3]) == k, found[which].shape)
        np.testing.assert_array_equal(np.isfinite(found[which]), ~touched)
        assert_untouched(name, found[which][~touched], clean[which][~touched])


@pytest.mark.parametrize("where", ["w", "b", "residual"])
def test_nan_in_a_parameter_reaches_the_output(in_force, dtype, where, rng):
    problem = random_conv(rng, 2, (5, 6), 5, 19, 3, dtype, residual=True, activation="relu")
    getattr(problem, where)[..., 3] = np.nan
    y, _ = conv_forward(problem)
    np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(np.arange(19) == 3, y.shape))


def test_large_values_do_not_overflow_in_tiles(in_force, dtype, rng):
    """A transform's sums may be infinite where the convolution's are not."""
    problem = random_conv(rng, 2, (9, 8), 8, 8, 3, dtype, padding=1)
    x, w = problem.x * (np.finfo(dtype).max / 20), problem.w / 10
    problem = replace(problem, x=x.astype(dtype), w=w.astype(dtype), dy=problem.dy / np.finfo(dtype).max)
    found = assert_matches_reference(problem)
    assert all(np.isfinite(a).all() for a in found.values())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_upstream_passes_every_activation(in_force, dtype, activation, rng):
    problem = random_conv(rng, 2, (4, 4), 3, 5, 3, dtype, padding=1, activation=activation)
    problem.dy[1, 2, 1, 3] = np.nan
    found = conv_run(problem)
    assert np.isnan(found["dx"][1, 1:, :3]).all()
    assert np.isfinite(found["dx"][0]).all()
    assert np.isnan(found["db"][3])


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["plain", "1x1", "1x1_stride", "everything"])
def test_layouts_do_not_matter_and_inputs_are_not_written(in_force, dtype, name, layout, rng):
    problem = option(rng, name, dtype, n=3, image=(7, 9), residual=True, activation="silu")
    laid = problem.map(lambda a: laid_out(a, layout))
    assert all_bits(conv_run(laid)) == all_bits(conv_run(problem))
    assert all_bits(laid.named()) == all_bits(option(np.random.default_rng(0), name, dtype, n=3, image=(7, 9),
                                                     residual=True, activation="silu").named())  # fmt: skip


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", [*INPUTS, "dy"])
def test_one_array_in_another_layout(in_force, dtype, which, layout, rng):
    problem = option(rng, "groups", dtype, residual=True)
    one = replace(problem, **{which: laid_out(getattr(problem, which), layout)})
    assert all_bits(conv_run(one)) == all_bits(conv_run(problem))


def test_broadcast_inputs(in_force, dtype, rng):
    """Strides of 0, and channels first as they come from elsewhere."""
    problem = option(rng, "padding", dtype, residual=True)
    wide = problem.map(lambda a: np.broadcast_to(a[..., :1], a.shape))
    assert all_bits(conv_run(wide)) == all_bits(conv_run(wide.map(np.array)))
    turned = replace(problem, x=np.ascontiguousarray(problem.x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1))
    turned = replace(turned, w=np.ascontiguousarray(problem.w.transpose(3, 2, 0, 1)).transpose(2, 3, 1, 0))
    assert all_bits(conv_run(turned)) == all_bits(conv_run(problem))


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_backward_runs_again_and_its_gradients_are_the_callers_own(in_force, dtype, activation, rng):
    problem = option(rng, "padding", dtype, residual=True, activation=activation)
    y, backward = conv_forward(problem)
    kept, before = bits(y), all_bits(problem.named())
    gradients = backward(problem.dy)
    first = [bits(a) for a in gradients]
    owned = [y, *problem.named().values()]
    assert not any(np.shares_memory(g, a) for g in gradients for a in owned)
    for gradient in gradients:
        gradient[...] = np.nan
    assert [bits(a) for a in backward(problem.dy)] == first
    assert bits(y) == kept
    assert all_bits(problem.named()) == before


@pytest.mark.parametrize("name", [*OPTIONS, *LARGE])
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, name, rng):
    problem = large(rng, name, dtype) if name in LARGE else option(rng, name, dtype, n=3, image=(13, 12), residual=True)
    first, *others = with_threads(lambda: all_bits(conv_run(problem)))
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", [*OPTIONS, *LARGE])
def test_an_image_alone_has_the_bits_it_has_in_a_batch(cpu, dtype, name, rng):
    problem = large(rng, name, dtype) if name in LARGE else option(rng, name, dtype, n=5, image=(7, 12), residual=True)
    together = conv_run(problem)
    n = len(problem.x)
    for first in {0, n // 2, n - 1}:
        for count in (1, 2):
            rows = slice(first, first + count)
            alone = conv_run(problem.only(rows))
            for which in {"y", "dx", "dresidual"} & alone.keys():
                assert bits(alone[which]) == bits(together[which][rows]), f"{which} of images {rows}"


def uneven(rng, dtype, pads, activation):
    """A problem whose padding no public option gives, and the same one with the padding in its image."""
    image, channels, outputs = (6, 9), 5, 18
    top, left, bottom, right = pads
    padded = random_conv(
        rng, 2, (6 + top + bottom, 9 + left + right), channels, outputs, (3, 2), dtype,
        residual=True, activation=activation, stride=(2, 1), dilation=(1, 2),
    )  # fmt: skip
    inside = np.s_[:, top : top + image[0], left : left + image[1]]
    x = np.zeros_like(padded.x)
    x[inside] = padded.x[inside]
    return replace(padded, x=np.ascontiguousarray(x[inside])), replace(padded, x=x), inside


@pytest.mark.parametrize("activation", ["identity", "silu"])
@pytest.mark.parametrize("pads", [(1, 0, 0, 0), (0, 2, 0, 0), (0, 0, 2, 0), (0, 0, 0, 1), (2, 1, 0, 2)])
def test_kernels_take_uneven_padding(backend, dtype, pads, activation, rng):
    problem, padded, inside = uneven(rng, dtype, pads, activation)
    found = kernel_run(backend, problem, pads)
    with fg.use_backend("numpy"):
        expected = conv_run(padded.map(lambda a: a.astype(np.float64)))
    expected["dx"] = expected["dx"][inside]
    assert_all_close(problem, found, expected)


@pytest.mark.parametrize("without", [("dx",), ("dw",), ("db",), ("dx", "dw", "db")], ids="+".join)
@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_gradients_may_be_left_out(backend, dtype, activation, without, rng):
    problem, _, _ = uneven(rng, dtype, (1, 0, 2, 1), activation)
    every = kernel_run(backend, problem, (1, 0, 2, 1))
    found = kernel_run(backend, problem, (1, 0, 2, 1), without=without)
    assert found.keys() == every.keys() - set(without)
    assert all_bits(found) == {name: bits(every[name]) for name in found}


@pytest.mark.parametrize("activation", ["relu", "gelu", "softmax"])
def test_nothing_outside_the_buffers_is_written(backend, dtype, activation, rng):
    buffers = []

    def within(array):
        buffers.append(np.full(array.size + 128, 7, dtype))
        return buffers[-1][64:-64].reshape(array.shape)

    for size, options in ((3, {"padding": (1, 1)}), (1, {}), (3, {"stride": (2, 2)}), (3, {"groups": 10})):
        problem = random_conv(rng, 2, (5, 7), 10, 20, size, dtype, residual=True, activation=activation, **options)
        kernel_run(backend, problem, (1, 1, 1, 1) if "padding" in options else (0, 0, 0, 0), within=within)
    # dx of few channels, whose products are added to an image that ends within a step
    problem = random_conv(rng, 2, (5, 7), 2, 15, 3, dtype, residual=True, activation=activation, stride=(2, 2))
    kernel_run(backend, problem, (0, 0, 0, 0), within=within)
    for buffer in buffers:
        np.testing.assert_array_equal(buffer[:64], 7)
        np.testing.assert_array_equal(buffer[-64:], 7)
        assert not (buffer[64:-64] == 7).any()


# bad input, exact messages


@pytest.mark.parametrize(("size", "channels"), [(1, 2), (3, 2), (3, 8)], ids=["1x1", "3x3", "winograd"])
def test_a_million_pixels_are_summed_in_blocks(cpu, size, channels, rng):
    side = 1000
    x = rng.random((1, side, side, channels), np.float32)
    w = rng.standard_normal((size, size, channels, channels)).astype(np.float32)
    y, backward = fg.conv2d(x, w, b=np.zeros(channels, np.float32))
    dy = rng.random(y.shape, np.float32)
    _, dw, db = backward(dy)
    np.testing.assert_allclose(db, dy.sum(axis=(0, 1, 2), dtype=np.float64), rtol=3e-7)
    n = y.shape[1]
    for i, j in np.ndindex(size, size):
        pixels = x[0, i : i + n, j : j + n].reshape(-1, channels).astype(np.float64)
        np.testing.assert_allclose(dw[i, j], pixels.T @ dy.reshape(-1, channels), rtol=1e-5)
    *_, with_one = with_threads(lambda: [bits(a) for a in backward(dy)[1:]])
    assert with_one == [bits(dw), bits(db)]
