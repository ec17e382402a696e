"""The gradients of a batch, layer by layer: forward, loss and backward of any model."""

from typing import Any

import numpy as np

from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.kernels import types
from fastgrad.nn.context import ForwardContext, Observer
from fastgrad.nn.model import Model
from fastgrad.training.data import LOGIT_LOSSES, TrainingData, packed_output


def layer_gradients(
    model: Model, loss: str, batch: TrainingData, state: Any, observer: Observer | None, mean: bool
) -> tuple[int, Any, int, int, Any]:
    """Fill the model's gradients, of the mean loss or of the sum: (status, loss, number of losses, rows, state).

    state: the initial states of recurrent layers; the one returned has the last ones. The status is OK or BAD_LABEL, after which gradients
    are of no use.
    """
    x, target, lengths = batch
    logits = LOGIT_LOSSES.get(loss) == model.output.code
    input_batch = None if lengths is None else packed_batch("Trainer", x.shape[:2], lengths)
    context = ForwardContext(True, logits, input_batch, state, False, observer)
    y, state, backward = model._forward(x if input_batch is None else pack(x, input_batch), context)
    y, target, output_batch = packed_output(model, y, target, input_batch)
    losses, dy = empty((len(y),) if loss == "cross_entropy" else y.shape, y), empty(y.shape, y)
    # the kernels of a GPU make NaN of a bad class number
    by_class = target.ndim == 1 and target.size and not model.on_gpu
    if by_class and not (target.min() >= 0 and target.max() < y.shape[1]):
        return types.BAD_LABEL, np.nan, losses.size, len(y), state
    scale = 1 / max(losses.size, 1) if mean else 1.0
    total = getattr(kernels(y), loss)(y, target, losses, dy, scale)
    backward(dy if output_batch is None else unpack(dy, output_batch))
    return types.OK, total * scale, losses.size, len(y), state
