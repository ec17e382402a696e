"""Convolution of images by unfolding (im2col) and cuBLAS products; formulas: kernels/reference/conv.py.

    columns[g, m, (a, b, c)] = x[n, i sh + a dh - top, j sw + b dw - left, c of group g], or 0, for output m = (n, i, j)
    z = columns w        dw = columns^T dz        dcolumns = dz w^T        dx: the sum of dcolumns over the windows of a pixel

Memory: the columns of as many images at a time as fit into UNFOLDED bytes. With several such parts dw is the sum over them, in their
order. Backward unfolds again, and then writes dcolumns over columns.

Determinism: a thread gathers all terms of a value of dx, tap by tap, without atomics, so every run has the same bits.

Groups are a batch of products; their result needs one more pass. A 1 x 1 convolution with stride 1 is a dense layer: columns is x itself.

Launches beside the products: two forward (unfold; bias, residual and activation), four backward (dz with sums by column; the sum of those;
unfold; fold), whatever the activation; more with many parts or very many pixels.
"""

from typing import NamedTuple

import numpy as np
from numba import int64

from .. import types
from .activation import activate_matrix, differentiate_matrix
from .engine import device
from .engine.device import BLOCK, Integer, Real, Values, flat, function, kernel, launch
from .engine.reductions import row_limit, sum_rows, tile_column, tile_row, tile_width, tiles

# bytes of columns at a time: products of that size keep any GPU busy
UNFOLDED = 1 << 28


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
        """Values of a row of columns, of all groups."""
        return self.kh * self.kw * self.channels

    @property
    def is_product(self):
        """Whether x is its own columns."""
        kernel = (self.kh, self.kw, self.sh, self.sw, self.groups)
        return kernel == (1,) * 5 and (self.down, self.across) == (self.height, self.breadth)

    def parts(self, images, itemsize):
        """Slices of images that are unfolded together, and of their outputs; no part has more than the first."""
        pixels = self.down * self.across
        # strides may leave out most of an image
        most = max(pixels * self.width, self.height * self.breadth * self.channels)
        each = max(1, UNFOLDED // (most * itemsize))
        ends = [(first, min(first + each, images)) for first in range(0, images, each)]
        return [(slice(first, last), slice(first * pixels, last * pixels)) for first, last in ends]


@function
def divided(n, by):
    """n // by and n % by of integers in 0 .. 2^32 - 1: a 64-bit division costs as much as all else in a kernel."""
    quotient = int64(np.uint32(n) // np.uint32(by))
    return quotient, n - quotient * by


@kernel
def unfold_tiles(
    dtype: Real, height: Integer, breadth: Integer, channels: Integer, down: Integer, across: Integer,
    kh: Integer, kw: Integer, sh: Integer, sw: Integer, dh: Integer, dw: Integer, top: Integer, left: Integer,
    groups: Integer, outputs: Integer, width: Integer, x: Values, columns: Values,
):  # fmt: skip
    """A row of a tile is a window of x, `outputs` in all; a column is a place in it and a channel."""
    column, taps = tile_column(width), kh * kw
    if column < taps * channels:
        tap, channel = divided(column, channels)
        a, b = divided(tap, kw)
        group, c = divided(channel, channels // groups)
        each, above, before = channels // groups, a * dh - top, b * dw - left
        place = (group * outputs * taps + tap) * each + c
        for row in range(tile_row(width), row_limit(width, outputs), BLOCK // width):
            line, j = divided(row, across)
            image, i = divided(line, down)
            line, at, value = i * sh + above, j * sw + before, dtype(0)
            if 0 <= line < height and 0 <= at < breadth:
                value = x[((image * height + line) * breadth + at) * channels + channel]
            columns[place + row * taps * each] = value


@function
def stepped(i, over, steps, rest, step):
    """(i, over) for the number i step + over, reduced by steps step + rest."""
    i, over = i - steps, over - rest
    return (i - 1, over + step) if over < 0 else (i, over)


@kernel
def fold_tiles(
    dtype: Real, height: Integer, breadth: Integer, channels: Integer, down: Integer, across: Integer,
    kh: Integer, kw: Integer, sh: Integer, sw: Integer, dh: Integer, dw: Integer, top: Integer, left: Integer,
    groups: Integer, outputs: Integer, pixels: Integer, width: Integer, dcolumns: Values, dx: Values,
):  # fmt: skip
    """A row of a tile is a pixel of dx, `pixels` in all; a column is a channel."""
    channel, taps = tile_column(width), kh * kw
    if channel < channels:
        each = channels // groups
        group, c = divided(channel, each)
        (down_steps, down_rest), (across_steps, across_rest) = divided(dh, sh), divided(dw, sw)
        for row in range(tile_row(width), row_limit(width, pixels), BLOCK // width):
            line, at = divided(row, breadth)
            image, line = divided(line, height)
            total, (i, over), (first, ahead) = dtype(0), divided(line + top, sh), divided(at + left, sw)
            for a in range(kh):
                if over == 0 and 0 <= i < down:
                    j, beside = first, ahead
                    # of the first output of this line, and tap of this line of taps
                    place = ((group * outputs + (image * down + i) * across) * taps + a * kw) * each + c
                    for b in range(kw):
                        if beside == 0 and 0 <= j < across:
                            total += dcolumns[place + (j * taps + b) * each]
                        j, beside = stepped(j, beside, across_steps, across_rest, sw)
                i, over = stepped(i, over, down_steps, down_rest, sh)
            dx[row * channels + channel] = total


def _windows(x, w, y, geometry):
    groups, (stride, pads, dilation) = x.shape[3] // w.shape[2], geometry
    return Windows(*x.shape[1:], *y.shape[1:3], *w.shape[:2], *stride, *dilation, *pads[:2], groups)


def _matrix(images):
    """(pixels, channels) of images."""
    return images.reshape(-1, images.shape[-1])


def _room(windows, parts, dtype):
    """Scratch for the columns of one part at a time."""
    return device.xp.empty(parts[0][1].stop * windows.width if parts else 0, dtype)


def _columns(windows, outputs, room):
    """Columns (groups, outputs, kh kw C / groups) of a slice of outputs; without the first axis for one group."""
    rows, groups = outputs.stop - outputs.start, windows.groups
    shape = rows, windows.width // groups
    return room[: rows * windows.width].reshape(shape if groups == 1 else (groups, *shape))


def _unfold(windows, x, columns):
    """The columns of images x."""
    outputs, width = len(x) * windows.down * windows.across, tile_width(windows.width)
    launch(unfold_tiles, x.dtype, tiles(outputs, windows.width), *windows, outputs, width, x, columns)


def _fold(windows, dcolumns, dx):
    """dx of images from its columns."""
    pixels, width = len(dx) * windows.height * windows.breadth, tile_width(windows.channels)
    outputs = len(dx) * windows.down * windows.across
    launch(fold_tiles, dx.dtype, tiles(pixels, windows.channels), *windows, outputs, pixels, width, dcolumns, dx)


def _grouped(matrix, groups):
    """A view (groups, rows, K / groups) of a matrix (rows, K); for one group the matrix itself."""
    rows, outputs = matrix.shape
    return matrix if groups == 1 else matrix.reshape(rows, groups, outputs // groups).swapaxes(0, 1)


def _multiply(a, b, out, groups):
    """out (rows, K) = a b, by groups."""
    if groups == 1:
        device.xp.matmul(a, b, out=out)
    else:
        _grouped(out, groups)[...] = device.xp.matmul(a, b)


def conv2d_forward(x, w, b, geometry, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (N, H', W', K); b (K,), residual may be None."""
    x, w, b, residual = (flat(array) for array in (x, w, b, residual))
    z, y = saved
    windows, sums, kernels = _windows(x, w, y, geometry), _matrix(z), _matrix(w)
    if windows.is_product:
        device.xp.matmul(_matrix(x), kernels, out=sums)
    else:
        parts = windows.parts(len(x), x.itemsize)
        room = _room(windows, parts, x.dtype)
        for images, outputs in parts:
            columns = _columns(windows, outputs, room)
            _unfold(windows, x[images], columns)
            _multiply(columns, _grouped(kernels, windows.groups), sums[outputs], windows.groups)
    if b is not None or residual is not None or activation.code != types.IDENTITY:
        added = None if residual is None else _matrix(residual)
        activate_matrix(sums, b, added, _matrix(y), activation, keep=z is not y)


def conv2d_backward(dy, x, w, geometry, activation, saved, gradients):
    """Overwrite gradients: dz (N, H', W', K), dx like x, dw like w and db (K,); dx, dw and db may be None."""
    x, w, (dz, dx, dw, db) = flat(x), flat(w), gradients
    slopes, kernels = _matrix(dz), _matrix(w)
    if dz is not dy:
        kept = saved.z if activation.needs_input else saved.y
        differentiate_matrix(_matrix(flat(dy)), _matrix(kept), slopes, db, activation)
    elif db is not None:
        sum_rows(slopes, db)
    if dx is None and dw is None:
        return
    windows = _windows(x, w, dz, geometry)
    if windows.is_product:
        if dw is not None:
            device.xp.matmul(_matrix(x).T, slopes, out=_matrix(dw))
        if dx is not None:
            device.xp.matmul(slopes, kernels.T, out=_matrix(dx))
        return
    parts, groups = windows.parts(len(x), x.itemsize), windows.groups
    room, sums = _room(windows, parts, x.dtype), None
    if dw is not None:
        sums = _matrix(dw)[None] if len(parts) == 1 else device.xp.empty((len(parts), *kernels.shape), x.dtype)
    for part, (images, outputs) in enumerate(parts):
        columns, upstream = _columns(windows, outputs, room), _grouped(slopes[outputs], groups)
        if sums is not None:
            _unfold(windows, x[images], columns)
            _multiply(columns.swapaxes(-1, -2), upstream, sums[part], groups)
        if dx is not None:
            device.xp.matmul(upstream, _grouped(kernels, groups).swapaxes(-1, -2), out=columns)
            _fold(windows, columns, dx[images])
    if sums is not None and len(parts) != 1:
        sum_rows(sums.reshape(len(parts), w.size), dw.reshape(-1))
