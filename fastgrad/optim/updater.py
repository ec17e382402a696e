"""Updater: an optimiser for training code of any kind. It clips and updates lists of arrays in place."""

import math
import operator
from math import prod
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty_float64, zeros
from fastgrad.core.array_list import ArrayList, check_disjoint, check_same_shapes, flat_masks
from fastgrad.core.lazy import LazyScalar
from fastgrad.kernels import types
from fastgrad.kernels.types import UpdateRule
from fastgrad.optim import Optimizer, successor
from fastgrad.optim.constraint import Constraint, checked
from fastgrad.optim.setting import clip_norm_of, setting


class Updater:
    """Updates params, an array or a list of arrays of one dtype and any shapes, in place. The arrays may not overlap.

    clip_norm limits the gradients' norm over all arrays. masks: a bool array like each of params, False where a value is pruned, or None
    for an array without pruning; pruned values stay 0, and so does their state. constraint, MaxValue or MaxNorm of fastgrad.optim, is
    applied after each update. val_losses is a list that the caller may extend, for a schedule of the learning rate.

    optimizer, clip_norm and constraint may be assigned at any time, and are checked then; a new optimizer must be of the same kind, since
    it goes on with the state. step_count is the number of updates that params and state have seen, also after an exception such as
    KeyboardInterrupt. This holds on the backend "cpu", where an update is one call.
    """

    optimizer: Optimizer = setting(lambda self, value: successor("Updater", value, self._optimizer))
    clip_norm: float | None = setting(
        lambda _, value: clip_norm_of("Updater", value), "Infinity where nothing is clipped."
    )
    constraint: Constraint | None = setting(lambda self, value: (self._over(value), value)[1])

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
        self._optimizer, self._clip_norm = optimizer, clip_norm_of("Updater", clip_norm)
        arrays = ArrayList("Updater", "params", params)
        check_disjoint("Updater", "params", [params] if arrays.single else list(params))
        # the caller's arrays, in a list of our own
        self.params: list[np.ndarray] = [params] if arrays.single else list(params)
        # those of them whose shapes were looked at
        self._known = list(self.params)
        # kernels count, in the call that makes the update
        self._count = np.zeros(1, np.int64)
        self.val_losses: list[float] = []
        self._size = sum(a.size for a in arrays.flat)
        self.state = zeros((optimizer.state_rows, self._size), arrays.flat[0])  # (S, P)
        self._shapes = [a.shape for a in arrays.flat]
        self._state_kind = type(self.state), self.state.dtype
        self._record, self._constraint = np.full(1, np.nan), constraint
        self._bind()
        self.masks = masks

    def _bind(self) -> None:
        """Compute from the settings what the next update reads."""
        self._hyper, self._held = self._optimizer.hyper, self._over(self._constraint)

    def _over(self, constraint: Constraint | None) -> types.Constraint | None:
        """The constraint over params, as kernels read it."""
        if constraint is None:
            return None
        return checked("Updater", constraint, "params", ArrayList("Updater", "params", self.params, self.state).flat)

    @property
    def step_count(self) -> int:
        """Updates so far."""
        return int(self._count[0])

    @step_count.setter
    def step_count(self, count: int) -> None:
        self._count[0] = check.count("Updater", "step_count", count, least=0)

    @property
    def masks(self) -> list[np.ndarray] | None:
        """Copies of the masks, one for each array; None if nothing is pruned. They may be assigned at any time."""
        if self._mask is None:
            return None
        parts = np.split(self._mask, np.cumsum([prod(shape) for shape in self._shapes])[:-1].tolist())
        return [part.reshape(shape).copy() for part, shape in zip(parts, self._shapes, strict=True)]

    @masks.setter
    def masks(self, masks: Any) -> None:
        self._mask = None if masks is None else flat_masks("Updater", masks, self._shapes, self.state)

    def step(self, grads: Any) -> float | LazyScalar:
        """One update from gradients like params, which are not written. Returns their norm, or NaN without clip_norm.

        Raises FloatingPointError if the update would make finite state or parameters infinite or NaN, and with clip_norm if the norm is not
        finite. After an error all is as before. On a GPU the call does not wait: the norm is read, and the error raised, when the norm is
        used, as in float(norm). Until then an update that was not made counts as a step.
        """
        op = "Updater.step"
        self._check_state(op)
        # to ask all for their shapes takes longer than many a small one's update
        known = len(self.params) == len(self._known) and all(map(operator.is_, self.params, self._known))
        params = ArrayList(op, "params", self.params, self.state, known=known)
        found = ArrayList(op, "grads", grads, self.state, written=False)
        if not known:
            shapes = [a.shape for a in params.flat]
            if shapes != self._shapes:
                raise ValueError(
                    f"{op}: params must have the shapes that Updater was made with, {self._shapes}, got {shapes}"
                )
            self._known = list(self.params)
        if [a.shape for a in found.flat] != self._shapes:
            check_same_shapes(op, "grads", found.flat, "params", params.flat)
        self._hyper[0] = self.optimizer.rate(self.step_count, self.val_losses)
        clip_norm = self._clip_norm
        clips = clip_norm < math.inf
        # on a GPU neither the norm nor how the step has ended is waited for
        later = (clips or len(self.state) > 0) and not isinstance(self.state, np.ndarray)
        record = empty_float64(1, self.state) if later and clips else self._record
        before = self.step_count
        try:
            status = params.kernels.update_arrays(
                params.flat,
                found.flat,
                UpdateRule(self._optimizer.code, self.state, self._hyper, clip_norm, self._mask, self._held),
                before + 1,
                record if clips else None,
                updates=self._count,
            )
            if not later and status != types.OK:
                self._fail(op, found.flat)
            params.write()
        except BaseException:
            # what was counted has to be seen, whatever comes between
            if self.step_count != before:
                params.write()
            raise
        if later:
            return LazyScalar(record[0], status, lambda: self._fail(op, found.flat))
        return self._record.item(0)

    def _check_state(self, op: str) -> None:
        """Check `state`, which a caller may have replaced: kernels take its layout from params and optimiser."""
        state, (kind, dtype) = self.state, self._state_kind
        if type(state) is not kind or state.dtype != dtype:
            what = f"an array of {state.dtype}" if hasattr(state, "dtype") else type(state).__name__
            raise TypeError(f"{op}: state must be the {dtype} array that Updater made, or one like it, got {what}")
        expected = self.optimizer.state_rows, self._size
        if state.shape != expected:
            raise ValueError(f"{op}: state must be {expected}, got {state.shape}")
        if not (state.flags.c_contiguous and getattr(state.flags, "writeable", True)):
            raise ValueError(f"{op}: state must be C-contiguous and writable, got strides {state.strides}")

    def _fail(self, op: str, grads: list[np.ndarray]) -> None:
        raise check.no_update(op, {f"grads[{i}]": grad for i, grad in enumerate(grads)})

    def state_dict(self) -> dict[str, Any]:
        """Copies of what an Updater needs to go on, except params."""
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
        step = check.count(op, "step", state["step"], least=0, most=2**53)
        masks = None if state["masks"] is None else flat_masks(op, state["masks"], self._shapes, self.state)
        self.val_losses = [float(loss) for loss in state["val_losses"]]
        self.state[...], self.step_count, self._mask = values, step, masks
