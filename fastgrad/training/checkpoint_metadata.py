"""The metadata of a trainer's file: the optimiser's name, the validation losses, and the states of the random generators."""

import json
from typing import Any

import numpy as np

from fastgrad.training.trainer_interface import TrainerInterface as Trainer

# the optimiser's name in metadata, and its arrays in the file, begin with this
OPTIMIZER = "optimizer."
VAL_LOSSES, RNG = "val_losses", "rng"


def trainer_metadata(trainer: Trainer) -> dict[str, str]:
    """What a trainer's file has as metadata."""
    states = {name: json.dumps(g.bit_generator.state) for name, g in _generators(trainer)}
    return {**states, OPTIMIZER + "name": _optimizer(trainer), VAL_LOSSES: json.dumps(trainer.val_losses)}


def read_metadata(
    path: Any, trainer: Trainer, metadata: dict[str, str]
) -> tuple[list[tuple[np.random.Generator, dict[str, Any]]], list[float]]:
    """From the metadata of a trainer's file: the state of each generator, and the validation losses."""
    if missing := [name for name in (OPTIMIZER + "name", VAL_LOSSES, RNG) if name not in metadata]:
        raise ValueError(f"load: {path}: the file has no metadata {', '.join(missing)}")
    if (name := metadata[OPTIMIZER + "name"]) != _optimizer(trainer):
        raise ValueError(f"load: {path}: the state of {name}, but the trainer's optimizer is {_optimizer(trainer)}")
    # a model with other dropout layers than the file's keeps its own generators
    states = [(g, _state(path, name, metadata[name], g)) for name, g in _generators(trainer) if name in metadata]
    losses = _parse(path, VAL_LOSSES, metadata[VAL_LOSSES])
    try:
        if not isinstance(losses, list) or any(type(loss) not in (int, float) for loss in losses):
            raise ValueError
        # NaN and infinity are floats too
        return states, [float(loss) for loss in losses]
    except (ValueError, OverflowError):
        raise ValueError(f"load: {path}: metadata {VAL_LOSSES} must be a list of floats") from None


def _state(path: Any, name: str, text: str, generator: np.random.Generator) -> dict[str, Any]:
    """The state of a generator from metadata, after a test in a new generator of the same kind."""
    state = _parse(path, name, text)
    trial = type(generator.bit_generator)()
    try:
        trial.state = state
        # an increment of PCG64 is odd; with an even one its period is short
        if trial.state == state and state["state"]["inc"] % 2 and state["has_uint32"] in (0, 1):
            return state
    except (ValueError, TypeError, KeyError, OverflowError):
        pass
    raise ValueError(f"load: {path}: metadata {name} must be the state of a {type(trial).__name__} generator")


def _parse(path: Any, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load: {path}: metadata {name} must be JSON: {error}") from None


def _optimizer(trainer: Trainer) -> str:
    return type(trainer.optimizer).__name__


def _generators(trainer: Trainer) -> list[tuple[str, np.random.Generator]]:
    layers = trainer.model._generators()
    return [(RNG, trainer.rng), *((f"{RNG}.{i}", generator) for i, generator in enumerate(layers))]
