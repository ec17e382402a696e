"""Loss and accuracy on data that is not trained on."""

from math import prod

from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.device import to_host
from fastgrad.functional.packing import pack, packed_batch
from fastgrad.kernels.types import Loss
from fastgrad.nn.context import ForwardContext
from fastgrad.nn.model import Model
from fastgrad.training.data import TrainingData, packed_output
from fastgrad.training.history import accuracy_of

# rows, steps of sequences, or pixels of one forward: memory does not grow with the data
ROWS, STEPS, PIXELS = 1024, 16384, 2**18


def evaluate(model: Model, loss: Loss, data: TrainingData) -> tuple[float, float | None]:
    """(mean loss, accuracy) of checked data; the accuracy is None for losses that have none.

    The accuracy of cross_entropy is the share of rows, or of sequences' own steps, whose largest output is the class; that of
    binary_cross_entropy is the share of elements on the right side of probability 1/2. Both count rows as the mean does, with weights.
    """
    logits = loss.is_fused_with(model.output)
    total, weight, right = 0.0, 0.0, 0.0
    together = STEPS if model.recurrent else PIXELS
    rows = max(1, min(ROWS, together // max(prod(data.x.shape[1:-1]), 1)))
    for start in range(0, len(data.x), rows):
        part = slice(start, start + rows)
        target, lengths = data.y[part], None if data.lengths is None else data.lengths[part]
        x = data.x[part]
        batch = None if lengths is None else packed_batch("evaluate", x.shape[:2], lengths)
        output, _ = model._infer(x if batch is None else pack(x, batch), ForwardContext(False, logits, batch))
        weights = None if data.weights is None else data.weights[part]
        output, target, weights, _ = packed_output(model, output, target, weights, batch)
        losses = empty(output.shape[:1] if loss.by_row else output.shape, output)
        sums = kernels(output).loss_gradient(
            output, target, loss, losses, empty(output.shape, output), row_weights=weights, mean=False
        )
        part_total, part_weight, part_right = to_host(sums).tolist()
        total, weight, right = total + part_total, weight + part_weight, right + part_right
    count = weight * (1 if loss.by_row else model.n_out or 0)
    return total / count if count else 0.0, accuracy_of(loss, weight, right)
