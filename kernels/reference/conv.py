"""Convolution of images, channels last, then residual and activation (LeCun et al. 1989; a cross-correlation, as in every framework).

    z[n, i, j, k] = sum over a, b, c of x[n, i sh + a dh - top, j sw + b dw - left, c] w[a, b, c, k] + b[k] + residual[n, i, j, k]
    y = f(z), with x zero outside the image

Backwards, with dz = dy f'(z), which is dresidual too (Dumoulin & Visin 2016):

    db[k] = sum over n, i, j of dz[n, i, j, k]
    dw[a, b, c, k] = sum over n, i, j of x[n, i sh + a dh - top, j sw + b dw - left, c] dz[n, i, j, k]
    dx[n, i sh + a dh - top, j sw + b dw - left, c] += w[a, b, c, k] dz[n, i, j, k] for every n, i, j, a, b, k

x (N, H, W, C), w (kh, kw, C / groups, K), b (K,), residual, z, y and dz (N, H', W', K). Group g connects its
C / groups consecutive channels with its K / groups consecutive outputs only (Krizhevsky et al. 2012). stride (sh, sw), dilation (dh, dw)
and pads (top, left, bottom, right) in pixels:

    H' = (H + top + bottom - dh (kh - 1) - 1) // sh + 1, W' likewise

All arrays are of one dtype and contiguous. Saved for backward: x, w, and y, or z where f' is taken from it.
"""

import numpy as np

from .activation import activation_backward, activation_forward


def conv2d_forward(x, w, b, geometry, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (N, H', W', K); b (K,), residual may be None."""
    (stride, pads, dilation), (z, y) = geometry, saved
    padded = pad(x, pads, 0)
    z[...] = 0
    for tap, pixels in taps(w.shape, z.shape, stride, dilation):
        for c, k in channel_groups(x, w):
            z[..., k] += np.tensordot(padded[pixels][..., c], w[tap][:, k], axes=1)
    if b is not None:
        z += b
    if residual is not None:
        z += residual
    activation_forward(z, y, activation)


def conv2d_backward(dy, x, w, geometry, activation, saved, gradients):
    """Overwrite gradients: dz (N, H', W', K), dx like x, dw like w and db (K,); dx, dw and db may be None."""
    (stride, pads, dilation), (dz, dx, dw, db) = geometry, gradients
    activation_backward(dy, *saved, dz, activation)
    padded = pad(x, pads, 0)
    dpadded = np.zeros_like(padded)
    for tap, pixels in taps(w.shape, dz.shape, stride, dilation):
        for c, k in channel_groups(x, w):
            if dw is not None:
                dw[tap][:, k] = np.tensordot(padded[pixels][..., c], dz[..., k], axes=((0, 1, 2), (0, 1, 2)))
            if dx is not None:
                dpadded[pixels][..., c] += np.tensordot(dz[..., k], w[tap][:, k].T, axes=1)
    if db is not None:
        db[...] = dz.sum(axis=(0, 1, 2), dtype=np.float64)
    if dx is not None:
        dx[...] = inner(dpadded, pads)


def taps(size, outputs, stride, dilation=(1, 1)):
    """For every tap (a, b) of a window: (a, b), and the slices of the padded image that it reads for all outputs (N, H', W', .)."""
    for tap in np.ndindex(*size[:2]):
        first = [a * step for a, step in zip(tap, dilation, strict=True)]
        pixels = (slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, outputs[1:3], stride, strict=True))
        yield tap, (slice(None), *pixels)


def channel_groups(x, w):
    """For every group: the slice of its channels of x, and the slice of its outputs in w."""
    channels = w.shape[2]
    groups = x.shape[3] // channels
    outputs = w.shape[3] // groups
    for g in range(groups):
        yield slice(g * channels, (g + 1) * channels), slice(g * outputs, (g + 1) * outputs)


def pad(x, pads, value):
    """x (N, H, W, C) padded with this value, pads (top, left, bottom, right)."""
    top, left, bottom, right = pads
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def inner(padded, pads):
    """The image without its padding."""
    top, left, bottom, right = pads
    return padded[:, top : padded.shape[1] - bottom, left : padded.shape[2] - right]
