"""model_to_torch: a model of fg.nn as PyTorch's modules."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad.convert.images import ImageShape
from fastgrad.convert.leaves import check_model, leaves, place_of, takes_images
from fastgrad.convert.recurrent_arrays import cell_of, with_article
from fastgrad.convert.recurrent_torch import to_torch
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.context import activation_name
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.dense import Dense
from fastgrad.nn.dropout import Dropout
from fastgrad.nn.gru import GRU
from fastgrad.nn.layer_norm import LayerNorm
from fastgrad.nn.lstm import LSTM
from fastgrad.nn.model import Model
from fastgrad.nn.pool import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

if TYPE_CHECKING:
    import torch

# activations by PyTorch's names, where they take no other argument than a parameter
MODULES = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "relu6": "ReLU6",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "elu": "ELU",
    "selu": "SELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "softplus": "Softplus",
}


def model_to_torch(model: Model, image_size: int | tuple[int, int] | None = None) -> "torch.nn.Sequential":
    """A torch.nn.Sequential with the weights and the outputs of a model.

    It is what model_from_torch reads: every layer of a Sequential, of inner ones in their place, and its activation
    after it. Images are (N, C, H, W) in PyTorch. A Residual has no equal, and an LSTM or a GRU must be last and without
    pool, for its outputs in PyTorch are a tuple. In training, batch norms there are those with unbiased=True.

    Args:
        model: The model, not on a GPU. Nothing of it is changed.
        image_size: Height and width of the inputs, in pixels, an integer or a pair; needed where a Flatten makes rows
            of images, or padding is "same" with a stride, or the model is batch norms and dropout alone, which without
            it are of rows.

    Returns:
        The nn.Sequential, in training mode as a new one.

    Raises:
        ValueError: A layer has what PyTorch has not, the model is on a GPU, or image_size is missing or does not fit.
        TypeError: model is no model of fg.nn, or a layer has no equal.
        ImportError: PyTorch is not installed.

    Example:
        >>> model = fg.nn.DenseChain([4, 8, 3], output="softmax")
        >>> [type(module).__name__ for module in fg.convert.model_to_torch(model)]
        ['Linear', 'ReLU', 'Linear', 'Softmax']
    """
    op = "model_to_torch"
    check_model(op, model)
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{op}: PyTorch is needed; pip install fastgrad[torch] installs it") from error
    images = ImageShape(op, image_size, model.n_in if model.images else None)
    modules: list[Any] = []
    rows, recurrent = not takes_images(model, image_size), ""
    # the initial weights, which are written over, leave PyTorch's generator as it is
    with torch.random.fork_rng(devices=[]):
        for path, layer in leaves(model):
            place = place_of(path, layer)
            if recurrent:
                raise ValueError(f"{op}: {place} comes after {recurrent}, whose outputs in PyTorch are a tuple")
            if isinstance(layer, (LSTM, GRU)):
                recurrent = with_article(cell_of(type(layer)))
            if isinstance(layer, BatchNorm) and model.recurrent:
                raise ValueError(
                    f"{op}: {place} is of sequences, whose steps are the channels of PyTorch's BatchNorm1d"
                )
            if isinstance(layer, Flatten):
                images.flattened = place
            rows = rows or layer.pools
            modules += _modules(op, torch.nn, place, layer, images, rows)
    if images.flattened:
        raise ValueError(
            f"{op}: {images.flattened} needs a Dense after it, for PyTorch's order of the values is another"
        )
    return torch.nn.Sequential(*modules)


def _modules(op: str, nn: Any, place: str, layer: Model, images: ImageShape, rows: bool) -> list[Any]:
    """The modules of one layer, its activation the last. rows: whether its outputs are rows, not images."""
    arrays: dict[str, np.ndarray | None]
    options: dict[str, Any] = {"dtype": getattr(_torch(), str(layer.dtype))}
    if isinstance(layer, Dense):
        w, order = layer.w, images.order(op, layer.n_in)
        images.flattened = ""
        module = nn.Linear(layer.n_in, layer.n_out, layer.b is not None, **options)
        arrays = {"weight": _theirs(w, order).T, "bias": layer.b}
    elif isinstance(layer, Conv2d):
        options |= {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        padding = _padding(op, place, layer, images)
        module = nn.Conv2d(layer.n_in, layer.n_out, layer.size, padding=padding, bias=layer.b is not None, **options)
        arrays = {"weight": layer.w.transpose(3, 2, 0, 1), "bias": layer.b}
    elif isinstance(layer, BatchNorm):
        order = images.order(op, len(layer.gamma))
        module = (nn.BatchNorm1d if rows else nn.BatchNorm2d)(layer.n_in, layer.eps, layer.momentum, **options)
        names = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
        arrays = {theirs: _theirs(getattr(layer, ours), order) for theirs, ours in names.items()}
        arrays["num_batches_tracked"] = np.array(0)
    elif isinstance(layer, LayerNorm):
        if not rows:
            raise ValueError(f"{op}: {place} is of images, whose channels PyTorch's LayerNorm does not normalise")
        order = images.order(op, len(layer.gamma))
        module = nn.LayerNorm(layer.n_in, layer.eps, **options)
        arrays = {"weight": _theirs(layer.gamma, order), "bias": _theirs(layer.beta, order)}
    elif isinstance(layer, (LSTM, GRU)):
        cell = cell_of(type(layer))
        if layer.pool:
            raise ValueError(f"{op}: {place} has pool {layer.pool!r}, which PyTorch's {cell} has not")
        options |= {"dropout": layer.dropout, "bidirectional": layer.bidirectional}
        if isinstance(layer, LSTM):
            options["proj_size"] = layer.proj_size
        try:
            arrays = {**to_torch(layer)}
        except ValueError as error:
            raise ValueError(f"{op}: {place}: {error}") from None
        sizes = layer.input_size, layer.hidden_size, layer.num_layers
        module = getattr(nn, cell)(*sizes, batch_first=True, **options)
    else:
        return _without_parameters(op, nn, place, layer, images)
    state = {name: _torch().from_numpy(np.array(a, order="C")) for name, a in arrays.items() if a is not None}
    module.load_state_dict(state)
    activation = activation_name(layer.output)
    return [module, *_activation(nn, activation, rows)]


def _without_parameters(op: str, nn: Any, place: str, layer: Model, images: ImageShape) -> list[Any]:
    if isinstance(layer, AvgPool2d):
        padding = _padding(op, place, layer, images)
        return [nn.AvgPool2d(layer.size, layer.stride, padding, layer.ceil_mode, layer.include_pad)]
    if isinstance(layer, MaxPool2d):
        padding = _padding(op, place, layer, images)
        return [nn.MaxPool2d(layer.size, layer.stride, padding, ceil_mode=layer.ceil_mode)]
    if isinstance(layer, GlobalAvgPool2d):
        images.channels = images.size = None
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if isinstance(layer, Flatten):
        return [nn.Flatten()]
    if isinstance(layer, Dropout):
        return [nn.Dropout(layer.rate)]
    raise TypeError(f"{op}: {place} has no equal among the layers of a torch.nn.Sequential")


def _padding(op: str, place: str, layer: Conv2d | MaxPool2d, images: ImageShape) -> tuple[int, int] | str:
    """The padding of either side, or "same", which PyTorch has for convolutions without a stride."""
    pads = images.pads(layer)
    if isinstance(layer, Conv2d) and layer.padding == "same" and layer.stride == (1, 1):
        return "same"
    if pads is None:
        raise ValueError(
            f'{op}: {place} has padding "same" with a stride, which depends on image_size=(H, W); give that'
        )
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        sides = f"{pads} at (top, left, bottom, right)"
        raise ValueError(f"{op}: {place} has other padding on one side, {sides}; PyTorch has not")
    return top, left


def _theirs(a: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """Rows in PyTorch's order."""
    if order is None:
        return a
    theirs = np.empty_like(a)
    theirs[order] = a
    return theirs


def _activation(nn: Any, activation: str | tuple[str, float], rows: bool) -> list[Any]:
    name, parameter = activation if isinstance(activation, tuple) else (activation, None)
    if name == "identity":
        return []
    if name == "softmax":
        return [nn.Softmax(-1 if rows else 1)]
    if name == "clipped_relu":
        return [nn.Hardtanh(0.0, 1.0 if parameter is None else parameter)]
    if name == "gelu_tanh":
        return [nn.GELU("tanh")]
    return [getattr(nn, MODULES[name])(*([] if parameter is None else [parameter]))]


def _torch() -> Any:
    import torch

    return torch
