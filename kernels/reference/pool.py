"""Max and mean pooling of images, channels last (Fukushima 1980; Riesenhuber & Poggio 1999).

    max    y[n, i, j, c] = max over a, b of x[n, i sh + a - top, j sw + b - left, c], the padding being -inf
    mean   y[n, i, j, c] = sum over a, b of x[n, i sh + a - top, j sw + b - left, c] / count[i, j], the padding being 0

count is kh kw, or without include_pad the number of pixels of the image in the window. Backwards:

    max    dx[n, h, w, c] = sum of dy[n, i, j, c] over the windows of which h, w is the first pixel, in row order, that equals y
    mean   dx[n, h, w, c] = sum of dy[n, i, j, c] / count[i, j] over the windows that hold h, w

x and dx (N, H, W, C), y and dy (N, H', W', C); size (kh, kw), stride (sh, sw), pads (top, left, bottom, right) in pixels, H' and W' as in
conv.py; every window holds a pixel of the image. NaN in a window gives NaN, and the first NaN is its largest value.
All arrays are of one dtype and contiguous. Saved for backward: x and y of the maximum, nothing of the mean.
"""

import numpy as np

from .conv import inner, pad, taps


def max_pool2d_forward(x, size, stride, pads, y):
    """y (N, H', W', C)."""
    padded = pad(x, pads, -np.inf)
    y[...] = -np.inf
    for _, pixels in taps(size, y.shape, stride):
        np.maximum(y, padded[pixels], out=y)


def max_pool2d_backward(dy, x, y, size, stride, pads, dx):
    """dx (N, H, W, C) is overwritten."""
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
    padded = pad(x, pads, 0)
    y[...] = 0
    for _, pixels in taps(size, y.shape, stride):
        y += padded[pixels]
    y /= counts(x.shape, y.shape, size, stride, pads, include_pad).astype(y.dtype)


def avg_pool2d_backward(dy, size, stride, pads, include_pad, dx):
    """dx (N, H, W, C) is overwritten."""
    dpadded = pad(np.zeros_like(dx), pads, 0)
    shares = dy / counts(dx.shape, dy.shape, size, stride, pads, include_pad).astype(dy.dtype)
    for _, pixels in taps(size, dy.shape, stride):
        dpadded[pixels] += shares
    dx[...] = inner(dpadded, pads)


def counts(image, outputs, size, stride, pads, include_pad):
    """The number of values in each mean, (1, H', W', 1)."""
    ones = pad(np.ones((1, *image[1:3], 1), int), pads, int(include_pad))
    total = np.zeros((1, *outputs[1:3], 1), int)
    for _, pixels in taps(size, outputs, stride):
        total += ones[pixels]
    return total
