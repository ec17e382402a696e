"""PyTorch with torch.compile: forward, loss and their backward are compiled. PyTorch's fused optimiser is compiled already."""

import shutil

import torch

from bench.peers import UnsupportedWorkload
from bench.peers.torch_cpu import Blocks as EagerBlocks
from bench.peers.torch_cpu import Forward as EagerForward
from bench.peers.torch_cpu import Step as EagerStep
from bench.peers.torch_cpu import setup as setup_eager


def setup(threads):
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UnsupportedWorkload("no C++ compiler")
    setup_eager(threads)


class Step(EagerStep):
    def prepare(self, loss):
        return torch.compile(loss)


class Blocks(Step, EagerBlocks):
    """The compiled loss of the eager blocks."""


class Forward(EagerForward):
    def prepare(self, model):
        return torch.compile(model)
