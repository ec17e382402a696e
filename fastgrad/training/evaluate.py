"""Loss and accuracy on data that is not trained on."""

from math import prod

import numpy as np

from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.packing import pack, packed_batch
from fastgrad.nn.context import ForwardContext
from fastgrad.nn.model import Model
from fastgrad.training.data import LOGIT_LOSSES, TrainingData, packed_output

# rows, steps of sequences, or pixels of one forward: memory does not grow with the data
ROWS, STEPS, PIXELS = 1024, 16384, 2**18


def evaluate(model: Model, loss: str, data: TrainingData) -> tuple[float, float | None]:
    """(mean loss, accuracy) of checked data; the accuracy is None for mse and poisson_nll.

    The accuracy of cross_entropy is the share of rows, or of sequences' own steps, whose largest output is the class; that of
    binary_cross_entropy is the share of elements on the right side of probability 1/2.
    """
    logits = LOGIT_LOSSES.get(loss) == model.output.code
    total, right, count = 0.0, 0, 0
    together = STEPS if model.recurrent else PIXELS
    rows = max(1, min(ROWS, together // max(prod(data.x.shape[1:-1]), 1)))
    for start in range(0, len(data.x), rows):
        part = slice(start, start + rows)
        target, lengths = data.y[part], None if data.lengths is None else data.lengths[part]
        x = data.x[part]
        batch = None if lengths is None else packed_batch("evaluate", x.shape[:2], lengths)
        output, _ = model._infer(x if batch is None else pack(x, batch), ForwardContext(False, logits, batch))
        output, target, _ = packed_output(model, output, target, batch)
        losses = empty((len(output),) if loss == "cross_entropy" else output.shape, output)
        total += float(getattr(kernels(output), loss)(output, target, losses, empty(output.shape, output), 1.0))
        count += losses.size
        if loss == "cross_entropy":
            classes = target if target.ndim == 1 else target.argmax(axis=1)
            right += int(np.count_nonzero(output.argmax(axis=1) == classes))
        elif loss == "binary_cross_entropy":
            right += int(np.count_nonzero((output > 0) == (target > 0.5)))
    return total / count, right / count if loss in LOGIT_LOSSES else None
