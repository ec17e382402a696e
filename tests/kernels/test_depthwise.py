"""Depthwise convolution: the CPU backend's own kernels for common sizes and strides, and its kernel for all others.

What every convolution has to do is in test_conv.py.
"""

import numpy as np
import pytest
from arrays import all_bits, bits, with_threads
from convs import conv_run, conv_terms, kernel_run, random_conv, torch_conv_run
from tolerances import assert_close

import fastgrad as fg
from fastgrad.kernels.cpu import depthwise

INSTANCES = [(size, stride) for size in (3, 5, 7) for stride in (1, 2)]
# fewer than a vector, on both sides of one, and no multiples of one
CHANNELS = 2, 7, 8, 9, 16, 24, 58, 116
IMAGES = (1, 1), (1, 9), (2, 2), (4, 5), (7, 7), (8, 9)
# of the kernel, and of what surrounds it
OTHERS = [
    (3, {"dilation": 2, "padding": 2}),
    (3, {"dilation": 3, "padding": 5, "stride": 2}),
    (3, {"dilation": (2, 1), "padding": 1, "stride": (1, 2)}),
    (5, {"stride": 3, "padding": 4}),
    (5, {"stride": (2, 1), "padding": 2}),
    (4, {"padding": "same"}),
    ((3, 5), {"padding": (1, 2)}),
    ((5, 2), {"padding": (3, 1), "stride": 2}),
    (1, {"stride": 2}),
    (9, {"padding": 4}),
]


def depthwise_conv(rng, n, image, channels, size, dtype, **options):
    return random_conv(rng, n, image, channels, channels, size, dtype, groups=channels, **options)


def assert_matches(problem, found, expected):
    for name, terms in conv_terms(problem).items():
        if name in found.keys() & expected.keys():
            assert found[name].dtype == problem.x.dtype
            size = np.abs(expected[name]).max(initial=1)
            assert_close("conv", found[name], expected[name], size, terms)


def assert_matches_pytorch(torch, problem):
    """The reference has a loop over groups, and takes many times as long."""
    assert_matches(problem, conv_run(problem), torch_conv_run(torch, problem))


@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize(("size", "stride"), INSTANCES)
def test_matches_pytorch_at_every_size_and_stride(cpu, dtype, size, stride, image, rng, torch):
    """Images smaller than the kernel and its padding, too."""
    for channels in CHANNELS:
        for padding in {size // 2, size - 1}:
            options = {"stride": stride, "padding": padding, "residual": True, "activation": "tanh"}
            assert_matches_pytorch(torch, depthwise_conv(rng, 2, image, channels, size, dtype, **options))


@pytest.mark.parametrize("width", range(1, 24))
def test_matches_pytorch_at_every_width_of_an_image(cpu, dtype, width, rng, torch):
    for size, stride in INSTANCES:
        for padding in {0, size // 2} if width >= size else {size - 1}:
            image = max(size, 3), width
            problem = depthwise_conv(rng, 2, image, 11, size, dtype, stride=stride, padding=padding)
            assert_matches_pytorch(torch, problem)


@pytest.mark.parametrize("channels", [3, 8, 58])
@pytest.mark.parametrize(("size", "options"), OTHERS, ids=str)
def test_matches_pytorch_at_other_kernels(cpu, dtype, size, options, channels, rng, torch):
    for image in ((9, 9), (11, 14)):
        problem = depthwise_conv(rng, 2, image, channels, size, dtype, residual=True, activation="silu", **options)
        assert_matches_pytorch(torch, problem)


@pytest.mark.parametrize(("size", "stride"), INSTANCES)
def test_matches_pytorch_over_several_tiles(cpu, dtype, size, stride, rng, torch):
    for image, channels in (((70, 61), 16), ((37, 40), 130)):
        options = {"stride": stride, "padding": "same", "activation": "relu", "residual": True}
        problem = depthwise_conv(rng, 2, image, channels, size, dtype, **options)
        # away from the kink of relu
        problem.b[:] += 8
        assert_matches_pytorch(torch, problem)


@pytest.mark.parametrize("stride", [1, 2])
def test_images_larger_than_the_caches_have_the_bits_of_small_ones(cpu, stride, rng):
    """They are prefetched from memory."""
    rows, columns, channels = 1050, 300, 16
    assert rows * columns * channels > depthwise.FAR
    problem = depthwise_conv(rng, 1, (rows, columns), channels, 3, np.float32, stride=stride, padding=1)
    part = depthwise_conv(rng, 1, (40, columns), channels, 3, np.float32, stride=stride, padding=1)
    part.x[...], part.w[...], part.b[...] = problem.x[:, :40], problem.w, problem.b
    part.dy[...] = problem.dy[:, : 40 // stride]
    found, expected = conv_run(problem), conv_run(part)
    for which, inner in (("y", slice(0, 38 // stride)), ("dx", slice(0, 38))):
        np.testing.assert_array_equal(found[which][:, inner], expected[which][:, inner])


@pytest.mark.parametrize("pads", [(1, 0, 0, 0), (0, 2, 0, 0), (0, 0, 2, 0), (0, 0, 0, 1), (2, 1, 0, 2), (6, 5, 6, 7)])
@pytest.mark.parametrize(("size", "stride"), INSTANCES)
def test_uneven_padding(cpu, dtype, size, stride, pads, rng):
    """More of it than the kernel reaches, too: pixels of the output, and of dx, to which no tap contributes."""
    top, left, bottom, right = pads
    image = max(1, size - top - bottom) + 4, max(1, size - left - right) + 5
    shape = image[0] + top + bottom, image[1] + left + right
    padded = depthwise_conv(rng, 2, shape, 10, size, dtype, stride=stride)
    inside = np.s_[:, top : top + image[0], left : left + image[1]]
    x = np.zeros_like(padded.x)
    x[inside] = padded.x[inside]
    with fg.use_backend("numpy"):
        padded.x[...] = x
        expected = conv_run(padded.map(lambda a: a.astype(np.float64)))
    expected["dx"] = expected["dx"][inside]
    padded.x = np.ascontiguousarray(x[inside])
    assert_matches(padded, kernel_run(cpu, padded, pads), expected)


@pytest.mark.parametrize(("size", "stride"), [*INSTANCES, (4, 1), (3, 3)])
@pytest.mark.parametrize("channels", [5, 24, 58])
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, size, stride, channels, rng):
    problem = depthwise_conv(rng, 6, (29, 31), channels, size, dtype, stride=stride, padding="same", residual=True)
    first, *others = with_threads(lambda: all_bits(conv_run(problem)))
    assert all(other == first for other in others)


@pytest.mark.parametrize(("size", "stride"), [*INSTANCES, (4, 1), (3, 3)])
@pytest.mark.parametrize("image", [(4, 4), (29, 31)], ids=str)
def test_an_image_alone_has_the_bits_it_has_in_a_batch(cpu, dtype, size, stride, image, rng):
    problem = depthwise_conv(rng, 9, image, 58, size, dtype, stride=stride, padding="same", activation="gelu")
    together = conv_run(problem)
    for rows in (slice(0, 1), slice(4, 6), slice(8, 9)):
        alone = conv_run(problem.only(rows))
        for which in ("y", "dx"):
            assert bits(alone[which]) == bits(together[which][rows])


@pytest.mark.parametrize(("size", "stride"), [*INSTANCES, (4, 1), (3, 3)])
def test_no_images_give_zero_gradients(cpu, dtype, size, stride, rng):
    problem = depthwise_conv(rng, 0, (9, 8), 24, size, dtype, stride=stride, padding="same")
    found = conv_run(problem)
    assert found["y"].shape == problem.dy.shape
    assert found["dx"].shape == problem.x.shape
    assert not found["dw"].any()
    assert not found["db"].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("channels", [3, 13])
@pytest.mark.parametrize(("size", "stride"), [*INSTANCES, (2, 1), (3, 3)])
def test_a_tap_outside_the_image_adds_nothing(cpu, dtype, size, stride, channels, bad, rng):
    """Where w is not finite there; as in PyTorch."""
    image = 9, 10
    problem = depthwise_conv(rng, 2, image, channels, size, dtype, stride=stride, padding=size - 1)
    problem.w[0, -1, 0, 1] = bad
    found, (top, left, _, _) = conv_run(problem), problem.geometry()[0]
    touched_y, touched_x = np.zeros(problem.dy.shape, bool), np.zeros(problem.x.shape, bool)
    for i, j in np.ndindex(*problem.dy.shape[1:3]):
        h, w = i * stride - top, j * stride + size - 1 - left
        if 0 <= h < image[0] and 0 <= w < image[1]:
            touched_y[:, i, j, 1] = touched_x[:, h, w, 1] = True
    np.testing.assert_array_equal(np.isfinite(found["y"]), ~touched_y)
    np.testing.assert_array_equal(np.isfinite(found["dx"]), ~touched_x)


@pytest.mark.parametrize(("size", "stride"), [*INSTANCES, (2, 1), (3, 3)])
def test_infinity_upstream_reaches_the_taps_inside_the_image_only(cpu, dtype, size, stride, rng):
    problem = depthwise_conv(rng, 2, (9, 10), 13, size, dtype, stride=stride, padding=size - 1)
    problem.dy[1, 0, 0, 1] = np.inf
    touched = np.zeros(problem.w.shape, bool)
    touched[-1, -1, 0, 1] = True
    np.testing.assert_array_equal(np.isfinite(conv_run(problem)["dw"]), ~touched)
