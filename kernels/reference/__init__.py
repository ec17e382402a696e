"""The reference backend, "numpy": the definition of every op in plain NumPy, in the dtype of its arrays, float32 or float64."""

import numpy as np

from .activation import activation_backward, activation_forward
from .array_list import are_uniform
from .batch_norm import batch_norm_backward, batch_norm_forward, batch_norm_statistics
from .clip import array_norms, clamp_arrays, joint_norm, scale_arrays
from .conv import conv2d_backward, conv2d_forward
from .dense import dense_chain_backward, dense_chain_forward, dense_chain_infer
from .dropout import dropout_forward
from .gru import gru_backward, gru_forward
from .health import array_health, output_health
from .init import normal, orthogonal, uniform
from .layer_norm import layer_norm_backward, layer_norm_forward
from .loss import loss_gradient
from .lstm import lstm_backward, lstm_forward
from .lstm_variants import lstm_variant_backward, lstm_variant_forward
from .optim import update_arrays
from .packing import gather_rows, scatter_rows
from .pool import avg_pool2d_backward, avg_pool2d_forward, max_pool2d_backward, max_pool2d_forward
from .pruning import prune_below, prune_smallest
from .training_step import dense_chain_epoch, dense_chain_gradients, dense_chain_step
from .weight_layout import weights_from_taps, weights_to_taps

__all__ = [
    "activation_backward",
    "activation_forward",
    "are_uniform",
    "array_health",
    "array_norms",
    "avg_pool2d_backward",
    "avg_pool2d_forward",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_statistics",
    "clamp_arrays",
    "conv2d_backward",
    "conv2d_forward",
    "dense_chain_backward",
    "dense_chain_epoch",
    "dense_chain_forward",
    "dense_chain_gradients",
    "dense_chain_infer",
    "dense_chain_step",
    "dropout_forward",
    "gather_rows",
    "gru_backward",
    "gru_forward",
    "joint_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "loss_gradient",
    "lstm_backward",
    "lstm_forward",
    "lstm_variant_backward",
    "lstm_variant_forward",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "normal",
    "orthogonal",
    "output_health",
    "prune_below",
    "prune_smallest",
    "scale_arrays",
    "scatter_rows",
    "uniform",
    "update_arrays",
    "weights_from_taps",
    "weights_to_taps",
]

# NaN and infinities go through as arithmetic has it, whatever the caller has set with np.seterr
for _name in __all__:
    globals()[_name] = np.errstate(all="ignore")(globals()[_name])
