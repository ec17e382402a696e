"""PyTorch on a GPU, eager: fused Adam, foreach clipping, cuDNN; in float32 throughout, without TF32."""

import torch

from bench.peers import GpuRunner, UnsupportedWorkload
from bench.peers import torch_cpu as eager

DEVICE = "cuda" if torch.cuda.is_available() else None


def setup(threads):
    if DEVICE is None:
        raise UnsupportedWorkload("no PyTorch with CUDA")
    torch.backends.cudnn.allow_tf32 = False
    # all shapes stay
    torch.backends.cudnn.benchmark = True


class CudaRunner(GpuRunner):
    def __init__(self, work):
        with torch.device(DEVICE):
            super().__init__(work)

    def wait(self):
        torch.cuda.synchronize()


class Step(CudaRunner, eager.Step):
    pass


class Blocks(CudaRunner, eager.Blocks):
    pass


class Lstm(CudaRunner, eager.Lstm):
    pass


class BatchNorm(CudaRunner, eager.BatchNorm):
    pass


class Update(CudaRunner, eager.Update):
    pass
