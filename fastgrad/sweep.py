"""python -m fastgrad health --sweep: the first gradient of many deep nets, as a heat map."""

import math
from itertools import product
from typing import Any

import numpy as np

from fastgrad.experiment import batches, net
from fastgrad.train import Trainer

SWEPT_INITS = "normal:0.01", "normal:1", "normal:0.01:1", "xavier_uniform", "he_normal"
SWEPT_ACTIVATIONS = "sigmoid", "tanh", "relu"
SWEPT_DEPTHS = 5, 20, 50, 100
# batch norm, residual
CURES = {"no cure": (False, False), "batch norm": (True, False), "residual": (False, True), "both": (True, True)}
# powers of ten where the colours end
ENDS = 8


def first_norm(x: np.ndarray, y: np.ndarray, **options: Any) -> float:
    """The norm of the first hidden layer's gradient at the first step; infinite where that is not finite."""
    trainer = Trainer(net(**options), health=True)
    try:
        trainer.step(x, y)
    except FloatingPointError:
        return math.inf
    return trainer.health().as_dict()["layers.0/grad_norm"]


def sweep(x: np.ndarray, y: np.ndarray, width: int, batch_size: int, seed: int) -> dict[tuple[str, str], np.ndarray]:
    """first_norm (inits, depths) for each activation and cure."""
    from tqdm import tqdm

    rows = next(batches(len(x), 1, batch_size, seed))
    found = {key: np.empty((len(SWEPT_INITS), len(SWEPT_DEPTHS))) for key in product(SWEPT_ACTIVATIONS, CURES)}
    cases = list(product(found, enumerate(SWEPT_INITS), enumerate(SWEPT_DEPTHS)))
    for (activation, cure), (i, init), (j, depth) in tqdm(cases, unit="net"):
        batch_norm, residual = CURES[cure]
        options = {
            "depth": depth,
            "activation": activation,
            "init": init,
            "batch_norm": batch_norm,
            "residual": residual,
        }
        found[activation, cure][i, j] = first_norm(x[rows], y[rows], width=width, seed=seed, **options)
    return found


def heat_map(found: dict[tuple[str, str], np.ndarray]) -> Any:
    """The sweep as a matplotlib Figure: blue where the gradient has vanished, red where it has exploded."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('health needs matplotlib for a picture: pip install "fastgrad[plot]"') from error
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(len(SWEPT_ACTIVATIONS), len(CURES), sharex=True, sharey=True)
    for axes, ((activation, cure), norms) in zip(panels.flat, found.items(), strict=True):
        with np.errstate(divide="ignore"):
            powers = np.log10(norms)
        image = axes.imshow(np.clip(powers, -ENDS, ENDS), cmap="RdBu_r", vmin=-ENDS, vmax=ENDS, aspect="auto")
        for (i, j), power in np.ndenumerate(powers):
            text = f"{power:.0f}".replace("-0", "0") if np.isfinite(power) else "0" if power < 0 else "\N{INFINITY}"
            text = "none" if power == -np.inf else text
            axes.text(
                j, i, text, ha="center", va="center", color="white" if abs(power) > ENDS / 2 else "black", fontsize=8
            )
        axes.set_xticks(range(len(SWEPT_DEPTHS)), SWEPT_DEPTHS)
        axes.set_yticks(range(len(SWEPT_INITS)), SWEPT_INITS)
        axes.set_title(f"{activation}, {cure}", fontsize=10)
    figure.supxlabel("hidden layers")
    figure.colorbar(image, ax=panels, label="power of ten of the first layer's |gradient| at the first step")
    return figure
