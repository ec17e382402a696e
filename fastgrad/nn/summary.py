"""What models print: `call`, a layer as the call that makes it; `table`, a model as a table of layers; `line`, a model in one line."""

import inspect
from typing import Any, NamedTuple

import numpy as np

# the sizes of an output: N rows, T steps, or "?" where the images tell
Shape = tuple[int | str, ...]
TITLES = "layer", "kind", "output", "parameters"
# initial weights are not what a layer has now
HIDDEN = "init", "seed"


class Row(NamedTuple):
    """A layer in the table: its name, its kind with its settings, the shape of its output, and its number of parameters."""

    name: str
    kind: str
    shape: Shape
    size: int


def call(kind: type, settings: dict[str, Any]) -> str:
    """A layer as the call that makes it, without settings that have their default: Dense(784, 64, 'relu')."""
    texts: list[str] = []
    positional = True
    for i, (name, parameter) in enumerate(inspect.signature(kind).parameters.items()):
        value = settings.get(name, parameter.default)
        if isinstance(value, np.dtype):
            value = value.name
        is_pair = isinstance(value, tuple) and len(value) == 2 and not isinstance(parameter.default, tuple)
        if is_pair and value[0] == value[1] and not isinstance(value[0], tuple | list):
            # of pixels, which one number may stand for; a pair of equal pairs has two sides apart
            value = value[0]
        # a name tells more, but for what must be there, an activation and an only number
        known = i == 0 or name == "activation" or parameter.default is parameter.empty
        positional = positional and known and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        text = repr(value)
        if name in HIDDEN or value is parameter.empty or text == repr(parameter.default):
            positional = False
        else:
            texts.append(text if positional else f"{name}={text}")
    return f"{kind.__name__}({', '.join(texts)})"


def line(model: Any) -> str:
    """A model in one line, however many layers it has."""
    layers = len(model.children) if hasattr(model, "children") else 0
    return f"{type(model).__name__} of {layers} layer{'s' * (layers > 1)}" if layers else repr(model)


def table(model: Any) -> str:
    """A model as a table of its layers, with the number of all parameters and their bytes in its last line."""
    width = "?" if model.n_in is None else model.n_in
    axes = ("T",) if model.recurrent else ("?", "?") if model.images else ()
    rows, _ = model._rows("", ("N", *axes, width))
    cells = [TITLES] + [(row.name, row.kind, _text(row.shape), f"{row.size:,}") for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([f"{text:{n}}" for text, n in zip(texts[:-1], widths, strict=False)] + [f"{texts[-1]:>{widths[-1]}}"])
        for texts in cells
    ]
    total = f"total: {_parameters(model)}, {model.params.nbytes:,} bytes of {model.dtype}"
    if model._mask is not None:
        total += f", {int(model._mask.size - model._mask.sum()):,} pruned"
    return "\n".join([*lines, total + (", on the GPU" if model.on_gpu else "")])


def output_shape(model: Any, shape: Shape) -> Shape:
    """The shape of a layer's output, from that of its input."""
    width = shape[-1] if model.keeps_width else "?" if model.n_out is None else model.n_out
    return (*shape[: 1 if model.pools else -1], width)


def join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _parameters(model: Any) -> str:
    return f"{model.params.size:,} parameter{'s' * (model.params.size != 1)}"


def _text(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))})"
