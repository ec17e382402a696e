"""NumPy: fastgrad's reference backend, and the product as its BLAS does it."""

import numpy as np

import fastgrad as fg
from bench.peers import Runner
from bench.peers.fastgrad import (
    BatchNorm,
    Blocks,
    Conv,
    ConvForward,
    ConvInputs,
    ConvWeights,
    Forward,
    Lstm,
    LstmCell,
    LstmForward,
    Step,
)

__all__ = [
    "BatchNorm",
    "Blocks",
    "Conv",
    "ConvForward",
    "ConvInputs",
    "ConvWeights",
    "Forward",
    "Gemm",
    "Lstm",
    "LstmCell",
    "LstmForward",
    "Step",
    "setup",
]


def setup(threads):
    """The BLAS takes its number of threads from the environment."""
    fg.use_backend("numpy")


class Gemm(Runner):
    def __init__(self, gemm):
        self.inputs = [(*gemm.operands(), np.empty((gemm.m, gemm.n), gemm.dtype))]
        self.call = np.matmul
