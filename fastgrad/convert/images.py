"""ImageShape: what is known of the images at a place in a model, and the order of the values after a Flatten.

Images are (N, H, W, C) here and (N, C, H, W) in PyTorch, so that a Flatten lays their values out in another order. The weights of the
layer after it are permuted, for which height and width must be known.
"""

from math import prod
from typing import Any

import numpy as np

from fastgrad.functional import geometry
from fastgrad.functional.geometry import Pair
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.pool import MaxPool2d

Pads = tuple[int, int, int, int]


class ImageShape:
    """Height, width and channels of the images at a place in a model, as far as they are known.

    size: (H, W), the argument image_size of the caller op, or None.
    """

    def __init__(self, op: str, size: Any, channels: int | None) -> None:
        self.size: Pair | None = None if size is None else geometry.pair(op, "image_size", size)
        self.channels = channels
        # where a Flatten has made rows of images: its name, until a dense layer comes
        self.flattened = ""

    def pads(self, layer: Conv2d | MaxPool2d) -> Pads | None:
        """(top, left, bottom, right) of a Conv2d or a pool; None if they depend on an image whose size is not known."""
        reach = layer._reach if isinstance(layer, Conv2d) else layer.size
        size = self.size
        if size is None:
            if layer.padding == "same" and layer.stride != (1, 1):
                return None
            size = reach
        op = type(layer).__name__
        half, ceil = not isinstance(layer, Conv2d), isinstance(layer, MaxPool2d) and layer.ceil_mode
        windows = reach, size, layer.stride, layer.padding
        pads, image_out = geometry.windows(op, "size", *windows, half=half, ceil=ceil)
        if self.size is not None:
            self.size = image_out
        if isinstance(layer, Conv2d):
            self.channels = layer.n_out
        return pads

    def order(self, op: str, n: int) -> np.ndarray | None:
        """Of the n columns after a Flatten the number that each has in PyTorch's order; None if that is its own."""
        if not self.flattened or self.channels == n:
            return None
        if self.size is None:
            raise ValueError(
                f"{op}: {self.flattened} makes rows of images, whose order depends on their height and width; "
                "image_size=(H, W) of the model's inputs tells them"
            )
        channels, rest = divmod(n, prod(self.size))
        if rest or self.channels not in (None, channels):
            shape = (*self.size, "C" if self.channels is None else self.channels)
            text = f"({', '.join(map(str, shape))})"
            raise ValueError(f"{op}: {self.flattened} makes rows of images {text}, which do not give {n} columns")
        return np.arange(n).reshape(channels, *self.size).transpose(1, 2, 0).reshape(-1)
