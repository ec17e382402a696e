"""The command `python -m fastgrad health`: train a deep net on scikit-learn's digits, print its health report and draw it.

Options choose depth, width, initialisation, activation, batch norm and residuals. With --sweep the command draws a heat map instead: the
norm of the first layer's gradient at the first step, for many initialisations, activations and depths, with and without batch norm and
residuals.
"""

import argparse
import functools
import math
import os
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from fastgrad import nn
from fastgrad.core import check
from fastgrad.init import normal as draw_normal
from fastgrad.init.choice import INITS, init_function
from fastgrad.nn.model import Model
from fastgrad.optim import Adam
from fastgrad.training.file_replacement import check_folder
from fastgrad.training.trainer import Trainer


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--depth", type=int, default=50, help="hidden layers (50)")
    parser.add_argument("--width", type=int, default=64, help="units of each (64)")
    parser.add_argument("--activation", default="tanh", help="of hidden layers (tanh)")
    parser.add_argument(
        "--init",
        default="xavier_uniform",
        help=f"{', '.join(INITS)}; normal:0.01 with a std, normal:0.01:1 with a mean too (xavier_uniform)",
    )
    parser.add_argument("--batch-norm", action="store_true", help="before each activation")
    parser.add_argument("--residual", action="store_true", help="around each hidden layer")
    parser.add_argument("--steps", type=int, default=20, help="of Adam (20)")
    parser.add_argument("--batch-size", type=int, default=128, help="(128)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (0.001)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (0)")
    parser.add_argument("--plot", metavar="PATH", help="the picture (health.png, of a sweep health_map.png)")
    parser.add_argument(
        "--sweep", action="store_true", help="all of some inits, activations, depths and cures, at the first step"
    )


def run(options: argparse.Namespace) -> None:
    """Train one net, print its health report and draw it; or draw the heat map of a sweep."""
    path = options.plot or ("health_map.png" if options.sweep else "health.png")
    check_picture(path)
    x, y = digits()
    if options.sweep:
        heat_map(sweep(x, y, options.width, options.batch_size, options.seed)).savefig(path, dpi=120)
        print(f"drawn in {path}")
        return
    names = "depth", "width", "activation", "init", "batch_norm", "residual", "seed"
    model = net(**{name: getattr(options, name) for name in names})
    trainer = Trainer(model, optimizer=Adam(options.lr), health=True)
    losses = []
    try:
        for rows in batches(len(x), options.steps, options.batch_size, options.seed):
            losses.append(trainer.step(x[rows], y[rows]))
    except FloatingPointError as error:
        print(error)
    report = trainer.health()
    print(report)
    if losses:
        print(f"loss {losses[0]:.4g} at the first step, {losses[-1]:.4g} at step {len(losses)}")
    report.plot(path)
    print(f"drawn in {path}")


def check_picture(path: str) -> None:
    """Raise before the work for a picture that could not be drawn after it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('health needs matplotlib for a picture: pip install "fastgrad[plot]"') from error
    check_folder("health: plot", path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"health: plot must be a file, got the folder {path}")
    suffix, kinds = os.path.splitext(path)[1].lower().removeprefix("."), Figure().canvas.get_supported_filetypes()
    # without a suffix matplotlib draws its default kind
    if suffix and suffix not in kinds:
        raise ValueError(f"health: plot must end in one of {', '.join(f'.{kind}' for kind in kinds)}, got {path}")


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: images (1797, 64) from 0 to 1, and classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('health: the digits are scikit-learn\'s: pip install "fastgrad[data]"') from error
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int64)


def initial(text: str) -> Any:
    """The init of a text: a name, name:option, or normal:std:mean."""
    name, *numbers = text.split(":")
    check.choice("health", "init", name, INITS)
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        raise ValueError(
            f"health: init must be a name with numbers after colons, as normal:0.01, got {text!r}"
        ) from None
    if name == "normal" and len(values) == 2:
        std = check.number("health", "the std of init 'normal'", values[0])
        return functools.partial(
            draw_normal, std=std, mean=check.finite("health", "the mean of init 'normal'", values[1])
        )
    if len(values) > 1:
        raise ValueError(f"health: init {name!r} takes at most {2 if name == 'normal' else 1} numbers, got {text!r}")
    return init_function("health", (name, *values) if values else name)


def net(
    depth: int, width: int, activation: str, init: str, batch_norm: bool = False, residual: bool = False, seed: int = 0
) -> Model:
    """So many hidden layers between 64 inputs and 10 classes."""
    depth, width = check.count("health", "depth", depth), check.count("health", "width", width)
    check.activation("health", activation)
    f = initial(init)
    if not (batch_norm or residual):
        return nn.DenseChain([64, *[width] * depth, 10], activation, "softmax", init=f, seed=seed)

    def hidden(n_in: int) -> list[Model]:
        if batch_norm:
            return [nn.Dense(n_in, width, init=f, bias=False), nn.BatchNorm(width, activation)]
        return [nn.Dense(n_in, width, activation, init=f)]

    layers = hidden(64)
    for _ in range(depth - 1):
        block = hidden(width)
        # batch norm and activation come first within residuals (He et al. 2016, figure 1b), so that nothing stands in the sum's way
        layers += [nn.Residual(nn.Sequential(*block[::-1]))] if residual else block
    return nn.Sequential(*layers, nn.Dense(width, 10, "softmax", init=f), seed=seed)


def batches(n: int, steps: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of each step: epochs in new orders, without what is left of one."""
    steps, size = (
        check.count("health", "steps", steps),
        min(check.count("health", "batch-size", batch_size, most=None), n),
    )
    rng, order = np.random.default_rng(check.count("health", "seed", seed, 0, None)), np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(n)
        yield order[:size]
        order = order[size:]


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
    from matplotlib.figure import Figure

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
