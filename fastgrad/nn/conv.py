"""The convolution layer of images (N, H, W, C)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import generator
from fastgrad.functional import geometry
from fastgrad.functional.conv import run
from fastgrad.functional.geometry import Padding, Pair
from fastgrad.init.choice import checked_weights, init_function
from fastgrad.kernels.types import Activation, Geometry
from fastgrad.nn.context import ForwardContext
from fastgrad.nn.model import views
from fastgrad.nn.residual_layer import ResidualLayer, ResidualLayerBackward


@foreign_keywords
class Conv2d(ResidualLayer):
    """A convolution layer of images.

    y = act(conv(x, w) + b), as fg.conv2d

    x is (N, H, W, n_in) and y (N, H', W', n_out). The parameters are w (kh, kw, n_in / groups, n_out) and b (n_out,),
    which starts at 0.

    Args:
        n_in: Channels of the inputs, at least 1.
        n_out: Channels of the outputs, at least 1.
        size: The kernel in pixels (kh, kw), vertical and horizontal; an integer is both.
        stride: Steps of the window in pixels (sh, sw); an integer is both.
        padding: Zeros on either side in pixels, an integer or a pair; ((top, bottom), (left, right)); "valid" or "same",
            as of fg.conv2d.
        dilation: Distance of the kernel's pixels (dh, dw); an integer is both.
        groups: In how many groups the channels are convolved apart; it divides n_in and n_out.
        activation: The name of an activation, or a pair of a name and its parameter.
        bias: Whether there is a b.
        init: The initial weights: a name of fg.init, a pair of a name and its option, or a function of (shape, rng).
        dtype: "float32" or "float64", of parameters and inputs.
        seed: The seed of the initial weights; None as 0, or as the Sequential draws them that the layer becomes part
            of.

    Raises:
        ValueError: A number is out of its range, groups does not divide the channels, or an option is unknown.
        TypeError: A number is no integer.

    Example:
        >>> layer = fg.nn.Conv2d(3, 8, 3, padding="same", activation="relu", seed=0)
        >>> layer.predict(np.zeros((2, 16, 16, 3), np.float32)).shape
        (2, 16, 16, 8)
    """

    images = True
    n_in: int
    n_out: int

    def __init__(
        self,
        n_in: int,
        n_out: int,
        size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: Padding = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        activation: str | tuple[str, float] = "identity",
        bias: bool = True,
        init: str | Callable[..., np.ndarray] = "he_uniform",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        op = type(self).__name__
        self.n_in, self.n_out = check.count(op, "n_in", n_in), check.count(op, "n_out", n_out)
        self.size = size = geometry.pair(op, "size", size)
        self.groups = check.count(op, "groups", groups)
        for name, n in (("n_in", self.n_in), ("n_out", self.n_out)):
            if n % self.groups:
                raise ValueError(f"{op}: groups must divide {name}, {n}, got {self.groups}")
        self.stride, self.dilation = geometry.pair(op, "stride", stride), geometry.pair(op, "dilation", dilation)
        self.padding = padding
        self._reach = self.dilation[0] * (size[0] - 1) + 1, self.dilation[1] * (size[1] - 1) + 1
        # an image as large as the kernel's reach has a window with any padding
        geometry.windows(op, "the kernel's reach", self._reach, self._reach, self.stride, padding, half=False)
        self.output = check.activation(op, activation)
        self._init = init_function(op, init)
        shapes: dict[str, tuple[int, ...]] = {"w": (*size, self.n_in // self.groups, self.n_out)}
        if bias:
            shapes["b"] = (self.n_out,)
        super().__init__(shapes, dtype, seed)
        self._start(generator(seed, type(self).__name__))

    @property
    def w(self) -> np.ndarray:
        """The weights (kh, kw, n_in / groups, n_out), a view of params."""
        return self._weights[0]

    @property
    def b(self) -> np.ndarray | None:
        """The bias (n_out,), a view of params, or None."""
        return self._weights[1]

    def _forward_residual(
        self, x: np.ndarray, context: ForwardContext, activation: Activation, residual: np.ndarray | None = None
    ) -> tuple[np.ndarray, ResidualLayerBackward]:
        op = type(self).__name__
        x = self._array(op, "x", x, "(N, H, W, C)", (None, None, None, self.n_in))
        x = geometry.images(op, x)
        n, height, width, _ = x.shape
        pads, image_out = geometry.windows(
            op, "the kernel's reach", self._reach, (height, width), self.stride, self.padding, half=False
        )
        shape = n, *image_out, self.n_out
        if residual is not None:
            residual = check.contiguous(self._array(op, "residual", residual, "(N, H', W', K)", shape))
        windows = Geometry(self.stride, pads, self.dilation)
        y, backward = run(op, x, *self._weights, windows, residual, activation, shape)
        context.observe(self.w, y, activation)
        return y, lambda dy: backward(dy, *self._gradients, context.want_dx)

    def _bind_parameters(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._bind_parameters(params, grads)
        self._weights, self._gradients = self._arrays_of(params), self._arrays_of(grads)

    def _arrays_of(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        arrays = views(flat, self._shapes)
        return arrays["w"], arrays.get("b")

    def _draw(self, rng: np.random.Generator) -> None:
        self.w[...] = checked_weights(type(self).__name__, self._init(self.w.shape, rng), self.w)
