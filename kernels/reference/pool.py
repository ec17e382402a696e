"""Max and mean pooling of images, channels last (Fukushima 1980; Riesenhuber & Poggio 1999).

    max    y[n, i, j, c] = max over a, b of x[n, i sh + a - top, j sw + b - left, c], the padding being -inf
    mean   y[n, i, j, c] = sum over a, b of x[n, i sh + a - top, j sw + b - left, c] / count[i, j], the padding being 0

count is the number of pixels in the window of the image and its padding, or without include_pad of the image. Backwards:

    max    dx[n, h, w, c] = sum of dy[n, i, j, c] over the windows of which h, w is the first pixel, in row order, that equals y
    mean   dx[n, h, w, c] = sum of dy[n, i, j, c] / count[i, j] over the windows that hold h, w

x and dx (N, H, W, C), y and dy (N, H', W', C); size (kh, kw), stride (sh, sw), pads (top, left, bottom, right) in pixels. H' and W' are
as in conv.py, or one more, of a window that ends past the padding. What lies there is -inf or 0 too, and is not counted. Every window
holds a pixel of the image. NaN in a window gives NaN, and the first NaN is its largest value.
All arrays are of one dtype and contiguous. Saved for backward: x and y of the maximum, nothing of the mean.
"""

import numpy as np

from .conv import inner, pad, taps


def max_pool2d_forward(x, size, stride, pads, y):
    """y (N, H', W', C)."""
    padded = pad(x, reach(x, y, size, stride, pads), -np.inf)
    y[...] = -np.inf
    for _, pixels in taps(size, y.shape, stride):
        np.maximum(y, padded[pixels], out=y)


def max_pool2d_backward(dy, x, y, size, stride, pads, dx):
    """dx (N, H, W, C) is overwritten."""
    pads = reach(x, y, size, stride, pads)
    padded = pad(x, pads, -np.inf)
    in_image = pad(np.ones_like(x, bool), pads, False)
    dpadded = np.zeros_like(padded)
    matched = np.zeros(y.shape, bool)
    for _, pixels in taps(size, y.shape, stride):
        largest = (padded[pixels] == y) | (np.isnan(padded[pixels]) & np.isnan(y))
        first = largest & in_image[pixels] & ~matched
        dpadded[pixels] += np.where(first, dy, 0)
        matched |= first
    dx[...] = inner(dpadded, pads)


def avg_pool2d_forward(x, size, stride, pads, include_pad, y):
    """y (N, H', W', C)."""
    padded = pad(x, reach(x, y, size, stride, pads), 0)
    y[...] = 0
    for _, pixels in taps(size, y.shape, stride):
        y += padded[pixels]
    y /= counts(x, y, size, stride, pads, include_pad).astype(y.dtype)


def avg_pool2d_backward(dy, size, stride, pads, include_pad, dx):
    """dx (N, H, W, C) is overwritten."""
    shares = dy / counts(dx, dy, size, stride, pads, include_pad).astype(dy.dtype)
    pads = reach(dx, dy, size, stride, pads)
    dpadded = pad(np.zeros_like(dx), pads, 0)
    for _, pixels in taps(size, dy.shape, stride):
        dpadded[pixels] += shares
    dx[...] = inner(dpadded, pads)


def reach(x, y, size, stride, pads):
    """The pads with what windows y (N, H', W', C) hold past them."""
    top, left, bottom, right = pads
    ends = ((n - 1) * s + k for n, s, k in zip(y.shape[1:3], stride, size, strict=True))
    past = (end - n for end, n in zip(ends, (x.shape[1] + top, x.shape[2] + left), strict=True))
    return top, left, max(bottom, next(past)), max(right, next(past))


def counts(x, y, size, stride, pads, include_pad):
    """The number of values in each mean, (1, H', W', 1)."""
    of_padding = pad(np.ones((1, *x.shape[1:3], 1), int), pads, int(include_pad))
    past = (outer - inside for outer, inside in zip(reach(x, y, size, stride, pads), pads, strict=True))
    ones = pad(of_padding, tuple(past), 0)
    total = np.zeros((1, *y.shape[1:3], 1), int)
    for _, pixels in taps(size, y.shape, stride):
        total += ones[pixels]
    return total
