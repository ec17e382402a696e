"""Pruning by magnitude, at once and gradually: fg.prune, fg.remove_masks and fg.GradualPruning."""

from fastgrad.pruning.gradual import GradualPruning
from fastgrad.pruning.magnitude import prune, remove_masks

__all__ = ["GradualPruning", "prune", "remove_masks"]

for _public in GradualPruning, prune, remove_masks:
    # by this name a pickle finds it, whichever file it lies in
    _public.__module__ = __name__
