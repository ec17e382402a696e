"""export_onnx: files that ONNX's checker takes, and whose outputs in ONNX Runtime are those of predict.

In float64 the runtime has some operators alone; ONNX's reference evaluator runs the others, if slowly.
"""

import sys
from collections import Counter

import numpy as np
import pytest
from error_messages import refuses

import fastgrad as fg
from fastgrad.kernels.types import ACTIVATIONS
from fastgrad.nn import (
    GRU,
    LSTM,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    DenseChain,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    LayerNorm,
    MaxPool2d,
    Residual,
    ResNet,
    Sequential,
)

# two shapes of each: every axis but the channels' is of any size
ROWS, SEQUENCES, IMAGES = ((5, 4), (1, 4)), ((3, 6, 4), (1, 1, 4)), ((2, 9, 12, 4), (1, 16, 11, 4))
# a stride of 2 to 5 pixels leaves every rest
SAME_IMAGES = tuple((1, size, size + 1, 4) for size in range(4, 16))
NETS = {
    "chain": (lambda d: DenseChain([4, 8, 7, 3], ["relu", "tanh", "softmax"], dtype=d), ROWS),
    "chain without biases": (lambda d: DenseChain([4, 8, 3], bias=False, dtype=d), ROWS),
    "batch norm of rows": (lambda d: Sequential(BatchNorm(4, "relu", dtype=d), Dropout(), Dense(4, 2, dtype=d)), ROWS),
    "layer norm of rows": (lambda d: Sequential(LayerNorm(4, "relu", dtype=d), Dense(4, 2, dtype=d)), ROWS),
    "layer norm in a residual": (
        lambda d: Residual(Sequential(Dense(4, 4, dtype=d), LayerNorm(4, eps=1e-3, dtype=d)), activation="tanh"),
        ROWS,
    ),
    "sequential in another": (
        lambda d: Sequential(Sequential(Dense(4, 6, "silu", dtype=d)), Sequential(Dense(6, 2, dtype=d))),
        ROWS,
    ),
    "residual of rows": (
        lambda d: Residual(Sequential(Dense(4, 6, "relu", dtype=d), Dense(6, 4, dtype=d)), activation="tanh"),
        ROWS,
    ),
}
SEQUENCE_NETS = {
    "lstm": (lambda d: LSTM(4, 5, dtype=d), SEQUENCES),
    "peephole": (lambda d: LSTM(4, 5, peephole=True, dtype=d), SEQUENCES),
    "reverse": (lambda d: LSTM(4, 5, reverse=True, dtype=d), SEQUENCES),
    "last": (lambda d: LSTM(4, 5, pool="last", dtype=d), SEQUENCES),
    "layers and directions": (lambda d: LSTM(4, 5, 2, True, dropout=0.5, dtype=d), SEQUENCES),
    "last of directions": (lambda d: LSTM(4, 5, 2, True, pool="last", dtype=d), SEQUENCES),
    "last of reverse": (lambda d: LSTM(4, 5, 2, reverse=True, pool="last", dtype=d), SEQUENCES),
    "mean": (lambda d: LSTM(4, 5, bidirectional=True, pool="mean", dtype=d), SEQUENCES),
    "gru": (lambda d: GRU(4, 5, dtype=d), SEQUENCES),
    "gru of the paper": (lambda d: GRU(4, 5, reset_after=False, dtype=d), SEQUENCES),
    "gru in reverse": (lambda d: GRU(4, 5, reverse=True, dtype=d), SEQUENCES),
    "last of a gru": (lambda d: GRU(4, 5, pool="last", dtype=d), SEQUENCES),
    "layers and directions of a gru": (lambda d: GRU(4, 5, 2, True, dropout=0.5, dtype=d), SEQUENCES),
    "last of a gru's directions": (
        lambda d: Sequential(GRU(4, 5, 2, True, reset_after=False, pool="last", dtype=d), Dense(10, 3, dtype=d)),
        SEQUENCES,
    ),
    "last of a gru in reverse": (lambda d: GRU(4, 5, 2, reverse=True, pool="last", dtype=d), SEQUENCES),
    "mean of a gru": (lambda d: GRU(4, 5, bidirectional=True, pool="mean", dtype=d), SEQUENCES),
    "layer norm of steps": (
        lambda d: Sequential(LSTM(4, 5, dtype=d), LayerNorm(5, dtype=d), Dense(5, 3, dtype=d)),
        SEQUENCES,
    ),
    "layers after steps": (
        lambda d: Sequential(LSTM(4, 5, dtype=d), BatchNorm(5, "elu", dtype=d), Dense(5, 3, "softmax", dtype=d)),
        SEQUENCES,
    ),
    "dense before and after": (
        lambda d: Sequential(
            Dense(4, 3, "relu", dtype=d), LSTM(3, 5, pool="last", dtype=d), Dense(5, 2, "sigmoid", dtype=d)
        ),
        SEQUENCES,
    ),
}
IMAGE_NETS = {
    "conv": (lambda d: Conv2d(4, 6, (3, 2), padding=(2, 1), activation="gelu", dtype=d), IMAGES),
    "same": (lambda d: Conv2d(4, 6, (3, 2), padding="same", dilation=2, dtype=d), IMAGES),
    "same and stride": (lambda d: Conv2d(4, 6, 3, padding="same", stride=(2, 3), dtype=d), IMAGES),
    "same of one pixel": (lambda d: Conv2d(4, 6, 1, padding="same", stride=(4, 5), dtype=d), SAME_IMAGES),
    "same of two pixels": (lambda d: Conv2d(4, 6, (2, 1), padding="same", stride=(5, 1), dtype=d), SAME_IMAGES),
    "sides": (lambda d: Conv2d(4, 6, 3, padding=((2, 0), (0, 1)), stride=2, dtype=d), IMAGES),
    "groups": (lambda d: Conv2d(4, 6, 3, groups=2, bias=False, activation="softmax", dtype=d), IMAGES),
    "batch norm": (lambda d: Sequential(Conv2d(4, 3, 1, dtype=d), BatchNorm(3, "leaky_relu", dtype=d)), IMAGES),
    "batch norm first": (lambda d: Sequential(BatchNorm(4, dtype=d), Conv2d(4, 3, 3, dtype=d)), IMAGES),
    "layer norm": (
        lambda d: Sequential(Conv2d(4, 3, 1, dtype=d), LayerNorm(3, "leaky_relu", dtype=d), Conv2d(3, 2, 3, dtype=d)),
        IMAGES,
    ),
    "residual": (lambda d: Residual(Conv2d(4, 4, 3, padding=1, dtype=d), activation="relu"), IMAGES),
    "residual of a pool": (lambda d: Residual(MaxPool2d(3, stride=1, padding=1), Conv2d(4, 4, 1, dtype=d)), IMAGES),
    "resnet": (lambda d: ResNet(4, 3, [1, 1], 4, dtype=d), ((2, 32, 32, 4), (1, 40, 32, 4))),
    "resnet of version 2": (lambda d: ResNet(4, 3, [1, 2], 4, stem="3x3", version=2, dtype=d), IMAGES),
    "flatten": (lambda d: Sequential(Conv2d(4, 3, 3, dtype=d), Flatten(), Dense(210, 2, dtype=d)), IMAGES[:1]),
}
POOLS = {
    "max": (lambda d: MaxPool2d(2), IMAGES),
    "max with padding": (lambda d: MaxPool2d((3, 2), stride=2, padding=1), IMAGES),
    "max of same": (lambda d: MaxPool2d(3, stride=2, padding="same"), IMAGES),
    "max of same of one pixel": (lambda d: MaxPool2d(1, stride=2, padding="same", ceil_mode=True), SAME_IMAGES),
    "max of same of two pixels": (lambda d: MaxPool2d(2, stride=(3, 2), padding="same", ceil_mode=True), SAME_IMAGES),
    "mean of same of two pixels": (lambda d: AvgPool2d(2, stride=3, padding="same", ceil_mode=True), SAME_IMAGES),
    "mean of same of two pixels without zeros": (
        lambda d: AvgPool2d(2, stride=(3, 4), padding="same", include_pad=False),
        SAME_IMAGES,
    ),
    "mean": (lambda d: AvgPool2d((2, 3), stride=1), IMAGES),
    "mean with padding": (lambda d: AvgPool2d(3, stride=2, padding=1), IMAGES),
    "mean without padding's zeros": (lambda d: AvgPool2d(3, stride=2, padding=1, include_pad=False), IMAGES),
    "mean of same": (lambda d: AvgPool2d(3, stride=2, padding="same"), IMAGES),
    "mean of same without zeros": (lambda d: AvgPool2d(2, stride=1, padding="same", include_pad=False), IMAGES),
    "max of sides": (lambda d: MaxPool2d(3, stride=2, padding=((1, 0), (0, 1))), IMAGES),
    "max to the end": (lambda d: MaxPool2d((3, 2), stride=3, padding=1, ceil_mode=True), IMAGES),
    "mean to the end": (lambda d: AvgPool2d((3, 2), stride=(4, 3), ceil_mode=True), IMAGES),
    "mean to the end without zeros": (
        lambda d: AvgPool2d(3, stride=2, padding=1, ceil_mode=True, include_pad=False),
        IMAGES,
    ),
    "global": (lambda d: GlobalAvgPool2d(), IMAGES),
    "rows": (lambda d: Flatten(), IMAGES),
    "dropout": (lambda d: Dropout(), ROWS),
}
# in float64 the runtime has not these operators
WITHOUT_FLOAT64 = {"elu", "selu", "gelu", "softplus"}


@pytest.fixture(scope="module")
def onnx():
    return pytest.importorskip("onnx")


def exported(onnx, model, path, rng):
    """The file's model, checked, after all arrays got values of their own."""
    for name, array in [*model.parameters().items(), *model.statistics().items()]:
        array[...] = rng.uniform(0.5, 2, array.shape) if "w" not in name.rpartition(".")[2] else array
    fg.export_onnx(model, path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def check_outputs(model, shapes, run, rng):
    for shape in shapes:
        x = rng.standard_normal(shape).astype(model.dtype)
        y, expected = run(x), model.predict(x)
        assert y.shape == expected.shape
        # numbers of an operator, slopes and eps, are float32 in a file
        tolerance = 1e-5 if model.dtype == np.float32 else 1e-7
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance * max(1, np.abs(expected).max()))


def check_in_runtime(onnx, model, shapes, path, rng):
    runtime = pytest.importorskip("onnxruntime")
    exported(onnx, model, path, rng)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    check_outputs(model, shapes, lambda x: session.run(["y"], {"x": x})[0], rng)


@pytest.mark.parametrize("name", [*NETS, *SEQUENCE_NETS, *IMAGE_NETS, *POOLS])
def test_nets_in_onnx_runtime(name, onnx, tmp_path, rng):
    make, shapes = {**NETS, **SEQUENCE_NETS, **IMAGE_NETS, **POOLS}[name]
    check_in_runtime(onnx, make("float32"), shapes, tmp_path / "model.onnx", rng)


@pytest.mark.parametrize("name", NETS)
def test_nets_of_float64_in_onnx_runtime(name, onnx, tmp_path, rng):
    make, shapes = NETS[name]
    check_in_runtime(onnx, make("float64"), shapes, tmp_path / "model.onnx", rng)


PARAMETERS = ("leaky_relu", 0.3), ("elu", 0.5), ("clipped_relu", 2.0)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *PARAMETERS])
def test_activations_in_onnx_runtime(activation, onnx, tmp_path, rng):
    check_in_runtime(onnx, Dense(4, 7, activation), ROWS, tmp_path / "model.onnx", rng)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in WITHOUT_FLOAT64])
def test_activations_of_float64_in_onnx_runtime(activation, onnx, tmp_path, rng):
    check_in_runtime(onnx, Dense(4, 7, activation, dtype="float64"), ROWS, tmp_path / "model.onnx", rng)


# what ONNX's reference evaluator has: recurrent layers of one direction, and no padding "same"
EVALUATED = [*NETS, "lstm", "peephole", "last", "gru", "gru of the paper", "last of a gru"]
EVALUATED += ["conv", "groups", "batch norm", "residual", "flatten"]


@pytest.mark.parametrize("name", EVALUATED)
def test_nets_in_the_reference_evaluator(dtype, name, onnx, tmp_path, rng):
    from onnx.reference import ReferenceEvaluator

    make, shapes = {**NETS, **SEQUENCE_NETS, **IMAGE_NETS}[name]
    model = make(dtype)
    evaluator = ReferenceEvaluator(exported(onnx, model, tmp_path / "model.onnx", rng))
    check_outputs(model, shapes, lambda x: evaluator.run(["y"], {"x": x})[0], rng)


@pytest.mark.parametrize("name", sorted(WITHOUT_FLOAT64))
def test_activations_of_float64_in_the_reference_evaluator(name, onnx, tmp_path, rng):
    from onnx.reference import ReferenceEvaluator

    model = Dense(4, 7, name, dtype="float64")
    evaluator = ReferenceEvaluator(exported(onnx, model, tmp_path / "model.onnx", rng))
    check_outputs(model, ROWS, lambda x: evaluator.run(["y"], {"x": x})[0], rng)


def test_the_file_says_what_it_is(onnx, tmp_path, rng):
    model = Sequential(Conv2d(3, 4, 3, activation="relu"), GlobalAvgPool2d(), DenseChain([4, 5, 2], output="softmax"))
    proto = exported(onnx, model, tmp_path / "model.onnx", rng)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 17)]
    assert (proto.producer_name, proto.ir_version, proto.graph.name) == ("fastgrad", 8, "Sequential")
    axes = [
        (value.name, [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim])
        for value in (*proto.graph.input, *proto.graph.output)
    ]
    assert axes == [("x", ["N", "H", "W", 3]), ("y", ["N", 2])]
    names = [constant.name for constant in proto.graph.initializer]
    assert names == ["0.w", "0.b", "2.0.w", "2.0.b", "2.1.w", "2.1.b"]
    sequences = exported(onnx, LSTM(3, 4), tmp_path / "model.onnx", rng)
    (x,) = sequences.graph.input
    assert [axis.dim_param or axis.dim_value for axis in x.type.tensor_type.shape.dim] == ["N", "T", 3]


def test_neighbouring_layers_of_images_share_their_layout(onnx, tmp_path, rng):
    """There is one transpose at the inputs and one at the outputs."""
    model = Sequential(Conv2d(3, 4, 3), BatchNorm(4, "silu"), MaxPool2d(2), Residual(Conv2d(4, 4, 1)))
    proto = exported(onnx, model, tmp_path / "model.onnx", rng)
    assert Counter(node.op_type for node in proto.graph.node)["Transpose"] == 2


def test_the_model_is_as_before(onnx, tmp_path):
    model = ResNet(3, 2, [1], 4, stem="3x3", seed=0)
    params, statistics = model.params.copy(), [a.copy() for a in model.statistics().values()]
    fg.export_onnx(model, tmp_path / "model.onnx")
    np.testing.assert_array_equal(model.params, params)
    for a, b in zip(model.statistics().values(), statistics, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_onnx_has_not_is_an_error_that_names_the_layer(onnx, tmp_path):
    path = tmp_path / "model.onnx"
    message = 'export_onnx: layer "1" (LSTM) has proj_size, which ONNX\'s LSTM has not'
    refuses(ValueError, message, fg.export_onnx, Sequential(Dense(3, 4), LSTM(4, 5, proj_size=2)), path)
    conv = Conv2d(3, 4, 3, padding="same", stride=2, dilation=2)
    message = 'export_onnx: layer "body.1" (Conv2d) has padding "same" with a stride and a dilation, which runtimes of ONNX have not'
    refuses(ValueError, message, fg.export_onnx, Residual(Sequential(Conv2d(3, 3, 1), conv), Conv2d(3, 4, 1)), path)

    message = 'export_onnx: the model (MaxPool2d) has padding "same" with a stride above its size, which runtimes of ONNX have not'
    refuses(ValueError, message, fg.export_onnx, MaxPool2d(3, stride=(2, 4), padding="same"), path)

    message = "export_onnx: the model (AvgPool2d) has ceil_mode with include_pad and a padding, of which runtimes of ONNX have other means"
    refuses(ValueError, message, fg.export_onnx, AvgPool2d(3, padding=1, ceil_mode=True), path)

    class Other(fg.nn.Model):
        n_in = n_out = 3

        def __init__(self):
            super().__init__({}, "float32", None)
            self._drawn = 0

        def _restart(self, rng):
            """There is nothing to draw."""

    known = "known are AvgPool2d, MaxPool2d, GlobalAvgPool2d, Flatten, DenseChain, Conv2d, BatchNorm, LayerNorm, LSTM, "
    known += "GRU, Dropout, Residual, Sequential"
    message = f'export_onnx: layer "0" (Other) has no equal in ONNX; {known}'
    refuses(TypeError, message, fg.export_onnx, Sequential(Other()), path)
    refuses(TypeError, "export_onnx: model must be a model of fastgrad.nn, got int", fg.export_onnx, 3, path)
    assert not path.exists()


def test_without_onnx_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = "export_onnx: the package onnx is needed; pip install fastgrad[onnx] installs it"
    refuses(ImportError, message, fg.export_onnx, Dense(3, 4), tmp_path / "model.onnx")
