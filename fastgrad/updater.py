"""An optimiser for training code of any kind: lists of arrays, clipped and updated in place."""

import math
from math import prod
from typing import Any

import numpy as np

from fastgrad import check
from fastgrad.constraint import Constraint, checked
from fastgrad.kernels import names
from fastgrad.later import Later
from fastgrad.lists import Arrays, apart, flat_masks, same_shapes
from fastgrad.memory import doubles, zeros
from fastgrad.optim import Optimizer


class Updater:
    """Updates params, an array or a list of arrays of one dtype and any shapes, in place.

    clip_norm limits the gradients' norm over all arrays. masks: of each array where it is not pruned, bool like params, None where
    nothing is; what is pruned stays 0, and its state too. constraint is what params are held to after each update, one of fastgrad.optim's
    MaxValue and MaxNorm. val_losses, to which the caller may add, are what a schedule of the
    learning rate may look at. The arrays may not overlap.
    """

    def __init__(
        self,
        params: Any,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        masks: Any = None,
        constraint: Constraint | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Updater: optimizer must be one of fastgrad.optim, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.clip_norm = math.inf if clip_norm is None else check.number("Updater", "clip_norm", clip_norm, zero=False)
        arrays = Arrays("Updater", "params", params)
        apart("Updater", "params", [params] if arrays.single else list(params))
        # the caller's arrays, in a list of our own
        self.params: list[np.ndarray] = [params] if arrays.single else list(params)
        self.step_count = 0
        self.val_losses: list[float] = []
        self.state = zeros((optimizer.state_rows, sum(a.size for a in arrays.flat)), arrays.flat[0])  # (S, P)
        self._shapes = [a.shape for a in arrays.flat]
        self._hyper, self._record = optimizer.hyper, np.full(1, np.nan)
        self.constraint = constraint
        self._held = checked("Updater", constraint, "params", arrays.flat)
        self.masks = masks

    @property
    def masks(self) -> list[np.ndarray] | None:
        """Copies of the masks, of each array one; None where nothing is pruned. Others may be set at any time."""
        if self._mask is None:
            return None
        parts = np.split(self._mask, np.cumsum([prod(shape) for shape in self._shapes])[:-1].tolist())
        return [part.reshape(shape).copy() for part, shape in zip(parts, self._shapes, strict=True)]

    @masks.setter
    def masks(self, masks: Any) -> None:
        self._mask = None if masks is None else flat_masks("Updater", masks, self._shapes, self.state)

    def step(self, grads: Any) -> float | Later:
        """One update from gradients like params, which stay as they are; their norm, or NaN without clip_norm.

        With clip_norm, raises FloatingPointError where the norm is not finite. After an error all is as before.
        On a GPU nothing waits for the norm: it is read, and the error raised, when it is used, as float(norm). Until then the update
        that was not made counts as a step.
        """
        op = "Updater.step"
        params = Arrays(op, "params", self.params, self.state)
        found = Arrays(op, "grads", grads, self.state, written=False)
        if [a.shape for a in found.flat] != self._shapes:
            same_shapes(op, "grads", found.flat, "params", params.flat)
        self._hyper[0] = self.optimizer.rate(self.step_count, self.val_losses)
        clips = self.clip_norm < math.inf
        # a norm that is taken on a GPU is not waited for
        later = clips and not isinstance(self.state, np.ndarray)
        record = doubles(1, self.state) if later else self._record
        status = params.kernels.update_arrays(
            params.flat,
            found.flat,
            self.optimizer.code,
            self.state,
            self._hyper,
            self.step_count + 1,
            self.clip_norm,
            self._mask,
            self._held,
            record if clips else None,
        )
        if not later and status != names.OK:
            self._fail(op, found.flat)
        params.write()
        self.step_count += 1
        if later:
            return Later(record[0], status, lambda: self._fail(op, found.flat))
        return self._record.item(0)

    def _fail(self, op: str, grads: list[np.ndarray]) -> None:
        raise check.no_update(op, {f"grads[{i}]": grad for i, grad in enumerate(grads)})

    def state_dict(self) -> dict[str, Any]:
        """Copies of what training goes on from, besides params."""
        return {
            "optimizer": type(self.optimizer).__name__,
            "state": self.state.copy(),
            "step": self.step_count,
            "val_losses": list(self.val_losses),
            "masks": self.masks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; raises ValueError or TypeError, and then changes nothing."""
        op = "Updater.load_state_dict"
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise ValueError(
                f"{op}: state must be what state_dict returned: optimizer, state, step, val_losses and masks"
            )
        if state["optimizer"] != type(self.optimizer).__name__:
            raise ValueError(f"{op}: optimizer must be {type(self.optimizer).__name__}, got {state['optimizer']}")
        values = check.array(op, "state", state["state"], "(S, P)", self.state.shape, self.state)
        step = check.count(op, "step", state["step"], least=0)
        masks = None if state["masks"] is None else flat_masks(op, state["masks"], self._shapes, self.state)
        self.val_losses = [float(loss) for loss in state["val_losses"]]
        self.state[...], self.step_count, self._mask = values, step, masks
