"""What random problems of an LSTM and of a GRU have in common."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
from tolerances import assert_close


class RecurrentProblem:
    """The arguments of fg.lstm or fg.gru, and upstream gradients: a dataclass whose arrays are named in `inputs` and `upstreams`."""

    inputs: ClassVar[tuple[str, ...]]
    upstreams: ClassVar[tuple[str, ...]]

    def named(self, names=None):
        """The arrays of these names, or of all, that are not None."""
        names = (*self.inputs, *self.upstreams) if names is None else names
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def map(self, function):
        """The same problem with every array replaced by function(array)."""
        return replace(self, **{name: function(array) for name, array in self.named().items()})

    def ends(self):
        """Every sequence's number of steps."""
        n, steps, _ = self.x.shape
        return np.full(n, steps) if self.lengths is None else np.asarray(self.lengths, np.int64)

    def only(self, rows):
        """The problem of these sequences."""
        by_sequence = "x", *(name for name in self.inputs if name in ("h_0", "c_0")), *self.upstreams
        states = {name: a[rows] for name, a in self.named(by_sequence).items()}
        return replace(self, **states, lengths=None if self.lengths is None else self.lengths[rows])


def assert_arrays_close(op, found, expected, least=0, scale=1):
    """Errors are measured against the largest value of an array, or `least`, where sums of a few terms may cancel.

    With inputs of this scale z, and so its rounding, is as much larger.
    """
    assert found.keys() == expected.keys()
    for name, actual in found.items():
        size = np.abs(expected[name][np.isfinite(expected[name])]).max(initial=least)
        assert_close(op, actual, expected[name], scale * size)
