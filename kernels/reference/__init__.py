"""The definition of every op in plain NumPy, in float32 or float64 as the arrays come: the "numpy" backend."""

from .activation import activation_backward, activation_forward
from .dense import dense_chain_backward, dense_chain_forward, dense_chain_infer
from .loss import binary_cross_entropy, cross_entropy, mse
from .lstm import gather_rows, lstm_backward, lstm_forward, scatter_rows
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
    "gather_rows",
    "lstm_backward",
    "lstm_forward",
    "mse",
    "scatter_rows",
    "squared_norm",
    "update",
]
