"""PyTorch on a GPU with torch.compile: forward, loss and their backward are compiled."""

import torch

from bench.peers import UnsupportedWorkload, torch_cuda
from bench.peers.torch_cuda import setup

__all__ = ["BatchNorm", "Blocks", "Lstm", "Step", "Update", "setup"]


class Step(torch_cuda.Step):
    def prepare(self, loss):
        return torch.compile(loss)


class Blocks(torch_cuda.Blocks):
    def prepare(self, loss):
        return torch.compile(loss)


class Compiled:
    """The forward of a peer, compiled."""

    def __init__(self, work):
        super().__init__(work)
        self.forward = torch.compile(self.forward)


class Lstm(Compiled, torch_cuda.Lstm):
    pass


class BatchNorm(Compiled, torch_cuda.BatchNorm):
    pass


class Update:
    def __init__(self, update):
        raise UnsupportedWorkload("its fused update is PyTorch's")
