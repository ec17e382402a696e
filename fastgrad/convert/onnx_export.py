"""export_onnx: a model of fg.nn as an ONNX file for inference."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.convert.leaves import check_model, place_of
from fastgrad.convert.onnx_graph import CHANNELS_FIRST, IMAGES, ROWS, SEQUENCES, Graph, Value
from fastgrad.convert.recurrent_arrays import cell_of, missing_options
from fastgrad.convert.recurrent_onnx import node_weights
from fastgrad.functional import geometry
from fastgrad.nn import summary
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.container import Sequential
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.dense import Dense, DenseChain
from fastgrad.nn.dropout import Dropout
from fastgrad.nn.gru import GRU
from fastgrad.nn.layer_norm import LayerNorm
from fastgrad.nn.lstm import LSTM
from fastgrad.nn.model import Model
from fastgrad.nn.pool import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from fastgrad.nn.residual import Residual

# the operator set, and the file format that came with it, so that runtimes since 2022 read the file
OPSET, IR_VERSION = 17, 8
# a file of Protocol Buffers is smaller than this
LARGEST = 2**31
AXES: dict[str, list[Any]] = {ROWS: ["N"], SEQUENCES: ["N", "T"], IMAGES: ["N", "H", "W"]}


def export_onnx(model: Model, path: str | os.PathLike) -> None:
    """Write a model as an ONNX file, for inference in other runtimes.

    The file's input "x" and output "y" are those of model.predict: rows (N, C), sequences (N, T, C) with an LSTM or a
    GRU, or images (N, H, W, C), and a last softmax or sigmoid is part of it. N, T, H and W are of any size. Norms and
    dropout alone, which take any shape, are written for rows. All layers of fg.nn are known, as they are in evaluation,
    but for an LSTM with a projection, layer norm, zoneout or recurrent dropout; sequences have all T steps. The
    operator set is 17.

    Args:
        model: The model, of either dtype, not on a GPU. Few runtimes have all operators in float64.
        path: The file to write.

    Raises:
        ValueError: A layer has what ONNX has not, the model is on a GPU, or larger than 2 GB, which a file cannot be.
        TypeError: model is no model of fg.nn, or a layer has no equal in ONNX.
        ImportError: The package onnx is not installed; the extra fastgrad[onnx] brings it.
        OSError: The file cannot be written.

    Example:
        >>> import os, tempfile
        >>> model = fg.nn.Sequential(fg.nn.Dense(4, 8, "relu"), fg.nn.Dense(8, 3, "softmax"), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fg.export_onnx(model, os.path.join(folder, "model.onnx"))
    """
    op = "export_onnx"
    check_model(op, model)
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"{op}: the package onnx is needed; pip install fastgrad[onnx] installs it") from error
    if model.params.nbytes >= LARGEST:
        raise ValueError(f"{op}: the model must be smaller than 2 GB, got {model.params.nbytes:,} bytes")
    graph = Graph(onnx.helper, model.dtype)
    layout = SEQUENCES if model.recurrent else IMAGES if model.images else ROWS
    y = _add(op, graph, "", model, Value("x", layout))
    graph.path = ""
    if y.layout == CHANNELS_FIRST:
        y = graph.in_layout(y, IMAGES)
    graph.nodes.append(onnx.helper.make_node("Identity", [y.name], ["y"]))
    kind = onnx.helper.np_dtype_to_tensor_dtype(model.dtype)
    width_in = "C" if model.n_in is None else model.n_in
    width_out = model.n_out if model.n_out is not None else width_in if model.keeps_width else None
    axes_out = ["N", None, None] if y.layout == IMAGES else AXES[y.layout]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            type(model).__name__,
            [onnx.helper.make_tensor_value_info("x", kind, [*AXES[layout], width_in])],
            [onnx.helper.make_tensor_value_info("y", kind, [*axes_out, width_out])],
            [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        producer_name="fastgrad",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.save_model(proto, os.fspath(path))


def _add(op: str, graph: Graph, path: str, model: Model, x: Value) -> Value:
    """Add the nodes of a model, or of one of its layers, whose path is given; its output."""
    if isinstance(model, Sequential):
        for key, child in model.children.items():
            x = _add(op, graph, summary.join(path, key), child, x)
        return x
    if isinstance(model, Residual):
        y = _add(op, graph, summary.join(path, "body"), model.body, x)
        added = x if model.shortcut is None else _add(op, graph, summary.join(path, "shortcut"), model.shortcut, x)
        graph.path = path
        added = graph.in_layout(added, y.layout)
        return graph.activation(y._replace(name=graph.node("Add", y.name, added.name)), model.output)
    graph.path = path
    for kind, add in LAYERS.items():
        if isinstance(model, kind):
            try:
                return add(graph, model, x)
            except ValueError as error:
                raise ValueError(f"{op}: {place_of(path, model)} {error}") from None
    known = ", ".join(kind.__name__ for kind in [*LAYERS, Residual, Sequential])
    raise TypeError(f"{op}: {place_of(path, model)} has no equal in ONNX; known are {known}")


def _dense(graph: Graph, model: DenseChain, x: Value) -> Value:
    path = graph.path
    for i, (w, b, activation) in enumerate(zip(model.weights, model.biases, model._activations, strict=True)):
        if not isinstance(model, Dense):
            graph.path = summary.join(path, str(i))
        # of sequences too, which Gemm does not take
        x = x._replace(name=graph.node("MatMul", x.name, graph.constant("w", w)))
        if b is not None:
            x = x._replace(name=graph.node("Add", x.name, graph.constant("b", b)))
        x = graph.activation(x, activation)
    return x


def _conv(graph: Graph, model: Conv2d, x: Value) -> Value:
    inputs = [graph.constant("w", model.w.transpose(3, 2, 0, 1))]
    if model.b is not None:
        inputs.append(graph.constant("b", model.b))
    windows = _windows(model, model._reach, model.size, half=False) | {"dilations": model.dilation}
    if "auto_pad" in windows and model.dilation != (1, 1):
        raise ValueError('has padding "same" with a stride and a dilation, which runtimes of ONNX have not')
    y = _images(graph, "Conv", x, *inputs, group=model.groups, **windows)
    return graph.activation(y, model.output)


def _batch_norm(graph: Graph, model: BatchNorm, x: Value) -> Value:
    names = "gamma", "beta", "running_mean", "running_var"
    inputs = [graph.constant(name, getattr(model, name)) for name in names]
    if x.layout == SEQUENCES:
        # channels are the second axis there
        steps = graph.node("Transpose", x.name, perm=[0, 2, 1])
        y = graph.node("BatchNormalization", steps, *inputs, epsilon=model.eps)
        return graph.activation(x._replace(name=graph.node("Transpose", y, perm=[0, 2, 1])), model.output)
    if x.layout == ROWS:
        x = x._replace(name=graph.node("BatchNormalization", x.name, *inputs, epsilon=model.eps))
    else:
        x = _images(graph, "BatchNormalization", x, *inputs, epsilon=model.eps)
    return graph.activation(x, model.output)


def _layer_norm(graph: Graph, model: LayerNorm, x: Value) -> Value:
    inputs = [graph.constant(name, getattr(model, name)) for name in ("gamma", "beta")]
    # channels are the last axis
    x = graph.in_layout(x, IMAGES if x.layout == CHANNELS_FIRST else x.layout)
    y = graph.node("LayerNormalization", x.name, *inputs, epsilon=model.eps)
    return graph.activation(x._replace(name=y), model.output)


def _recurrent(graph: Graph, model: LSTM | GRU, x: Value) -> Value:
    if lacks := missing_options(model, "ONNX"):
        raise ValueError(f"has {lacks[0]}, which ONNX's LSTM has not")
    direction = "bidirectional" if model.bidirectional else "reverse" if model.reverse else "forward"
    options: dict[str, Any] = {"hidden_size": model.hidden_size, "direction": direction}
    if isinstance(model, GRU):
        options["linear_before_reset"] = int(model.reset_after)
    path, directions, cell = graph.path, model.directions, cell_of(type(model))
    h = graph.node("Transpose", x.name, perm=[1, 0, 2])  # (T, N, C)
    for layer in range(model.num_layers):
        graph.path = summary.join(path, str(layer))
        weights = model._weights[layer * directions : (layer + 1) * directions]
        arrays = zip(("W", "R", "B", "P"), node_weights(weights), strict=True)
        inputs = [graph.constant(name, array) for name, array in arrays if array is not None]
        # between B and P: lengths and initial states
        inputs[3:3] = ["", "", ""] if len(inputs) == 4 else []
        last = layer == model.num_layers - 1 and model.pool == "last"
        # Y (T, D, N, H), or of a last layer Y_h (D, N, H); the 0 in a shape keeps the size
        y = graph.node(cell, h, *inputs, outputs=2 if last else 1, **options)
        perm, shape = ([1, 0, 2], [0, model.n_out]) if last else ([0, 2, 1, 3], [0, 0, model.n_out])
        h = graph.node("Transpose", y, perm=perm)
        h = graph.node("Reshape", h, graph.constant("shape", shape, np.int64))
    graph.path = path
    if model.pool == "last":
        return Value(h, ROWS)
    if model.pool == "mean":
        return Value(graph.node("ReduceMean", h, axes=[0], keepdims=0), ROWS)
    return Value(graph.node("Transpose", h, perm=[1, 0, 2]), SEQUENCES)


def _max_pool(graph: Graph, model: MaxPool2d, x: Value) -> Value:
    return _images(graph, "MaxPool", x, **_pool_windows(model))


def _avg_pool(graph: Graph, model: AvgPool2d, x: Value) -> Value:
    windows, counts_pad = _pool_windows(model), model.include_pad
    if "ceil_mode" in windows and counts_pad:
        # before operator set 19 it is not said what of a window that ends past the padding counts
        if any(windows["pads"]):
            raise ValueError("has ceil_mode with include_pad and a padding, of which runtimes of ONNX have other means")
        counts_pad = False
    return _images(graph, "AveragePool", x, count_include_pad=int(counts_pad), **windows)


def _pool_windows(model: MaxPool2d) -> dict[str, Any]:
    windows = _windows(model, model.size, model.size, half=True)
    # with "same" no window ends past the padding
    return windows | ({"ceil_mode": 1} if model.ceil_mode and model.padding != "same" else {})


def _global_avg_pool(graph: Graph, model: GlobalAvgPool2d, x: Value) -> Value:
    return Value(graph.node("Flatten", _images(graph, "GlobalAveragePool", x).name), ROWS)


def _flatten(graph: Graph, model: Flatten, x: Value) -> Value:
    return Value(graph.node("Flatten", graph.in_layout(x, IMAGES).name), ROWS)


def _images(graph: Graph, kind: str, x: Value, *inputs: str, **attributes: Any) -> Value:
    """A node of images, which are channels first."""
    x = graph.in_layout(x, CHANNELS_FIRST)
    return x._replace(name=graph.node(kind, x.name, *inputs, **attributes))


def _windows(model: Conv2d | MaxPool2d, reach: tuple[int, int], size: tuple[int, int], *, half: bool) -> dict[str, Any]:
    """The attributes of a node's windows. Where "same" depends on the image, it is ONNX's SAME_UPPER."""
    windows: dict[str, Any] = {"kernel_shape": size, "strides": model.stride}
    if model.padding != "same":
        pads, _ = geometry.windows(type(model).__name__, "size", reach, reach, model.stride, model.padding, half=half)
        return windows | {"pads": pads}
    axes = list(zip(reach, model.stride, strict=True))
    # a stride of 1 has k - 1 zeros, and windows of 1 or 2 pixels begin at the first; zeros that no window reaches do not count
    if all(stride == 1 or k <= 2 for k, stride in axes):
        before = [(k - 1) // 2 for k, _ in axes]
        return windows | {"pads": (*before, *(k - 1 - n for (k, _), n in zip(axes, before, strict=True)))}
    if any(k < stride for k, stride in axes):
        # where the last window ends before the image, SAME_UPPER is a padding below 0
        raise ValueError('has padding "same" with a stride above its size, which runtimes of ONNX have not')
    return windows | {"auto_pad": "SAME_UPPER"}


LAYERS: dict[type[Model], Callable[[Graph, Any, Value], Value]] = {
    AvgPool2d: _avg_pool,
    MaxPool2d: _max_pool,
    GlobalAvgPool2d: _global_avg_pool,
    Flatten: _flatten,
    DenseChain: _dense,
    Conv2d: _conv,
    BatchNorm: _batch_norm,
    LayerNorm: _layer_norm,
    LSTM: _recurrent,
    GRU: _recurrent,
    Dropout: lambda graph, model, x: x,
}
