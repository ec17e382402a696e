"""Checks of the settings of a trainer; `bind`, which makes the TrainStep of the next update from them; and the errors of a step."""

from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.functional.loss_arguments import checked_labels
from fastgrad.health.layers import HealthObserver
from fastgrad.kernels import types
from fastgrad.kernels.types import UpdateRule
from fastgrad.loss import Loss
from fastgrad.nn.model import Model
from fastgrad.optim import Optimizer, setting
from fastgrad.optim import constraint as constraints
from fastgrad.optim.constraint import Constraint
from fastgrad.optim.parameter_groups import ParameterGroups, parameter_groups
from fastgrad.pruning import GradualPruning
from fastgrad.schedule import Schedule
from fastgrad.training.all_reduce import DISAGREED, AllReduce, Reduce, disagreement
from fastgrad.training.step import TrainStep


def checked_loss(loss: Any, model: Model) -> str | Loss:
    if not isinstance(loss, Loss):
        check.choice("Trainer", "loss", loss, types.LOSSES)
    kernel_loss(loss, model)
    return loss


def kernel_loss(loss: str | Loss, model: Model) -> types.Loss:
    """The loss as kernels read it, with weights on the model's device."""
    return loss.over("Trainer", model.n_out, model.params) if isinstance(loss, Loss) else types.LOSSES[loss]


def checked_optimizer(optimizer: Any, model: Model, before: Optimizer | None = None) -> Optimizer:
    """optimizer, checked, and its groups. before: the one whose state it goes on with."""
    optimizer = setting.checked_optimizer("Trainer", optimizer, before)
    groups_over(optimizer, model)
    return optimizer


def groups_over(optimizer: Optimizer, model: Model) -> ParameterGroups:
    return parameter_groups("Trainer", optimizer, list(model.parameters()), list(model.statistics()))


def checked_constraint(constraint: Any, model: Model) -> Constraint | None:
    constraint_over(constraint, model, None)
    return constraint


def constraint_over(constraint: Any, model: Model, groups: np.ndarray | None) -> types.Constraint | None:
    """The constraint as kernels read it; groups (n,): of the parameters, as in UpdateRule."""
    arrays = list(model.parameters().values())
    return constraints.kernel_constraint("Trainer", constraint, "parameters", arrays, groups)


def checked_pruning(pruning: Any, model: Model) -> GradualPruning | None:
    if not isinstance(pruning, GradualPruning | None):
        raise TypeError(f"Trainer: pruning must be a GradualPruning, got {type(pruning).__name__}")
    if pruning:
        pruning.check(model)
    return pruning


def checked_reduce(reduce: Any) -> Reduce | None:
    if reduce is not None and not callable(reduce):
        raise TypeError(f"Trainer: reduce must be callable, got {type(reduce).__name__}")
    return reduce


def bind(trainer: Any) -> None:
    """Make the update rule and the TrainStep of a trainer's next update, from its settings and the present arrays of its model."""
    model, optimizer, health = trainer._model, trainer._optimizer, trainer._health
    if trainer._pruning is not trainer._last_pruning:
        # a new pruning begins now: earlier dates are skipped, but not that of this count
        trainer._pruning_step, trainer._last_pruning = trainer.step_count - 1, trainer._pruning
    trainer._shapes = None, None
    trainer._has_schedule = isinstance(optimizer.lr, Schedule)
    trainer._kernel_loss = kernel_loss(trainer._loss, model)
    trainer._target_dtype = np.dtype(np.int64) if trainer._kernel_loss.by_row else trainer._dtype
    if type(trainer._state) is not type(model.params):
        # of a model that was moved
        trainer._state = (device.to_gpu if model.on_gpu else device.to_host)(trainer._state)
    trainer._groups = groups = groups_over(optimizer, model)
    constraint = constraint_over(trainer._constraint, model, groups.group_numbers)
    trainer._rule = UpdateRule(
        optimizer.code, trainer._state, groups.hyper, trainer._clip_norm, model._mask, constraint, groups.group_numbers
    )
    all_reduce = None if trainer._reduce is None else AllReduce(trainer._reduce, model, trainer._kernel_loss)
    observer = HealthObserver(model, health) if health is not None and health.layers else None
    trainer._steps = TrainStep(
        model, trainer._kernel_loss, trainer._rule, trainer._count, all_reduce, observer, groups.frozen_statistics
    )


def fail(trainer: Any, op: str, status: int, y: np.ndarray) -> None:
    """Raise the error of a step, or an epoch, that ended with this status."""
    model = trainer._model
    if status == DISAGREED:
        raise disagreement()
    if (status == types.BAD_LABEL or model.on_gpu) and model.n_out and y.dtype == np.int64:
        ignored = trainer._kernel_loss.ignore_index
        checked_labels(op, "y", y, (*y.shape, model.n_out), model.params, ignore_index=ignored)
    hint = "; health() of the trainer tells of every layer" if trainer._health is not None else ""
    raise check.no_update(op, model.gradients(), hint)


def refuse_nested(trainer: Any, op: str) -> None:
    """Raise RuntimeError if this thread, which holds the lock, is in a step or an epoch: a change now would break that."""
    if trainer._running:
        raise RuntimeError(
            f"{op}: the trainer is in the middle of a step or a fit in this thread, which a signal's handler or reduce came out of"
        )
