"""Loss and accuracy on data that is not trained on."""

import numpy as np

from fastgrad.backend import kernels
from fastgrad.model import Model
from fastgrad.steps import FUSED

# rows looked at in one go, so that memory does not grow with the data
ROWS = 1024


def evaluate(model: Model, loss: str, x: np.ndarray, y: np.ndarray) -> tuple[float, float | None]:
    """(mean loss, accuracy) of checked arrays; the accuracy is None for mse.

    The share of rows whose largest output is the class, or of elements on the right side of probability 1/2.
    """
    logits = FUSED.get(loss) == model.output.code
    total, right, count = 0.0, 0, 0
    for start in range(0, len(x), ROWS):
        target = y[start : start + ROWS]
        output = model.predict(x[start : start + ROWS], logits=logits)
        losses = np.empty(len(output) if loss == "cross_entropy" else output.shape, output.dtype)
        total += getattr(kernels(), loss)(output, target, losses, np.empty_like(output), 1.0)
        count += losses.size
        if loss == "cross_entropy":
            classes = target if target.ndim == 1 else target.argmax(axis=1)
            right += int(np.count_nonzero(output.argmax(axis=1) == classes))
        elif loss == "binary_cross_entropy":
            right += int(np.count_nonzero((output > 0) == (target > 0.5)))
    return total / count, None if loss == "mse" else right / count
