"""Pruning by magnitude: `prune`, of arrays or a model; `remove_masks`; GradualPruning, a schedule of pruning while a model trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.array_list import ArrayList, check_disjoint, flat_masks
from fastgrad.core.backend import kernels
from fastgrad.nn.model import Model, views

SCOPES = "array", "global"


def prune(
    params: Any,
    amount: float | None = None,
    threshold: float | None = None,
    scope: str = "array",
    units: bool = False,
    masks: Any = None,
    names: Sequence[str] | None = None,
) -> Any:
    """Set the smallest values of arrays or of a model to 0, and return masks of where they are not pruned.

    Of equal values the first go. As l1_unstructured, global_unstructured and ln_structured (n=2, over the output) of
    torch.nn.utils.prune.

    In a model the bias of a pruned unit is pruned too. The model keeps its masks, and a Trainer has them in its
    updates. After an error all is as before.

    Args:
        params: An array, a list of arrays of one dtype that do not overlap, or a model. Written in place.
        amount: How much is pruned afterwards, with what was pruned before: a share (float, 0 to 1) or a number (int) of
            the values, or with units of the units; of each array, or with scope "global" of all together.
        threshold: In place of amount: each value, or with units each unit's norm, below it is pruned. At least 0.
        scope: "array": amount is of each array. "global": of all arrays together.
        units: Prune whole units by their norms: the columns of the last axis, of arrays with 2 or 4 axes.
        masks: For arrays: what is pruned already, as an earlier call returned it.
        names: For a model: names of the arrays that are pruned. By default all of two or more axes; with units all
            named "w" but the last, which makes the output.

    Returns:
        Masks of bool, False where a value is pruned: an array for an array, a list for a list, and for a model
        model.masks(), a dictionary by name.

    Raises:
        ValueError: Both or neither of amount and threshold are given, one is out of its range, an option or a name is
            unknown, a value is NaN (the message names the array), an array has no units, arrays overlap, or the model
            is part of another one.
        TypeError: params are no arrays, masks come with a model, or names with arrays.

    Example:
        >>> w = np.array([[3.0, -0.1], [0.2, -4.0]])
        >>> fg.prune(w, amount=0.5).tolist()
        [[True, False], [False, True]]
        >>> w.tolist()
        [[3.0, 0.0], [0.0, -4.0]]
    """
    op = "prune"
    if (amount is None) == (threshold is None):
        raise ValueError(f"{op}: one of amount and threshold must be given, got {'none' if amount is None else 'both'}")
    if threshold is not None:
        check.number(op, "threshold", threshold)
    check.choice(op, "scope", scope, SCOPES)
    if isinstance(params, Model):
        if masks is not None:
            raise TypeError(f"{op}: masks are for arrays; a model keeps its own")
        return _prune_model(op, params, names, amount, threshold, scope, units)
    if names is not None:
        raise TypeError(f"{op}: names are for models")
    arrays = ArrayList(op, "params", params)
    check_disjoint(op, "params", [params] if arrays.single else list(params))
    shapes = [a.shape for a in arrays.flat]
    flat = flat_masks(op, [None] * len(shapes) if masks is None else masks, shapes, arrays.flat[0])
    named = {"params" if arrays.single else f"params[{i}]": a for i, a in enumerate(arrays.flat)}
    _prune(op, named, flat, amount, threshold, scope, units)
    arrays.write()
    pruned_masks = list(views(flat, {name: a.shape for name, a in named.items()}).values())
    return pruned_masks[0] if arrays.single else pruned_masks


def _prune_model(
    op: str, model: Model, names: Any, amount: Any, threshold: Any, scope: str, units: bool
) -> dict[str, np.ndarray]:
    if model.container_type:
        raise ValueError(f"{op}: the model is part of a {model.container_type}; prune that, with names")
    if model.on_gpu:
        # pruning is rare, and its kernels choose values on the host
        model.to("cpu")
        try:
            _prune_model(op, model, names, amount, threshold, scope, units)
        finally:
            model.to("cuda")
        return model.masks()
    parameters, model_mask = model.parameters(), model._mask
    named = {name: parameters[name] for name in names_of(op, model, names, units)}
    mask = np.ones(model.params.size, np.bool_) if model_mask is None else model_mask.copy()
    mask_views = views(mask, model._shapes)
    flat = np.concatenate([mask_views[name].reshape(-1) for name in named])
    _prune(op, named, flat, amount, threshold, scope, units)
    for name, array_mask in views(flat, {name: a.shape for name, a in named.items()}).items():
        mask_views[name][...] = array_mask
        bias = name.removesuffix("w") + "b"
        if units and bias in mask_views and mask_views[bias].shape == array_mask.shape[-1:]:
            mask_views[bias][...] &= _living(array_mask)
    kernels().prune_below([model.params], mask, 0.0)
    if model_mask is None:
        model._set_mask(mask)
    else:
        model_mask[...] = mask
    return model.masks()


def remove_masks(model: Model, names: Sequence[str] | None = None) -> None:
    """Take the pruning masks off a model. What was pruned is still 0, and training may move it again.

    A Trainer goes on without them. A GradualPruning that has a date to come prunes again then.

    Args:
        model: The model.
        names: Names of its parameters whose masks are taken off; None for all.

    Raises:
        ValueError: A name is unknown, or the model is part of another one.
        TypeError: model is no model of fg.nn, or names no list or tuple.

    Example:
        >>> model = fg.nn.Dense(4, 3, seed=0)
        >>> masks = fg.prune(model, amount=0.5)
        >>> fg.remove_masks(model)
        >>> model.masks(), int((model.w == 0).sum())
        ({}, 6)
    """
    op = "remove_masks"
    if not isinstance(model, Model):
        raise TypeError(f"{op}: model must be a layer of fastgrad.nn, got {type(model).__name__}")
    if model.container_type:
        raise ValueError(f"{op}: the model is part of a {model.container_type}; give that, with names")
    if names is None:
        model._set_mask(None)
        return
    check.sequence(op, "names", names)
    for i, name in enumerate(names):
        check.choice(op, f"names[{i}]", name, model._shapes)
    if model._mask is not None:
        mask = model._mask.copy()
        arrays = views(mask, model._shapes)
        for name in names:
            arrays[name][...] = True
        model._set_mask(None if mask.all() else mask)


def names_of(op: str, model: Model, names: Any, units: bool) -> list[str]:
    """The names of the arrays of a model that are to be pruned."""
    weights = [name for name, a in model.parameters().items() if a.ndim > 1]
    if names is not None:
        check.sequence(op, "names", names)
        for i, name in enumerate(names):
            check.choice(op, f"names[{i}]", name, weights)
        return list(dict.fromkeys(names))
    if units:
        weights = [name for name in weights if name.rpartition(".")[2] == "w"][:-1]
    if not weights:
        raise ValueError(f"{op}: the model has no {'units but its outputs' if units else 'weights'}")
    return weights


def _prune(
    op: str, named: dict[str, np.ndarray], flat: np.ndarray, amount: Any, threshold: Any, scope: str, units: bool
) -> None:
    """prune, of C-contiguous arrays by name and their masks, flat (P,); all is checked before anything is written."""
    arrays, masks = list(named.values()), list(views(flat, {name: a.shape for name, a in named.items()}).values())
    if units and (bad := next((name for name, a in named.items() if a.ndim not in (2, 4) or not a.size), None)):
        raise ValueError(f"{op}: units are of arrays with 2 or 4 axes and with values, got {bad} {named[bad].shape}")
    widths = np.array([a.shape[-1] if units else 1 for a in arrays], np.int64)
    norms, unused = np.empty(widths.sum()), np.empty(len(arrays), np.int64)
    ops = kernels(arrays[0])
    ops.array_norms(arrays, widths, 2.0 if units else np.inf, norms, unused)
    norm_parts = np.split(norms, np.cumsum(widths)[:-1])
    if bad := ", ".join(name for name, part in zip(named, norm_parts, strict=True) if np.isnan(part).any()):
        raise ValueError(f"{op}: NaN has no magnitude, and is in {bad}")
    if not units:
        _choose(op, list(named), arrays, flat, amount, threshold, scope)
        return
    living = device.to_host(np.concatenate([_living(mask) for mask in masks]))
    _choose(op, list(named), norm_parts, living, amount, threshold, scope)
    for mask, part in zip(masks, np.split(living, np.cumsum(widths)[:-1]), strict=True):
        mask &= part if isinstance(mask, np.ndarray) else device.to_gpu(part)
    ops.prune_below(arrays, flat, 0.0)


def _choose(
    op: str, names: list[str], arrays: list[np.ndarray], flat: np.ndarray, amount: Any, threshold: Any, scope: str
) -> None:
    """Prune arrays, which may be norms of units, in place."""
    if threshold is not None:
        kernels(arrays[0]).prune_below(arrays, flat, float(threshold))
        return
    groups = [arrays] if scope == "global" else [[a] for a in arrays]
    sizes = [sum(a.size for a in group) for group in groups]
    group_names = ["all"] if scope == "global" else names
    counts = [_count(op, amount, size, name) for size, name in zip(sizes, group_names, strict=True)]
    ends = np.cumsum(sizes)
    for group, count, start, end in zip(groups, counts, ends - sizes, ends, strict=True):
        mask = flat[start:end]
        kernels(group[0]).prune_smallest(group, mask, max(0, count - int(np.count_nonzero(~mask))))


def _count(op: str, amount: Any, size: int, name: str) -> int:
    """How many of `size` are to be pruned."""
    if isinstance(amount, bool) or not isinstance(amount, int | np.integer):
        return round(check.number(op, "amount", amount, most=1.0) * size)
    if not 0 <= amount <= size:
        raise ValueError(f"{op}: amount must be at least 0 and at most {size}, the number in {name}, got {amount}")
    return int(amount)


def _living(mask: np.ndarray) -> np.ndarray:
    """Whether a unit has a value that is not pruned, bool (K,)."""
    return np.any(mask.reshape(-1, mask.shape[-1]), axis=0)


@dataclass(frozen=True)
class GradualPruning:
    """The share that is pruned grows from `initial` to `final` between updates `begin` and `end`.

    share(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^3 for begin <= t <= end

    It grows quickly while there is much to prune, and then ever more slowly. A Trainer prunes its model after the
    updates that are due; other training code asks next_due and share.

    Args:
        final: The last share, from 0 to 1.
        begin: The number of updates before the first pruning, from 0.
        end: The number of updates before the last pruning, above begin.
        every: The number of updates from one pruning to the next, at least 1.
        initial: The first share, from 0 to final.
        scope: "array" or "global", as of prune.
        units: Whether whole units are pruned, as of prune.
        names: Names of the model's arrays that are pruned, as of prune.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is no number or no integer.

    Example:
        >>> pruning = fg.GradualPruning(final=0.8, begin=0, end=100, every=50)
        >>> [round(pruning.share(step), 2) for step in (0, 50, 100, 200)]
        [0.0, 0.7, 0.8, 0.8]
        >>> pruning.next_due(0), pruning.next_due(50), pruning.next_due(100)
        (50, 100, None)

    References:
        Zhu & Gupta 2017, "To prune, or not to prune", section 3.
    """

    final: float
    begin: int
    end: int
    every: int
    initial: float = 0.0
    scope: str = "array"
    units: bool = False
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        op = "GradualPruning"
        for name in ("final", "initial"):
            check.number(op, name, getattr(self, name), most=1.0)
        if self.initial > self.final:
            raise ValueError(f"{op}: initial must be at most final, {self.final}, got {self.initial}")
        check.count(op, "begin", self.begin, least=0)
        check.count(op, "end", self.end, least=self.begin + 1)
        check.count(op, "every", self.every)
        check.choice(op, "scope", self.scope, SCOPES)

    def share(self, step: int) -> float:
        """The share that is pruned after so many updates.

        Args:
            step: The number of updates.

        Returns:
            The share, from 0 to 1: `initial` up to begin, `final` from end on.
        """
        remainder = min(max((self.end - step) / (self.end - self.begin), 0.0), 1.0)
        return self.final + (self.initial - self.final) * remainder**3

    def next_due(self, step: int) -> int | None:
        """The next number of updates after `step` at which to prune: begin, begin + every, ... and end.

        Args:
            step: The number of updates so far.

        Returns:
            The number, or None from end on.
        """
        if step >= self.end:
            return None
        intervals = max(step - self.begin, -1) // self.every + 1
        return min(self.begin + intervals * self.every, self.end)

    def check(self, model: Model) -> None:
        """Raise for names that the model has not.

        Args:
            model: The model that is to be pruned.

        Raises:
            ValueError: One of names is no array of two or more axes of the model, or there is nothing to prune.
        """
        names_of("GradualPruning", model, self.names, self.units)

    def prune(self, model: Model, step: int) -> None:
        """Prune a model as is due after so many updates.

        Args:
            model: The model, which keeps its masks.
            step: The number of updates.
        """
        prune(model, self.share(step), scope=self.scope, units=self.units, names=self.names)
