"""The gradients of a batch, layer by layer: forward, loss and backward of any model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.kernels import types
from fastgrad.kernels.types import Loss
from fastgrad.nn.context import ForwardContext, Observer
from fastgrad.nn.model import Model
from fastgrad.training.data import TrainingData, has_bad_label, packed_output


def layer_gradients(
    model: Model,
    loss: Loss,
    batch: TrainingData,
    state: Any,
    observer: Observer | None,
    mean: bool,
    frozen: Sequence[np.ndarray],
) -> tuple[int, Any, int, Any, Any]:
    """Fill the model's gradients, of the mean loss or of the sum: (status, loss, rows, counts, state).

    counts (2,): the weights of the rows of the mean, and of the right ones; None of a status that is not OK. state: the initial states of
    recurrent layers; the one returned has the last ones. frozen: see ForwardContext. The status is OK or BAD_LABEL, after which gradients
    are of no use.
    """
    x, target, lengths, weights = batch
    logits = loss.is_fused_with(model.output)
    input_batch = None if lengths is None else packed_batch("Trainer", x.shape[:2], lengths)
    context = ForwardContext(True, logits, input_batch, state, False, observer, frozen)
    y, state, backward = model._forward(x if input_batch is None else pack(x, input_batch), context)
    y, target, weights, output_batch = packed_output(model, y, target, weights, input_batch)
    losses, dy = empty(y.shape[:1] if loss.by_row else y.shape, y), empty(y.shape, y)
    # the kernels of a GPU make NaN of a bad class number
    by_class = target.ndim == 1 and target.size and not model.on_gpu
    if by_class and has_bad_label(target, y.shape[1], loss):
        return types.BAD_LABEL, np.nan, len(y), None, state
    sums = kernels(y).loss_gradient(y, target, loss, losses, dy, row_weights=weights, mean=mean)
    backward(dy if output_batch is None else unpack(dy, output_batch))
    return types.OK, sums[0], len(y), sums[1:], state
