"""Residual nets for images."""

from typing import Any

from fastgrad.core import check
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.container import Sequential
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.dense import Dense
from fastgrad.nn.model import Model
from fastgrad.nn.pool import GlobalAvgPool2d, MaxPool2d
from fastgrad.nn.residual import Residual

STEMS = ("7x7", "3x3")


class ResNet(Sequential):
    """A classifier of images of n_in channels: a stem, stages of residual blocks, the mean over each image, a dense layer of n_out logits.

    Stage s has blocks[s] blocks of two 3x3 convolutions, width 2^s channels and, from the second on, half as many rows and columns.
    stem "7x7" is a convolution and a max-pool that halve the image twice (He et al. 2015, table 1), "3x3" a convolution alone (4.2).
    Batch norm and relu follow a convolution in version 1, come before it in version 2 (He et al. 2016, figure 1b). Where a block changes
    the shape its shortcut is a 1x1 convolution.

    ResNet(3, 1000, [2, 2, 2, 2]) is ResNet-18, ResNet(3, 10, [3, 3, 3], 16, stem="3x3") the ResNet-20 for CIFAR.
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
        check.each(op, "blocks", blocks)
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
