"""save and load: models and trainers in safetensors files.

A model's file has parameters and running statistics by name, and masks if the model is pruned. A trainer's file also has the optimiser's
state and step count, and as metadata the optimiser's name, the validation losses and the states of the generators for shuffling and
dropout. A model loads from either. `save` writes a new file in the same folder, flushes it to the disk, and puts it in place of the old
one. `load` checks the whole file before it changes anything.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import device
from fastgrad.nn.model import Model, views
from fastgrad.training.checkpoint_metadata import OPTIMIZER, read_metadata, trainer_metadata
from fastgrad.training.file_replacement import check_regular, checked_path, os_error, replace_file
from fastgrad.training.stored_arrays import check_stored, stored_value
from fastgrad.training.trainer_interface import TrainerInterface as Trainer

MASK = "mask."
# the best weights of a fit with patience
BEST = "best."
# the largest step count: float64, in which Adam's corrections are computed, holds every integer up to it
STEPS = 2**53


class LoadedNames(NamedTuple):
    """The names in which a file and a model differ, which only load with strict=False takes."""

    # of the model, and not in the file: these arrays are as before
    missing: list[str]
    # of the file, and not in the model
    unexpected: list[str]


def save(path: str | os.PathLike, model: Model | Trainer) -> None:
    """Write a model, or a trainer with its model, to a safetensors file.

    The file has parameters and running statistics by name, and masks if the model is pruned; a trainer's also has the
    optimiser's state, the number of updates, the validation losses and the states of the random generators. A file that
    is there is replaced as a whole, behind a symbolic link too, and keeps its mode; where saving fails it stays as it
    was.

    Args:
        path: The file.
        model: A model of fg.nn, or a Trainer.

    Raises:
        OSError: The file cannot be written.
        TypeError: model is neither, or path no path.
        ValueError: path has a null character.

    Example:
        >>> import os, tempfile
        >>> model, other = fg.nn.Dense(4, 3, seed=0), fg.nn.Dense(4, 3, seed=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     fg.save(path, model)
        ...     names = fg.load(path, other)
        >>> bool((model.params == other.params).all())
        True
    """
    write("save", path, model)


def write(
    op: str, path: Any, model: Any, arrays: dict[str, Any] | None = None, metadata: dict[str, str] | None = None
) -> None:
    """save, of a fit with more arrays, whose names begin with BEST, and metadata; op is for messages."""
    from safetensors.numpy import save as serialized

    if isinstance(model, Trainer):
        # a step may be in progress, if this runs in a signal's handler
        with model.lock, model._steps.after_last_update():
            texts = trainer_metadata(model) | (metadata or {})
            content = serialized(_on_host(_arrays(op, model) | (arrays or {})), texts)
    else:
        content = serialized(_on_host(_arrays(op, model)))
    try:
        replace_file(Path(os.path.realpath(checked_path(op, path))), content)
    except OSError as error:
        raise os_error(op, path, error) from error


def load(path: str | os.PathLike, model: Model | Trainer, *, strict: bool = True) -> LoadedNames:
    """Read what save wrote into a model, or into a trainer and its model. After an error all is as before.

    A model also reads a trainer's file. A trainer goes on with the same bits as the one that was saved. Values of
    another floating dtype (float16, bfloat16, float32 or float64) are converted to the model's.

    Args:
        path: The file.
        model: A model of fg.nn with the same names and shapes, or a Trainer with such a model and an optimiser of the
            same class.
        strict: Whether all names must be the same. With False what the file has not stays as it was, and what the model
            has not is left out. A trainer then also reads a model's file, and keeps its optimiser's state.

    Returns:
        (missing, unexpected), lists of the names that the file has not and that the model has not, both empty with
        strict.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is no whole safetensors file, names, shapes or the optimiser differ, or the model's dtype
            does not hold a value.
        TypeError: A dtype is another one, model is neither, or path no path.
        RuntimeError: A step or a fit of this thread is under way.

    Example:
        >>> import os, tempfile
        >>> model, other = fg.nn.Sequential(fg.nn.Dense(4, 3)), fg.nn.Sequential(fg.nn.Dense(4, 3), fg.nn.Dense(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     fg.save(path, model)
        ...     names = fg.load(path, other, strict=False)
        >>> names.missing, names.unexpected
        (['1.w', '1.b'], [])
    """
    from safetensors import SafetensorError, safe_open

    arrays = _arrays("load", model)
    try:
        # reading a pipe or a device may block
        check_regular(os.stat(checked_path("load", path)))
        with safe_open(path, "numpy") as file:
            # what a fit wrote beside its trainer is for the fit that goes on
            parts = {name: file.get_slice(name) for name in file.keys() if not name.startswith(BEST)}  # noqa: SIM118
            if isinstance(model, Model):
                parts = {name: part for name, part in parts.items() if not name.startswith(OPTIMIZER)}
            mask = _mask(path, model, any(name.startswith(MASK) for name in parts))
            masks = {} if mask is None else _masks(views(mask, _model(model)._shapes))
            arrays = {name: a for name, a in arrays.items() if not name.startswith(MASK)} | masks
            names = _check(path, arrays, parts, strict)
            arrays = {name: a for name, a in arrays.items() if name in parts}
            values = {name: stored_value(path, file, name, parts[name], a.dtype) for name, a in arrays.items()}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"load: {path}: not a whole safetensors file: {error}") from error
    except OSError as error:
        raise os_error("load", path, error) from error
    for name in masks.keys() & values:
        if values[name].size and values[name].view(np.uint8).max() > 1:
            raise ValueError(f"load: {path}: {name} must be bool, got a byte that is neither 0 nor 1")
    mask = _with_own_masks(_model(model), mask, names.missing)
    if isinstance(model, Model):
        _copy(values, arrays)
        model._set_mask(mask)
        return names
    # a state belongs to its step count
    whole = not {OPTIMIZER + "state", OPTIMIZER + "step"} & set(names.missing)
    states: list[tuple[np.random.Generator, dict[str, Any]]] = []
    val_losses, step_count = model.val_losses, model.step_count
    if whole:
        step_count = int(values[OPTIMIZER + "step"][0])
        if not 0 <= step_count < STEPS:
            raise ValueError(f"load: {path}: {OPTIMIZER}step must be at least 0 and below 2**53, got {step_count}")
        states, val_losses = read_metadata(path, model, metadata)
    with model.lock:
        model._refuse_nested("load")
        for generator, state in states:
            generator.bit_generator.state = state
        model.val_losses = val_losses
        if whole:
            model.step_count = step_count
        _copy(values, {name: a for name, a in arrays.items() if whole or not name.startswith(OPTIMIZER)})
        model.model._set_mask(mask)
    return names


def _on_host(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: device.to_host(a) for name, a in arrays.items()}


def _arrays(op: str, model: Any) -> dict[str, np.ndarray]:
    if isinstance(model, Model):
        return {**model.parameters(), **model.statistics(), **_masks(model.masks())}
    if isinstance(model, Trainer):
        step = np.array([model.step_count], np.int64)
        return {**_arrays(op, model.model), OPTIMIZER + "state": model.state, OPTIMIZER + "step": step}
    raise TypeError(f"{op}: model must be a layer of fastgrad.nn or a Trainer, got {type(model).__name__}")


def _model(model: Model | Trainer) -> Model:
    return model.model if isinstance(model, Trainer) else model


def _masks(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {MASK + name: mask for name, mask in masks.items()}


def _mask(path: Any, model: Model | Trainer, pruned: bool) -> np.ndarray | None:
    """A new array, flat (P,), for the file's masks, or None if it has none. It is new, so that a load that fails changes nothing."""
    model = _model(model)
    if model.container_type and (pruned or model.masks()):
        raise ValueError(
            f"load: {path}: the file or the model has masks, and the model is part of a {model.container_type}; load into that"
        )
    if not pruned:
        return None
    mask = np.ones(model.params.size, np.bool_)
    return device.to_gpu(mask) if model.on_gpu else mask


def _check(path: Any, arrays: dict[str, np.ndarray], parts: dict[str, Any], strict: bool) -> LoadedNames:
    names = LoadedNames([name for name in arrays if name not in parts], sorted(parts.keys() - arrays))
    if strict and names.missing:
        raise ValueError(f"load: {path}: the file has no {', '.join(names.missing)}")
    if strict and names.unexpected:
        raise ValueError(f"load: {path}: the model has no {', '.join(names.unexpected)}")
    for name, array in arrays.items():
        if name in parts:
            check_stored(path, name, parts[name], array)
    return names


def _with_own_masks(model: Model, mask: np.ndarray | None, missing: list[str]) -> np.ndarray | None:
    """The file's mask, or None, with the model's own mask of the arrays that the file has not."""
    own = {name: a for name, a in model.masks().items() if name in missing or MASK + name in missing}
    if own:
        mask = np.ones_like(model._mask) if mask is None else mask
        parts = views(mask, model._shapes)
        for name, a in own.items():
            parts[name][...] = a
    return mask


def _copy(values: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        array[...] = values[name]
