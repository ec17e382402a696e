"""Workloads of `python -m bench.conv_grid`: all distinct convolutions of well-known nets.

Each is there for two sizes of images, three batches and three directions: y, dx, dw.
"""

import re

from bench.workloads.conv import Conv

# a net: (sides of its images, its convolutions). A convolution is size[d][/stride] channels[>outputs] @how many times smaller than the
# image its input is; d: depthwise. Read from the papers' tables: He et al. 2015 (ResNet-18, -50 and -20), Sandler et al. 2018, Tan and Le
# 2019 (without the gates of squeeze-and-excitation, which have one pixel), Ma et al. 2018, Simonyan and Zisserman 2014
NETS = {
    "ResNet-18": (
        (224, 64),
        """7/2 3>64 @1, 3 64>64 @4, 3/2 64>128 @4, 1/2 64>128 @4, 3 128>128 @8, 3/2 128>256 @8, 1/2 128>256 @8, 3 256>256 @16,
        3/2 256>512 @16, 1/2 256>512 @16, 3 512>512 @32""",
    ),
    "ResNet-50": (
        (224, 64),
        """1 64>64 @4, 1 64>256 @4, 1 256>64 @4, 1 256>128 @4, 3/2 128>128 @4, 1 128>512 @8, 1/2 256>512 @4, 1 512>128 @8,
        1 512>256 @8, 3/2 256>256 @8, 1 256>1024 @16, 1/2 512>1024 @8, 1 1024>256 @16, 1 1024>512 @16, 3/2 512>512 @16,
        1 512>2048 @32, 1/2 1024>2048 @16, 1 2048>512 @32""",
    ),
    "MobileNet-V2": (
        (224, 64),
        """3/2 3>32 @1, 3d 32 @2, 1 32>16 @2, 1 16>96 @2, 3d/2 96 @2, 1 96>24 @4, 1 24>144 @4, 3d 144 @4, 1 144>24 @4, 3d/2 144 @4,
        1 144>32 @8, 1 32>192 @8, 3d 192 @8, 1 192>32 @8, 3d/2 192 @8, 1 192>64 @16, 1 64>384 @16, 3d 384 @16, 1 384>64 @16,
        1 384>96 @16, 1 96>576 @16, 3d 576 @16, 1 576>96 @16, 3d/2 576 @16, 1 576>160 @32, 1 160>960 @32, 3d 960 @32, 1 960>160 @32,
        1 960>320 @32, 1 320>1280 @32""",
    ),
    "EfficientNet-B0": (
        (224, 64),
        """5d/2 144 @4, 1 144>40 @8, 1 40>240 @8, 5d 240 @8, 1 240>40 @8, 3d/2 240 @8, 1 240>80 @16, 1 80>480 @16, 3d 480 @16,
        1 480>80 @16, 5d 480 @16, 1 480>112 @16, 1 112>672 @16, 5d 672 @16, 1 672>112 @16, 5d/2 672 @16, 1 672>192 @32, 1 192>1152 @32,
        5d 1152 @32, 1 1152>192 @32, 3d 1152 @32, 1 1152>320 @32""",
    ),
    "ShuffleNet-V2": (
        (224, 64),
        """3/2 3>24 @1, 3d/2 24 @4, 1 24>58 @8, 1 24>58 @4, 3d/2 58 @4, 1 58>58 @8, 3d 58 @8, 3d/2 116 @8, 1 116>116 @16, 1 116>116 @8,
        3d 116 @16, 3d/2 232 @16, 1 232>232 @32, 1 232>232 @16, 3d 232 @32, 1 464>1024 @32""",
    ),
    "VGG-11": (
        (224, 64),
        "3 3>64 @1, 3 64>128 @2, 3 128>256 @4, 3 256>256 @4, 3 256>512 @8, 3 512>512 @8, 3 512>512 @16",
    ),
    "ResNet-20": ((32,), "3 3>16 @1, 3 16>16 @1, 3/2 16>32 @1, 3 32>32 @2, 3/2 32>64 @2, 3 64>64 @4"),
}
BATCHES = 1, 8, 32
DIRECTIONS = {"y": "ConvForward", "dx": "ConvInputs", "dw": "ConvWeights"}
CONVOLUTION = re.compile(r"(\d+)(d?)(?:/(\d))? (\d+)(?:>(\d+))? @(\d+)")


def convolutions(net, side):
    """[(side, channels, outputs, size, stride, groups), ...] of a net on images of this side."""
    shapes = []
    for convolution in NETS[net][1].split(","):
        size, depthwise, stride, channels, outputs, smaller = CONVOLUTION.fullmatch(convolution.strip()).groups()
        groups = int(channels) if depthwise else 1
        outputs = outputs or channels
        shapes.append((side // int(smaller), int(channels), int(outputs), int(size), int(stride or 1), groups))
    return shapes


def workload(shape, batch, direction):
    name = f"conv-grid-{'-'.join(map(str, shape))}-{batch}-{direction}"
    side, channels, outputs, size, stride, groups = shape
    return Conv(name, batch, side, channels, outputs, size, stride, groups, DIRECTIONS[direction])


# {(net, side of its images): shapes}; a shape that two nets have is in the table of the first
SHAPES = {(net, side): convolutions(net, side) for net, (sides, _) in NETS.items() for side in sides}
GRID = {
    (shape, batch, direction): workload(shape, batch, direction)
    for shapes in SHAPES.values() for shape in shapes for batch in BATCHES for direction in DIRECTIONS
}  # fmt: skip
