"""fastgrad in PyTorch: the loops of torch_cpu.py with fastgrad's modules, optimisers and `accelerate`."""

import numpy as np

import fastgrad.torch as fgt
from bench.peers import torch_cpu


class TorchStep(torch_cpu.Step):
    @staticmethod
    def build(net):
        model = torch_cpu.build(net)
        fgt.accelerate(model)
        return model


class TorchWholeStep(torch_cpu.Step):
    def restart(self):
        super().restart()
        self.step = fgt.training_step(self.model, self.criterion, self.optimizer, self.clip_norm)

    def call(self, x, y):
        return self.step(x, y)

    def fetch(self, loss):
        return np.asarray(loss)


class TorchShared(torch_cpu.Shared):
    @staticmethod
    def build(net):
        return torch_cpu.DistributedDataParallel(TorchStep.build(net), gradient_as_bucket_view=True)


class TorchLstm(torch_cpu.Lstm):
    layer = fgt.LSTM
    pack, pad = staticmethod(fgt.pack_padded_sequence), staticmethod(fgt.pad_packed_sequence)


class TorchGru(torch_cpu.Gru):
    layer = fgt.GRU


class TorchUpdate(torch_cpu.Update):
    clip = staticmethod(fgt.clip_grad_norm_)
    adam = fgt.Adam


class TorchOutside(torch_cpu.TorchOutside):
    def __init__(self, net):
        super().__init__(net)
        fgt.accelerate(self.model)
