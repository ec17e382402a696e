"""fastgrad's kernels in PyTorch: `import fastgrad.torch as fgt`.

Operators share their tensors' memory, are differentiated by autograd, and are registered for torch.compile. They take dense tensors of
float32 or float64 on the CPU; under autocast they compute in float32 and return the dtype that PyTorch's would. There is no second
derivative, no forward-mode one, and no torch.func. They run on PyTorch's own threads where these are OpenMP's.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    # 2.4 is the first with torch.library.custom_op
    raise ImportError('fastgrad.torch needs PyTorch from 2.4 on: pip install "fastgrad[torch]"') from error

from fastgrad.torch.acceleration import accelerate
from fastgrad.torch.gru_module import GRU
from fastgrad.torch.lstm_module import LSTM
from fastgrad.torch.modules import MLP, BatchNorm1d, BatchNorm2d, LayerNorm, ResidualBlock
from fastgrad.torch.ops.batch_norm import batch_norm
from fastgrad.torch.ops.clip import clip_grad_norm_
from fastgrad.torch.ops.conv import conv2d
from fastgrad.torch.ops.conv_block import conv_block
from fastgrad.torch.ops.dense import dense_chain
from fastgrad.torch.ops.gru import gru
from fastgrad.torch.ops.layer_norm import layer_norm
from fastgrad.torch.ops.loss import cross_entropy
from fastgrad.torch.ops.lstm import lstm
from fastgrad.torch.ops.packing import pack_padded_sequence, pad_packed_sequence
from fastgrad.torch.optim import Adam, AdamW
from fastgrad.torch.step import training_step
from fastgrad.torch.threads import share_threads

share_threads()

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "Adam",
    "AdamW",
    "BatchNorm1d",
    "BatchNorm2d",
    "LayerNorm",
    "ResidualBlock",
    "accelerate",
    "batch_norm",
    "clip_grad_norm_",
    "conv2d",
    "conv_block",
    "cross_entropy",
    "dense_chain",
    "gru",
    "layer_norm",
    "lstm",
    "pack_padded_sequence",
    "pad_packed_sequence",
    "training_step",
]
