"""NumPy: fastgrad's reference backend; np.matmul for products, NumPy's generator for initial weights.

In float64 it is the reference with which all results are compared.
"""

import numpy as np

import fastgrad as fg
from bench.peers import Runner
from bench.peers.fastgrad_cpu import (
    BatchNorm,
    Blocks,
    Call,
    CallBack,
    Clip,
    Conv,
    ConvForward,
    ConvInputs,
    ConvWeights,
    Fit,
    Forward,
    Gru,
    LayerNorm,
    LayerNormLstm,
    Lstm,
    LstmCell,
    LstmForward,
    Step,
    Update,
)

__all__ = [
    "BatchNorm",
    "Blocks",
    "Call",
    "CallBack",
    "Clip",
    "Conv",
    "ConvForward",
    "ConvInputs",
    "ConvWeights",
    "Fit",
    "Forward",
    "Gemm",
    "Gru",
    "HeNormal",
    "LayerNorm",
    "LayerNormLstm",
    "Lstm",
    "LstmCell",
    "LstmForward",
    "Step",
    "TorchGru",
    "TorchLstm",
    "TorchShared",
    "TorchStep",
    "TorchUpdate",
    "TorchWholeStep",
    "Update",
    "setup",
]


def setup(threads):
    """The BLAS takes its number of threads from the environment."""
    fg.use_backend("numpy")


class Gemm(Runner):
    def __init__(self, gemm):
        self.inputs = [(*gemm.operands(), np.empty((gemm.m, gemm.n), gemm.dtype))]
        self.call = np.matmul


class HeNormal(Runner):
    def __init__(self, weights):
        self.weights = weights
        self.rng = np.random.default_rng(0)
        self.w = np.empty(weights.shape, weights.dtype)

    def call(self):
        self.rng.standard_normal(out=self.w, dtype=self.w.dtype)
        self.w *= np.sqrt(2 / len(self.w))
        return self.w

    def fetch(self, w):
        return self.weights.outcome(w)


TorchStep, TorchWholeStep, TorchLstm, TorchGru, TorchUpdate = Step, Step, Lstm, Gru, Update
# all rows are in one process
TorchShared = Step
