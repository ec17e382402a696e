"""Convolution of images by im2row and cuBLAS products; formulas: kernels/reference/conv.py.

    patches[g, m, (a, b, c)] = x[n, i sh + a dh - top, j sw + b dw - left, c of group g], or 0, for output m = (n, i, j)
    z = patches w        dw = patches^T dz        dpatches = dz w^T        col2im: dx is the sum of dpatches over the windows of a pixel

Memory: the patches of as many images at a time as fit into PATCH_BYTES. With several such slices dw is the sum over them, in their order.
Backward runs im2row again, and then writes dpatches over patches.

Determinism: a thread gathers all terms of a value of dx, tap by tap, without atomics, so every run has the same bits.

Groups are a batch of products; their result needs one more pass. A 1 x 1 convolution with stride 1 is a dense layer: patches is x itself.

Launches beside the products: two forward (im2row; bias, residual and activation), four backward (dz with sums by column; the sum of those;
im2row; col2im), whatever the activation; more with many slices or very many pixels.
"""

from typing import NamedTuple

import numpy as np
from numba import int64

from .. import types
from .activation import activate_matrix, differentiate_matrix
from .engine import device
from .engine.device import BLOCK, Integer, Real, Values, device_function, flat, kernel, launch
from .engine.reductions import row_limit, sum_rows, tile_column, tile_row, tile_width, tiles

# bytes of patches at a time: products of that size keep any GPU busy
PATCH_BYTES = 1 << 28


class Windows(NamedTuple):
    """Sizes of images (height, breadth), outputs (down, across) and kernel; stride; dilation; padding before the image; groups."""

    height: int
    breadth: int
    channels: int
    down: int
    across: int
    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    dw: int
    top: int
    left: int
    groups: int

    @property
    def width(self):
        """Values of a patch, of all groups."""
        return self.kh * self.kw * self.channels

    @property
    def is_product(self):
        """Whether x is its own patches."""
        kernel = (self.kh, self.kw, self.sh, self.sw, self.groups)
        return kernel == (1,) * 5 and (self.down, self.across) == (self.height, self.breadth)

    def image_slices(self, images, itemsize):
        """Slices of images whose patches are computed together, and of their outputs; no slice has more than the first."""
        pixels = self.down * self.across
        # strides may leave out most of an image
        values_per_image = max(pixels * self.width, self.height * self.breadth * self.channels)
        images_per_slice = max(1, PATCH_BYTES // (values_per_image * itemsize))
        ends = [(first, min(first + images_per_slice, images)) for first in range(0, images, images_per_slice)]
        return [(slice(first, last), slice(first * pixels, last * pixels)) for first, last in ends]


@device_function
def divide(n, divisor):
    """n // divisor and n % divisor of integers in 0 .. 2^32 - 1: a 64-bit division costs as much as all else in a kernel."""
    quotient = int64(np.uint32(n) // np.uint32(divisor))
    return quotient, n - quotient * divisor


@kernel
def im2row_tiles(
    dtype: Real, height: Integer, breadth: Integer, channels: Integer, down: Integer, across: Integer,
    kh: Integer, kw: Integer, sh: Integer, sw: Integer, dh: Integer, dw: Integer, top: Integer, left: Integer,
    groups: Integer, outputs: Integer, width: Integer, x: Values, patches: Values,
):  # fmt: skip
    """A row of a tile is a window of x, `outputs` in all; a column is a place in it and a channel."""
    column, taps = tile_column(width), kh * kw
    if column < taps * channels:
        tap, channel = divide(column, channels)
        a, b = divide(tap, kw)
        group, c = divide(channel, channels // groups)
        group_channels, tap_line, tap_pixel = channels // groups, a * dh - top, b * dw - left
        offset = (group * outputs * taps + tap) * group_channels + c
        for row in range(tile_row(width), row_limit(width, outputs), BLOCK // width):
            line, j = divide(row, across)
            image, i = divide(line, down)
            line, pixel, value = i * sh + tap_line, j * sw + tap_pixel, dtype(0)
            if 0 <= line < height and 0 <= pixel < breadth:
                value = x[((image * height + line) * breadth + pixel) * channels + channel]
            patches[offset + row * taps * group_channels] = value


@device_function
def subtract_step(i, rest, i_step, rest_step, divisor):
    """Quotient and rest of the number i divisor + rest, reduced by i_step divisor + rest_step."""
    i, rest = i - i_step, rest - rest_step
    return (i - 1, rest + divisor) if rest < 0 else (i, rest)


@kernel
def col2im_tiles(
    dtype: Real, height: Integer, breadth: Integer, channels: Integer, down: Integer, across: Integer,
    kh: Integer, kw: Integer, sh: Integer, sw: Integer, dh: Integer, dw: Integer, top: Integer, left: Integer,
    groups: Integer, outputs: Integer, pixels: Integer, width: Integer, dpatches: Values, dx: Values,
):  # fmt: skip
    """A row of a tile is a pixel of dx, `pixels` in all; a column is a channel."""
    channel, taps = tile_column(width), kh * kw
    if channel < channels:
        group_channels = channels // groups
        group, c = divide(channel, group_channels)
        (i_step, i_step_rest), (j_step, j_step_rest) = divide(dh, sh), divide(dw, sw)
        for row in range(tile_row(width), row_limit(width, pixels), BLOCK // width):
            line, pixel = divide(row, breadth)
            image, line = divide(line, height)
            total, (i, i_rest), (first_j, first_rest) = dtype(0), divide(line + top, sh), divide(pixel + left, sw)
            for a in range(kh):
                if i_rest == 0 and 0 <= i < down:
                    j, j_rest = first_j, first_rest
                    # of the first output of this line, and tap of this line of taps
                    offset = ((group * outputs + (image * down + i) * across) * taps + a * kw) * group_channels + c
                    for b in range(kw):
                        if j_rest == 0 and 0 <= j < across:
                            total += dpatches[offset + (j * taps + b) * group_channels]
                        j, j_rest = subtract_step(j, j_rest, j_step, j_step_rest, sw)
                i, i_rest = subtract_step(i, i_rest, i_step, i_step_rest, sh)
            dx[row * channels + channel] = total


def _windows(x, w, y, geometry):
    groups, (stride, pads, dilation) = x.shape[3] // w.shape[2], geometry
    return Windows(*x.shape[1:], *y.shape[1:3], *w.shape[:2], *stride, *dilation, *pads[:2], groups)


def _matrix(images):
    """(pixels, channels) of images."""
    return images.reshape(-1, images.shape[-1])


def _scratch(windows, slices, dtype):
    """Scratch for the patches of one slice at a time."""
    return device.xp.empty(slices[0][1].stop * windows.width if slices else 0, dtype)


def _patches(windows, outputs, scratch):
    """Patches (groups, outputs, kh kw C / groups) of a slice of outputs; without the first axis for one group."""
    rows, groups = outputs.stop - outputs.start, windows.groups
    shape = rows, windows.width // groups
    return scratch[: rows * windows.width].reshape(shape if groups == 1 else (groups, *shape))


def _im2row(windows, x, patches):
    """The patches of images x."""
    outputs, width = len(x) * windows.down * windows.across, tile_width(windows.width)
    launch(im2row_tiles, x.dtype, tiles(outputs, windows.width), *windows, outputs, width, x, patches)


def _col2im(windows, dpatches, dx):
    """dx of images from dpatches."""
    pixels, width = len(dx) * windows.height * windows.breadth, tile_width(windows.channels)
    outputs = len(dx) * windows.down * windows.across
    launch(col2im_tiles, dx.dtype, tiles(pixels, windows.channels), *windows, outputs, pixels, width, dpatches, dx)


def _by_group(matrix, groups):
    """A view (groups, rows, K / groups) of a matrix (rows, K); for one group the matrix itself."""
    rows, outputs = matrix.shape
    return matrix if groups == 1 else matrix.reshape(rows, groups, outputs // groups).swapaxes(0, 1)


def _multiply(a, b, out, groups):
    """out (rows, K) = a b, by groups."""
    if groups == 1:
        device.xp.matmul(a, b, out=out)
    else:
        _by_group(out, groups)[...] = device.xp.matmul(a, b)


def conv2d_forward(x, w, b, geometry, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (N, H', W', K); b (K,), residual may be None."""
    x, w, b, residual = (flat(array) for array in (x, w, b, residual))
    z, y = saved
    windows, z_rows, kernels = _windows(x, w, y, geometry), _matrix(z), _matrix(w)
    if windows.is_product:
        device.xp.matmul(_matrix(x), kernels, out=z_rows)
    else:
        slices = windows.image_slices(len(x), x.itemsize)
        scratch = _scratch(windows, slices, x.dtype)
        for images, outputs in slices:
            patches = _patches(windows, outputs, scratch)
            _im2row(windows, x[images], patches)
            _multiply(patches, _by_group(kernels, windows.groups), z_rows[outputs], windows.groups)
    if b is not None or residual is not None or activation.code != types.IDENTITY:
        residual_rows = None if residual is None else _matrix(residual)
        activate_matrix(z_rows, b, residual_rows, _matrix(y), activation, keep=z is not y)


def conv2d_backward(dy, x, w, geometry, activation, saved, gradients):
    """Overwrite gradients: dz (N, H', W', K), dx like x, dw like w and db (K,); dx, dw and db may be None."""
    x, w, (dz, dx, dw, db) = flat(x), flat(w), gradients
    dz_rows, kernels = _matrix(dz), _matrix(w)
    if dz is not dy:
        saved_rows = saved.z if activation.needs_input else saved.y
        differentiate_matrix(_matrix(flat(dy)), _matrix(saved_rows), dz_rows, db, activation)
    elif db is not None:
        sum_rows(dz_rows, db)
    if dx is None and dw is None:
        return
    windows = _windows(x, w, dz, geometry)
    if windows.is_product:
        if dw is not None:
            device.xp.matmul(_matrix(x).T, dz_rows, out=_matrix(dw))
        if dx is not None:
            device.xp.matmul(dz_rows, kernels.T, out=_matrix(dx))
        return
    slices, groups = windows.image_slices(len(x), x.itemsize), windows.groups
    scratch, sums = _scratch(windows, slices, x.dtype), None
    if dw is not None:
        sums = _matrix(dw)[None] if len(slices) == 1 else device.xp.empty((len(slices), *kernels.shape), x.dtype)
    for part, (images, outputs) in enumerate(slices):
        patches, upstream = _patches(windows, outputs, scratch), _by_group(dz_rows[outputs], groups)
        if sums is not None:
            _im2row(windows, x[images], patches)
            _multiply(patches.swapaxes(-1, -2), upstream, sums[part], groups)
        if dx is not None:
            device.xp.matmul(upstream, _by_group(kernels, groups).swapaxes(-1, -2), out=patches)
            _col2im(windows, patches, dx[images])
    if sums is not None and len(slices) != 1:
        sum_rows(sums.reshape(len(slices), w.size), dw.reshape(-1))
