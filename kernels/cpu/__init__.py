"""The Numba backend: compiled kernels for the CPU."""

from .activation import activation_backward, activation_forward
from .dense import dense_chain_backward, dense_chain_forward, dense_chain_infer
from .loss import binary_cross_entropy, cross_entropy, mse
from .optim import squared_norm, update
from .train import dense_chain_epoch, dense_chain_step

__all__ = [
    "activation_backward",
    "activation_forward",
    "binary_cross_entropy",
    "cross_entropy",
    "dense_chain_backward",
    "dense_chain_epoch",
    "dense_chain_forward",
    "dense_chain_infer",
    "dense_chain_step",
    "mse",
    "squared_norm",
    "update",
]
