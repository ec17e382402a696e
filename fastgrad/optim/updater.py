"""Updater: an optimiser for training code of any kind. It clips and updates lists of arrays in place."""

import math
import operator
from math import prod
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty_float64, zeros
from fastgrad.core.array_list import ArrayList, check_disjoint, check_same_shapes, flat_masks
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.lazy import LazyScalar
from fastgrad.kernels import types
from fastgrad.kernels.types import UpdateRule
from fastgrad.optim.constraint import Constraint, kernel_constraint
from fastgrad.optim.optimizer import Optimizer
from fastgrad.optim.parameter_groups import ParameterGroups, parameter_groups
from fastgrad.optim.setting import CLIP_NORM, checked_optimizer, clip_norm_of, setting
from fastgrad.schedule import Schedule


@foreign_keywords
class Updater:
    """An optimiser for training code of any kind: it clips gradients and updates arrays in place.

    optimizer, clip_norm, masks and constraint may be assigned between steps, and are checked then; a new optimizer must
    be of the same kind, since it goes on with the state. val_losses is a list that you may extend, for a schedule of
    the learning rate. step_count is the number of updates that params and state have seen, also after an exception such
    as KeyboardInterrupt on the backend "cpu", where an update is one call.

    Args:
        params: An array, or a list of arrays of one dtype, float32 or float64, any shapes and layouts, which may not
            overlap.
        optimizer: One of fg.optim.
        clip_norm: The largest norm of the gradients of all arrays, above 0; None clips nothing.
        masks: A bool array like each of params, False where a value is pruned, or None for an array without pruning;
            pruned values stay 0, and so does their state. None for none at all.
        constraint: MaxValue or MaxNorm of fg.optim, to which params are held after each update; None for none.

    Raises:
        ValueError: A setting is out of its range, arrays overlap, or one is read-only.
        TypeError: params are no arrays of one floating dtype, or a setting is of another type.

    Example:
        >>> w = np.array([1.0, 2.0])
        >>> updater = fg.Updater([w], fg.optim.SGD(0.1), clip_norm=1.0)
        >>> norm = updater.step([np.array([3.0, 4.0])])
        >>> norm, w.round(2).tolist()
        (5.0, [0.94, 1.92])
    """

    optimizer: Optimizer = setting(
        lambda self, value: self._checked_optimizer(value, self._optimizer), "The optimiser, one of fg.optim."
    )
    clip_norm: float | None = setting(lambda _, value: clip_norm_of("Updater", value), CLIP_NORM)
    constraint: Constraint | None = setting(
        lambda self, value: (self._over(value), value)[1], "The constraint, or None."
    )

    def __init__(
        self,
        params: Any,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        masks: Any = None,
        constraint: Constraint | None = None,
    ) -> None:
        arrays = ArrayList("Updater", "params", params)
        check_disjoint("Updater", "params", [params] if arrays.single else list(params))
        # the caller's arrays, in a new list
        self.params: list[np.ndarray] = [params] if arrays.single else list(params)
        self._optimizer, self._clip_norm = self._checked_optimizer(optimizer), clip_norm_of("Updater", clip_norm)
        # the arrays whose shapes were checked last
        self._checked = list(self.params)
        # the number of updates, which the kernel that makes an update counts
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
        self._groups = self._groups_of(self._optimizer)
        self._has_schedule = isinstance(self._optimizer.lr, Schedule)
        self._kernel_constraint = self._over(self._constraint)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._bind()

    def _checked_optimizer(self, optimizer: Any, before: Optimizer | None = None) -> Optimizer:
        """optimizer, checked, and its groups. before: the one whose state it goes on with."""
        optimizer = checked_optimizer("Updater", optimizer, before)
        self._groups_of(optimizer)
        return optimizer

    def _groups_of(self, optimizer: Optimizer) -> ParameterGroups:
        return parameter_groups("Updater", optimizer, [str(i) for i in range(len(self.params))])

    def _over(self, constraint: Constraint | None) -> types.Constraint | None:
        """The constraint over params, as kernels read it."""
        if constraint is None:
            return None
        arrays = ArrayList("Updater", "params", self.params, self.state).flat
        return kernel_constraint("Updater", constraint, "params", arrays, self._groups.group_numbers)

    def __repr__(self) -> str:
        count, plural = len(self.params), "s" * (len(self.params) != 1)
        sizes = f"{self._size:,} values in {count} array{plural}"
        return f"{type(self).__name__}({sizes}, {self.optimizer!r}, step_count={self.step_count})"

    @property
    def step_count(self) -> int:
        """The number of updates so far."""
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
        """One update from gradients.

        Args:
            grads: An array or a list of arrays like params, which are not written.

        Returns:
            The norm of the gradients before clipping, a float; NaN without clip_norm. On a GPU the call does not wait:
            the norm is read, and the error raised, when it is used, as in float(norm); until then an update that was
            not made counts as a step.

        Raises:
            FloatingPointError: The update would make a value infinite or NaN whose parameter, state and gradient are
                finite, or with clip_norm the norm is not finite. Then all is as before, as after every error. Without
                clip_norm NaN or infinity in a gradient is no error, and reaches its own parameters.
            ValueError: A shape does not fit.
            TypeError: grads are no arrays of the dtype of params.
        """
        op = "Updater.step"
        self._check_state(op)
        # to compare the shapes of all takes longer than the update of small arrays
        unchanged = len(self.params) == len(self._checked) and all(map(operator.is_, self.params, self._checked))
        params = ArrayList(op, "params", self.params, self.state, known=unchanged)
        gradients = ArrayList(op, "grads", grads, self.state, written=False)
        if not unchanged:
            shapes = [a.shape for a in params.flat]
            if shapes != self._shapes:
                raise ValueError(
                    f"{op}: params must have the shapes that Updater was made with, {self._shapes}, got {shapes}"
                )
            self._checked = list(self.params)
        if [a.shape for a in gradients.flat] != self._shapes:
            check_same_shapes(op, "grads", gradients.flat, "params", params.flat)
        groups, clip_norm = self._groups, self._clip_norm
        if self._has_schedule:
            groups.set_rate(self.optimizer.rate(self.step_count, self.val_losses))
        clips = clip_norm < math.inf
        # on a GPU the host waits neither for the norm nor for the status
        lazy = not isinstance(self.state, np.ndarray)
        record = empty_float64(1, self.state) if lazy and clips else self._record
        before = self.step_count
        try:
            status = params.kernels.update_arrays(
                params.flat,
                gradients.flat,
                UpdateRule(
                    self._optimizer.code,
                    self.state,
                    groups.hyper,
                    clip_norm,
                    self._mask,
                    self._kernel_constraint,
                    groups.group_numbers,
                ),
                before + 1,
                record if clips else None,
                updates=self._count,
            )
            if not lazy and status != types.OK:
                self._fail(op, gradients.flat)
            params.write()
        except BaseException:
            # an exception after the update: it is counted, so it is written
            if self.step_count != before:
                params.write()
            raise
        if lazy:
            return LazyScalar(record[0], status, lambda: self._fail(op, gradients.flat))
        return self._record.item(0) if clips else math.nan

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
        """What another Updater needs to go on, except params.

        Returns:
            A dictionary of copies: optimizer, state, step, val_losses and masks.
        """
        return {
            "optimizer": type(self.optimizer).__name__,
            "state": self.state.copy(),
            "step": self.step_count,
            "val_losses": list(self.val_losses),
            "masks": self.masks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict returned. After an error all is as before.

        Args:
            state: The dictionary.

        Raises:
            ValueError: A name is missing or unknown, or the optimiser or a shape is another one.
            TypeError: A value is of another type or dtype.

        Example:
            >>> w = np.array([1.0, 2.0])
            >>> updater, other = (fg.Updater([w], fg.optim.Adam()) for _ in range(2))
            >>> norm = updater.step([np.ones(2)])
            >>> other.load_state_dict(updater.state_dict())
            >>> other.step_count
            1
        """
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
