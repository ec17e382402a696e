"""Models and trainers in safetensors files.

A model's file holds its parameters and running statistics by name, and once it is pruned its masks. A trainer's holds the
optimiser's state and step count too, and as metadata the optimiser's name, the validation losses, and the states of the
generators that shuffle and drop out; a model loads from either. A file is written beside its place and moved there, and is
checked before anything is loaded.
"""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from fastgrad import gpu
from fastgrad.model import Model, views
from fastgrad.train import Trainer

DTYPES = {"F32": "float32", "F64": "float64", "I64": "int64", "BOOL": "bool"}
OPTIMIZER, MASK, VAL_LOSSES = "optimizer.", "mask.", "val_losses"


def save(path: str | os.PathLike, model: Model | Trainer) -> None:
    """Write the model, or the trainer with its model, to path."""
    from safetensors.numpy import save as serialized

    if isinstance(model, Trainer):
        # in a signal's handler a step may be under way
        with model.lock, model._steps.whole():
            metadata = {name: json.dumps(g.bit_generator.state) for name, g in _generators(model)}
            metadata |= {OPTIMIZER + "name": _optimizer(model), VAL_LOSSES: json.dumps(model.val_losses)}
            content = serialized(_here(_arrays("save", model)), metadata)
    else:
        content = serialized(_here(_arrays("save", model)))
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike, model: Model | Trainer) -> None:
    """Read into the model, or the trainer and its model, what `save` wrote; the same names, shapes and dtype.

    Raises ValueError or TypeError, and then changes nothing.
    """
    from safetensors import SafetensorError, safe_open

    arrays = _arrays("load", model)
    try:
        with safe_open(path, "numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            if isinstance(model, Model):
                parts = {name: part for name, part in parts.items() if not name.startswith(OPTIMIZER)}
            mask = _mask(path, model, any(name.startswith(MASK) for name in parts))
            masks = {} if mask is None else _masks(views(mask, _model(model)._shapes))
            arrays = {name: a for name, a in arrays.items() if not name.startswith(MASK)} | masks
            _check(path, arrays, parts)
            values = {name: file.get_tensor(name) for name in arrays}
            metadata = file.metadata() or {}
            if isinstance(model, Trainer) and metadata.get(OPTIMIZER + "name", _optimizer(model)) != _optimizer(model):
                raise ValueError(
                    f"load: {path} has the state of {metadata[OPTIMIZER + 'name']}, the trainer's optimizer is {_optimizer(model)}"
                )
    except SafetensorError as error:
        raise ValueError(f"load: {path} is not a whole safetensors file: {error}") from error
    if isinstance(model, Trainer):
        with model.lock:
            model._refuse_nested("load")
            for name, generator in _generators(model):
                if name in metadata:
                    generator.bit_generator.state = json.loads(metadata[name])
            model.val_losses = json.loads(metadata.get(VAL_LOSSES, "[]"))
            model.step_count = int(values[OPTIMIZER + "step"][0])
            _copy(values, arrays)
            model.model._wear(mask)
    else:
        _copy(values, arrays)
        model._wear(mask)


def _here(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: gpu.here(a) for name, a in arrays.items()}


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
    """Where the file's masks go, flat (P,), if it has any: into new memory, so that a load that fails changes nothing."""
    model = _model(model)
    if model.owned and (pruned or model.masks()):
        raise ValueError(f"load: {path} or the model has masks, and it is part of a {model.owned}; load into that")
    if not pruned:
        return None
    mask = np.ones(model.params.size, np.bool_)
    return mask if model.is_here else gpu.there(mask)


def _optimizer(trainer: Trainer) -> str:
    return type(trainer.optimizer).__name__


def _generators(trainer: Trainer) -> list[tuple[str, np.random.Generator]]:
    layers = trainer.model._generators()
    return [("rng", trainer.rng), *((f"rng.{i}", generator) for i, generator in enumerate(layers))]


def _check(path: Any, arrays: dict[str, np.ndarray], parts: dict[str, Any]) -> None:
    if missing := [name for name in arrays if name not in parts]:
        raise ValueError(f"load: {path} has no {', '.join(missing)}")
    if unknown := sorted(parts.keys() - arrays):
        raise ValueError(f"load: {path} has {', '.join(unknown)}, which the model has not")
    for name, array in arrays.items():
        part = parts[name]
        shape, dtype = tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype())
        if shape != array.shape:
            raise ValueError(f"load: {name} must be {array.shape}, got {shape} in {path}")
        if dtype != array.dtype:
            raise TypeError(f"load: {name} must be {array.dtype}, got {dtype} in {path}")


def _copy(values: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        array[...] = values[name]
