"""Residual nets for images."""

from typing import Any

from fastgrad.core import check
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.container import Sequential
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.dense import Dense
from fastgrad.nn.model import Model
from fastgrad.nn.pool import GlobalAvgPool2d, MaxPool2d
from fastgrad.nn.residual import Residual

STEMS = ("7x7", "3x3")


@foreign_keywords
class ResNet(Sequential):
    """A classifier of images: a stem, stages of residual blocks, the mean over each image, a dense layer of logits.

    Stage s has blocks[s] blocks of two 3x3 convolutions, width 2^s channels and, from the second on, half as many rows
    and columns. Where a block changes the shape its shortcut is a 1x1 convolution. x is (N, H, W, n_in), and the
    output, logits, (N, n_out).

    ResNet(3, 1000, [2, 2, 2, 2]) is ResNet-18, ResNet(3, 10, [3, 3, 3], 16, stem="3x3") the ResNet-20 for CIFAR.

    Args:
        n_in: Channels of the images.
        n_out: The number of logits.
        blocks: The number of blocks of each stage, a list or tuple.
        width: Channels of the first stage.
        stem: "7x7", a convolution and a max-pool that halve the image twice (He et al. 2015, table 1), or "3x3", a
            convolution alone (section 4.2 there).
        version: 1: batch norm and relu follow a convolution. 2: they come before it (He et al. 2016, figure 1b).
        init: The initial weights of convolutions and of the dense layer, as of Conv2d and Dense.
        dtype: "float32" or "float64".
        seed: The seed of the initial weights; None as 0.

    Raises:
        ValueError: A number is out of its range, or stem, version, init or dtype is unknown.
        TypeError: A number is no integer, or blocks no list or tuple.

    Example:
        >>> model = fg.nn.ResNet(3, 10, [1, 1], width=4, stem="3x3", seed=0)
        >>> model.predict(np.zeros((2, 8, 8, 3), np.float32)).shape
        (2, 10)

    References:
        He et al. 2015, "Deep Residual Learning for Image Recognition".
        He et al. 2016, "Identity Mappings in Deep Residual Networks": version 2.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        blocks: list[int],
        width: int = 64,
        *,
        stem: str = "7x7",
        version: int = 1,
        init: Any = "he_normal",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        op = type(self).__name__
        n_in, n_out = check.count(op, "n_in", n_in), check.count(op, "n_out", n_out)
        check.sequence(op, "blocks", blocks)
        counts = [check.count(op, f"blocks[{stage}]", n) for stage, n in enumerate(blocks)]
        width = check.count(op, "width", width)
        check.choice(op, "stem", stem, STEMS)
        if version not in (1, 2):
            raise ValueError(f"{op}: version must be 1 or 2, got {version!r}")

        def conv(n_in: int, n_out: int, size: int, stride: int = 1) -> Model:
            return Conv2d(
                n_in, n_out, size, stride=stride, padding=size // 2, bias=False, init=init, dtype=dtype
            )  # fmt: skip

        def norm(n: int, activation: str = "relu") -> Model:
            return BatchNorm(n, activation, dtype=dtype)

        def block(n_in: int, n_out: int, stride: int) -> Model:
            first, second = conv(n_in, n_out, 3, stride), conv(n_out, n_out, 3)
            projection = None if (n_in, stride) == (n_out, 1) else conv(n_in, n_out, 1, stride)
            if version == 1:
                shortcut = None if projection is None else Sequential(projection, norm(n_out, "identity"))
                return Residual(Sequential(first, norm(n_out), second, norm(n_out, "identity")), shortcut, "relu")
            if projection is None:
                return Residual(Sequential(norm(n_in), first, norm(n_out), second))
            return Sequential(norm(n_in), Residual(Sequential(first, norm(n_out), second), projection))

        layers = [conv(n_in, width, 7, 2) if stem == "7x7" else conv(n_in, width, 3)]
        if version == 1:
            layers.append(norm(width))
        if stem == "7x7":
            layers.append(MaxPool2d(3, stride=2, padding=1))
        n = width
        for stage, count in enumerate(counts):
            for i in range(count):
                layers.append(block(n, width << stage, 2 if stage and not i else 1))
                n = width << stage
        if version == 2:
            layers.append(norm(n))
        super().__init__(*layers, GlobalAvgPool2d(), Dense(n, n_out, init=init, dtype=dtype), seed=seed)
