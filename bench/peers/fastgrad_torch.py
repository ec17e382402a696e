"""fastgrad in PyTorch: the loops of bench/peers/torch.py with what fastgrad puts into them."""

import fastgrad.torch as fgt
from bench.peers import torch


class TorchStep(torch.Step):
    @staticmethod
    def build(net):
        model = torch.build(net)
        fgt.accelerate(model)
        return model


class TorchShared(torch.Shared):
    @staticmethod
    def build(net):
        return torch.DistributedDataParallel(TorchStep.build(net), gradient_as_bucket_view=True)


class TorchLstm(torch.Lstm):
    layer = fgt.LSTM
    pack, pad = staticmethod(fgt.pack_padded_sequence), staticmethod(fgt.pad_packed_sequence)


class TorchUpdate(torch.Update):
    clip = staticmethod(fgt.clip_grad_norm_)
    adam = fgt.Adam
