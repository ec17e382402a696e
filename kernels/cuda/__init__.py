"""The CUDA backend: Numba-CUDA kernels over CuPy arrays. It has some of the functions of the others; fastgrad.backend says so."""

from .activation import activation_backward, activation_forward
from .dense import dense_chain_backward, dense_chain_forward, dense_chain_infer
from .loss import binary_cross_entropy, cross_entropy, mse, poisson_nll

__all__ = [
    "activation_backward",
    "activation_forward",
    "binary_cross_entropy",
    "cross_entropy",
    "dense_chain_backward",
    "dense_chain_forward",
    "dense_chain_infer",
    "mse",
    "poisson_nll",
]
