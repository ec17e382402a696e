"""EarlyStopping: the weights of the epoch with the smallest validation loss, and the end of a fit that finds no smaller one."""

from typing import Any

from fastgrad.nn.model import Model


class EarlyStopping:
    """Keeps a copy of the best weights, and counts the epochs since.

    best: copies by name of what is restored, the flat arrays `params` (P,) and, of a pruned model, `mask` (P,), and the running
    statistics; empty until there is a loss that is no NaN.
    """

    def __init__(self, model: Model, patience: int) -> None:
        self._model, self._patience = model, patience
        # of the best epoch
        self._loss: float | None = None
        self._epochs_since = 0
        self.best: dict[str, Any] = {}

    @property
    def is_over(self) -> bool:
        """Whether as many epochs as patience has came after the best one."""
        return self._epochs_since >= self._patience

    def record(self, loss: float) -> None:
        """Take the validation loss of the epoch that the model comes from; if it is the best, its arrays are copied."""
        if self.is_new_best(loss):
            self.best = {name: a.copy() for name, a in self.arrays().items()}

    def is_new_best(self, loss: float) -> bool:
        """Count an epoch with this validation loss, and say whether it is the best one so far."""
        # NaN is never better
        is_best = loss == loss if self._loss is None else loss < self._loss
        self._epochs_since = 0 if is_best else self._epochs_since + 1
        if is_best:
            self._loss = loss
        return is_best

    def arrays(self) -> dict[str, Any]:
        """The arrays of the model that are copied and restored."""
        model = self._model
        return {"params": model.params, **({} if model._mask is None else {"mask": model._mask}), **model.statistics()}

    def restore(self) -> None:
        """Put the best weights back, with the statistics and the mask of that epoch."""
        try:
            self._restore()
        except KeyboardInterrupt:
            # to restore twice is the same as once
            self._restore()
            raise

    def _restore(self) -> None:
        if not self.best:
            return
        model, mask = self._model, self.best.get("mask")
        if (mask is None) != (model._mask is None):
            model._set_mask(None if mask is None else mask.copy())
        for name, a in self.arrays().items():
            a[...] = self.best[name]
