"""model_from_torch: PyTorch's modules as a model of fg.nn. PyTorch is not imported."""

from collections.abc import Callable
from typing import Any

from fastgrad.convert.reading import Reading, Spec
from fastgrad.convert.recurrent_arrays import cell_of, kind, on_host, with_article
from fastgrad.convert.recurrent_torch import from_torch
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.dense import Dense
from fastgrad.nn.dropout import Dropout
from fastgrad.nn.gru import GRU
from fastgrad.nn.layer_norm import LayerNorm
from fastgrad.nn.lstm import LSTM
from fastgrad.nn.model import Model
from fastgrad.nn.pool import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d


def model_from_torch(module: Any, image_size: int | tuple[int, int] | None = None) -> Model:
    """A model of fg.nn with the weights and the outputs of a PyTorch module.

    The module is an nn.Sequential, also of others, whose layers come in their place; or a single layer. Known are
    Linear, Conv2d, BatchNorm1d and BatchNorm2d, LayerNorm of one axis of rows, LSTM and GRU as the last layer,
    MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1) before a Flatten, Flatten, Dropout, Identity, and activations after a
    Linear, a Conv2d or a norm, where rising ones may come after a MaxPool2d.

    Images are (N, H, W, C) here, and sequences (N, T, C), whatever batch_first is. The weights after a Flatten are
    permuted, so that the outputs are equal. A batch norm has the same momentum, eps and running statistics. Whether
    the module is in training or in evaluation is not looked at.

    Args:
        module: The torch.nn.Module, of float32 or float64, on any device. Nothing of it is changed.
        image_size: Height and width of the inputs, in pixels, an integer or a pair; needed where a Flatten makes rows
            of images.

    Returns:
        A Sequential, or of a single layer that layer.

    Raises:
        ValueError: A layer has an option that fg.nn has not, or hooks; or image_size is missing or does not fit.
        TypeError: A layer has no equal in fg.nn, its dtype is another, or module is no module of PyTorch.

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> model = fg.convert.model_from_torch(module)
        >>> model.layers
        (Dense(4, 8, 'relu'), Dense(8, 3))
    """
    reading = Reading("model_from_torch", image_size, channels_first=True)
    _check_module(reading.op, module)
    _read(reading, "", module)
    if reading.specs and reading.specs[-1].place.endswith("(AdaptiveAvgPool2d)"):
        reading.place = reading.specs[-1].place
        reading.refuse("must come before a Flatten, for fg.nn.GlobalAvgPool2d makes rows")
    return reading.model(type(module).__name__ == "Sequential")


def _check_module(op: str, module: Any) -> None:
    if not (hasattr(module, "state_dict") and hasattr(module, "named_children")):
        raise TypeError(f"{op}: module must be a torch.nn.Module, got {kind(module)}")


def _read(reading: Reading, path: str, module: Any) -> None:
    reading.enter(path, module)
    name = type(module).__name__ if type(module).__module__.startswith("torch.nn.modules.") else ""
    if getattr(module, "_forward_hooks", None) or getattr(module, "_forward_pre_hooks", None):
        reading.refuse("has forward hooks, which fg.nn has not")
    if name == "Sequential":
        for key, child in module._modules.items():
            _read(reading, f"{path}.{key}" if path else key, child)
        return
    if name not in LAYERS and name not in ACTIVATIONS:
        hint = "; fgt.accelerate takes models of any kind" if list(module.named_children()) else ""
        reading.unknown({"Sequential", *LAYERS, *ACTIVATIONS}, hint)
    if next(module.parameters(), None) is not None and reading.seen.setdefault(id(module), path) != path:
        reading.refuse(f'is layer "{reading.seen[id(module)]}" once more; layers of fg.nn have weights of their own')
    last = reading.last()
    if last is not None and last.kind in (LSTM, GRU):
        reading.refuse(f"comes after {with_article(cell_of(last.kind))}, whose outputs in PyTorch are a tuple")
    pooled = last is not None and last.place.endswith("(AdaptiveAvgPool2d)")
    if pooled and name not in ("Flatten", "Identity"):
        reading.refuse("comes after an AdaptiveAvgPool2d; only a Flatten may, for fg.nn.GlobalAvgPool2d makes rows")
    if name in ACTIVATIONS:
        reading.activate(ACTIVATIONS[name](reading, module))
    else:
        LAYERS[name](reading, module)
        if pooled and name == "Flatten":
            # now the two are one layer
            last.place = last.place + " with its Flatten"  # type: ignore[union-attr]


def _arrays(reading: Reading, **tensors: Any) -> dict[str, Any]:
    """The tensors that are there as arrays."""
    place = reading.place
    return {
        name: on_host(reading.op, f"{name} of {place}", tensor, "float32 or float64")
        for name, tensor in tensors.items()
        if tensor is not None
    }


def _linear(reading: Reading, module: Any) -> None:
    arrays = _arrays(reading, w=module.weight, b=module.bias)
    arrays["w"] = arrays["w"].T
    arguments = {"n_in": module.in_features, "n_out": module.out_features, "bias": module.bias is not None}
    reading.add(Dense, arguments, arrays)


def _need_channels(reading: Reading) -> None:
    """Refuse a layer of images after a LayerNorm, whose last axis is the width of images and not their channels."""
    reading.need(LayerNorm not in [spec.kind for spec in reading.specs], "a LayerNorm before it, over the last axis")


def _conv(reading: Reading, module: Any) -> None:
    _need_channels(reading)
    reading.need(module.padding_mode == "zeros", f"padding_mode {module.padding_mode!r}")
    arrays = _arrays(reading, w=module.weight, b=module.bias)
    # (C_out, C_in, kh, kw) there and (kh, kw, C_in, C_out) here
    arrays["w"] = arrays["w"].transpose(2, 3, 1, 0)
    names = {"n_in": "in_channels", "n_out": "out_channels", "size": "kernel_size", "stride": "stride"}
    arguments = {ours: getattr(module, theirs) for ours, theirs in names.items()}
    padding = 0 if module.padding == "valid" else module.padding
    arguments |= {"padding": padding, "dilation": module.dilation, "groups": module.groups}
    reading.add(Conv2d, {**arguments, "bias": module.bias is not None}, arrays)


def _batch_norm(reading: Reading, module: Any) -> None:
    reading.need(module.affine, "affine=False")
    reading.need(module.running_mean is not None, "track_running_stats=False")
    reading.need(module.momentum is not None, "momentum=None")
    if type(module).__name__ == "BatchNorm2d":
        _need_channels(reading)
    arrays = _arrays(
        reading,
        gamma=module.weight,
        beta=module.bias,
        running_mean=module.running_mean,
        running_var=module.running_var,
    )
    reading.add(BatchNorm, {"n": module.num_features, "momentum": module.momentum, "eps": module.eps}, arrays)


def _is_batch_norm_2d(spec: Spec) -> bool:
    return spec.place.endswith("(BatchNorm2d)")


def _layer_norm(reading: Reading, module: Any) -> None:
    reading.need(len(module.normalized_shape) == 1, f"normalized_shape {tuple(module.normalized_shape)}")
    reading.need(module.elementwise_affine, "elementwise_affine=False")
    kinds = [spec.kind for spec in reading.specs]
    images = any(kind in kinds for kind in (Conv2d, MaxPool2d, AvgPool2d)) or any(map(_is_batch_norm_2d, reading.specs))
    rows = Flatten in kinds or GlobalAvgPool2d in kinds or not images
    reading.need(rows, "images, of which it normalises the last axis and no channels")
    arrays = _arrays(reading, gamma=module.weight, beta=module.bias)
    arrays.setdefault("beta", 0 * arrays["gamma"])
    reading.add(LayerNorm, {"n": module.normalized_shape[0], "eps": module.eps}, arrays)


def _recurrent(reading: Reading, module: Any, layer: type[LSTM | GRU], *options: str) -> None:
    kinds = [spec.kind for spec in reading.specs]
    reading.need(BatchNorm not in kinds, "a BatchNorm1d before it, over dim 1, which is the steps of sequences")
    softmax = any(spec.over_dim_1 for spec in reading.specs)
    reading.need(not softmax, "a Softmax before it, over dim 1, which is the steps of sequences")
    state_dict = _arrays(reading, **module.state_dict())
    names = "input_size", "hidden_size", "num_layers", "bidirectional", *options
    arguments = {name: getattr(module, name) for name in names}
    arguments |= {
        "dropout": module.dropout if module.num_layers > 1 else 0.0,
        "dtype": reading.dtype_of(state_dict["weight_ih_l0"]),
    }
    spec = reading.add(layer, arguments)
    spec.write = lambda ours: from_torch(ours, state_dict)


def _pool(module: Any) -> dict[str, Any]:
    windows = {"size": module.kernel_size, "stride": module.stride, "padding": module.padding}
    return windows | ({"ceil_mode": True} if module.ceil_mode else {})


def _max_pool(reading: Reading, module: Any) -> None:
    _need_channels(reading)
    reading.need(module.dilation in (1, (1, 1)), f"dilation {module.dilation}")
    reading.need(not module.return_indices, "return_indices=True")
    reading.add(MaxPool2d, _pool(module))


def _avg_pool(reading: Reading, module: Any) -> None:
    _need_channels(reading)
    reading.need(module.divisor_override is None, f"divisor_override {module.divisor_override}")
    reading.add(AvgPool2d, {**_pool(module), "include_pad": module.count_include_pad})


def _global_pool(reading: Reading, module: Any) -> None:
    _need_channels(reading)
    reading.need(module.output_size in (1, (1, 1)), f"output_size {module.output_size}")
    reading.add(GlobalAvgPool2d, {})


def _flatten(reading: Reading, module: Any) -> None:
    reading.need((module.start_dim, module.end_dim) == (1, -1), f"dimensions {module.start_dim} to {module.end_dim}")
    if not reading.has_rows():
        _need_channels(reading)
    reading.flatten()


def _identity(reading: Reading, module: Any) -> None:
    """There is nothing to add."""


def _dropout(reading: Reading, module: Any) -> None:
    reading.add(Dropout, {"rate": module.p})


def _softplus(reading: Reading, module: Any) -> str:
    reading.need(module.beta == 1, f"beta {module.beta}")
    # past its threshold, 20, PyTorch's softplus is z, which differs by 2e-9
    reading.need(module.threshold >= 20, f"threshold {module.threshold}")
    return "softplus"


def _softmax(reading: Reading, module: Any) -> str:
    last = reading.last()
    # channels are the dimension 1 of rows and of images
    images = last is not None and (last.kind is Conv2d or _is_batch_norm_2d(last))
    if module.dim not in ((1, -3) if images else (1, -1)):
        reading.refuse(f"has dim {module.dim}; the softmax of fg.nn is over the channels, dim 1")
    if last is not None:
        last.over_dim_1 = module.dim == 1
    return "softmax"


def _hardtanh(reading: Reading, module: Any) -> tuple[str, float]:
    reading.need(module.min_val == 0, f"min_val {module.min_val}")
    return "clipped_relu", float(module.max_val)


LAYERS: dict[str, Callable[[Reading, Any], None]] = {
    "AdaptiveAvgPool2d": _global_pool,
    "AvgPool2d": _avg_pool,
    "BatchNorm1d": _batch_norm,
    "BatchNorm2d": _batch_norm,
    "Conv2d": _conv,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "GRU": lambda reading, module: _recurrent(reading, module, GRU),
    "Identity": _identity,
    "LSTM": lambda reading, module: _recurrent(reading, module, LSTM, "proj_size"),
    "LayerNorm": _layer_norm,
    "Linear": _linear,
    "MaxPool2d": _max_pool,
}
ACTIVATIONS: dict[str, Callable[[Reading, Any], Any]] = {
    "ELU": lambda reading, module: ("elu", float(module.alpha)),
    "GELU": lambda reading, module: "gelu_tanh" if module.approximate == "tanh" else "gelu",
    "Hardtanh": _hardtanh,
    "LeakyReLU": lambda reading, module: ("leaky_relu", float(module.negative_slope)),
    "ReLU": lambda reading, module: "relu",
    "ReLU6": lambda reading, module: "relu6",
    "SELU": lambda reading, module: "selu",
    "SiLU": lambda reading, module: "silu",
    "Sigmoid": lambda reading, module: "sigmoid",
    "Softmax": _softmax,
    "Softplus": _softplus,
    "Tanh": lambda reading, module: "tanh",
}
