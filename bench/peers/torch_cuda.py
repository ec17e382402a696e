"""PyTorch on a GPU, eager: fused Adam, foreach clipping, cuDNN; in float32 throughout, without TF32."""

import torch

from bench.peers import CannotExpress, OnGpu
from bench.peers import torch as eager

DEVICE = "cuda" if torch.cuda.is_available() else None


def setup(threads):
    if DEVICE is None:
        raise CannotExpress("no PyTorch with CUDA")
    torch.backends.cudnn.allow_tf32 = False
    # all shapes stay
    torch.backends.cudnn.benchmark = True


class OnCuda(OnGpu):
    def __init__(self, work):
        with torch.device(DEVICE):
            super().__init__(work)

    def wait(self):
        torch.cuda.synchronize()


class Step(OnCuda, eager.Step):
    pass


class Blocks(OnCuda, eager.Blocks):
    pass


class Lstm(OnCuda, eager.Lstm):
    pass


class BatchNorm(OnCuda, eager.BatchNorm):
    pass


class Update(OnCuda, eager.Update):
    pass
