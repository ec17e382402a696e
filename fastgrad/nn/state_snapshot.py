"""StateSnapshot: the statistics and generators of a model before a forward pass that may fail."""

from typing import Any

import numpy as np

from fastgrad.nn.model import Model


class StateSnapshot:
    """Statistics and generators of a model, to be restored if a forward in training that changes them fails."""

    def __init__(self, model: Model) -> None:
        self._statistics = [(a, a.copy()) for a in model.statistics().values()]
        self._generators = [(g, g.bit_generator.state) for g in model._generators()]

    def restore_unless(self, fine: Any) -> None:
        """Restore statistics on a GPU where `fine`, an array () of bool, is False; the host does not wait. Generators stay."""
        for a, before in self._statistics:
            a[...] = np.where(fine, a, before)

    def restore(self) -> None:
        for a, before in self._statistics:
            a[...] = before
        for g, state in self._generators:
            g.bit_generator.state = state
