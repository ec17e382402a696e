"""Workloads of `python -m bench.nets`: training steps of nets that others wrote, as torchvision has them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OutsideNet:
    """A training step: forward, cross entropy, backward and SGD with momentum. builder: the name of the net in torchvision.models."""

    name: str
    builder: str
    batch: int
    side: int

    kind = "outside"
    runner = "TorchOutside"
    threads = None
    checked_calls = 2
    classes = 1000

    @property
    def title(self):
        return f"{self.builder}, {self.side}x{self.side}, N={self.batch}"

    def arrays(self):
        """Images (N, 3, H, W) and their labels (N,)."""
        rng = np.random.default_rng(0)
        images = rng.standard_normal((self.batch, 3, self.side, self.side), "f4")
        return images, rng.integers(self.classes, size=self.batch)


def _net(builder, batch=4, side=224):
    return OutsideNet(f"outside-{builder}-{side}", builder, batch, side)


OUTSIDE = [
    _net("resnet18", 8), _net("resnet18", 8, 64), _net("resnet18", 32, 32), _net("resnet50"), _net("resnet50", 4, 64),
    _net("wide_resnet50_2", 2), _net("resnext50_32x4d"), _net("vgg11_bn"), _net("vgg11_bn", 4, 64), _net("alexnet", 32),
    _net("googlenet"), _net("inception_v3", 2, 299), _net("squeezenet1_1"), _net("densenet121"), _net("mobilenet_v2"),
    _net("mobilenet_v2", 8, 64), _net("mobilenet_v3_small"), _net("mobilenet_v3_large"), _net("efficientnet_b0"), _net("mnasnet1_0"),
    _net("shufflenet_v2_x1_0"), _net("regnet_x_400mf"), _net("regnet_y_400mf"), _net("convnext_tiny", 2), _net("vit_b_16", 2),
    _net("swin_t", 2),
]  # fmt: skip
