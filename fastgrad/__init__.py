"""Fused, compiled forward and backward kernels for deep nets, called from any training code.

A functional forward returns (result, backward); backward(upstream) returns gradients in the order of the inputs.
"""

from typing import TYPE_CHECKING, Any

from fastgrad import convert, gpu, health, init, loss, nn, optim, schedule
from fastgrad.convert.onnx_export import export_onnx
from fastgrad.core.backend import BackendError, backend, get_num_threads, set_num_threads, use_backend
from fastgrad.core.foreign_names import unknown_name
from fastgrad.functional.batch_norm import batch_norm
from fastgrad.functional.clip import (
    clip_grad_adaptive,
    clip_grad_norm,
    clip_grad_norm_each,
    clip_grad_value,
    clip_weights,
    project_weights,
)
from fastgrad.functional.conv import conv2d
from fastgrad.functional.dense import dense, dense_chain
from fastgrad.functional.gru import gru, gru_cell
from fastgrad.functional.layer_norm import layer_norm
from fastgrad.functional.loss import binary_cross_entropy, cross_entropy, huber, mae, mse, poisson_nll
from fastgrad.functional.lstm import lstm, lstm_cell
from fastgrad.functional.pool import avg_pool2d, global_avg_pool2d, max_pool2d
from fastgrad.optim.updater import Updater
from fastgrad.pruning import GradualPruning, prune, remove_masks
from fastgrad.training.checkpoint import load, save
from fastgrad.training.trainer import Trainer

__all__ = [
    "BackendError",
    "GradualPruning",
    "Trainer",
    "Updater",
    "__version__",
    "avg_pool2d",
    "backend",
    "batch_norm",
    "binary_cross_entropy",
    "clip_grad_adaptive",
    "clip_grad_norm",
    "clip_grad_norm_each",
    "clip_grad_value",
    "clip_weights",
    "conv2d",
    "convert",
    "cross_entropy",
    "dense",
    "dense_chain",
    "export_onnx",
    "get_num_threads",
    "global_avg_pool2d",
    "gpu",
    "gru",
    "gru_cell",
    "health",
    "huber",
    "init",
    "layer_norm",
    "load",
    "loss",
    "lstm",
    "lstm_cell",
    "mae",
    "max_pool2d",
    "mse",
    "nn",
    "optim",
    "poisson_nll",
    "project_weights",
    "prune",
    "remove_masks",
    "save",
    "schedule",
    "set_num_threads",
    "use_backend",
]


if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            # read at its first use, since this takes 10 ms
            from importlib.metadata import version

            return version("fastgrad")
        raise unknown_name(__name__, name)
