"""The functional API: what it returns, what it refuses and in which words, and which backend answers."""

import numpy as np
import pytest
from arrays import LAYOUTS, bits, laid_out, numerical_gradient
from dense_inputs import DENSE, arrays
from error_messages import refuses, refuses_other_types
from tolerances import assert_close

import fastgrad as fg
from fastgrad.kernels.types import ACTIVATIONS

pytestmark = pytest.mark.cuda

LOSSES = {
    "cross_entropy": ("logits", "labels"),
    "binary_cross_entropy": ("logits", "targets"),
    "mse": ("y", "target"),
    "poisson_nll": ("log_rates", "counts"),
}


def call_loss(loss, first, second, **options):
    return getattr(fg, loss)(first, second, **options)


@pytest.mark.emulated(1)
@pytest.mark.parametrize("given", [(), ("b",), ("residual",), ("b", "residual")])
def test_dense_gradients_come_in_the_order_of_the_given_inputs(in_force, given):
    inputs = {name: a for name, a in arrays(np.float64, **DENSE).items() if name in ("x", "w", *given)}
    y, backward = fg.dense(**inputs, activation="tanh")
    expected = inputs["x"] @ inputs["w"] + inputs.get("b", 0) + inputs.get("residual", 0)
    assert_close("dense_chain", y, np.tanh(expected), size=4)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    gradients = backward(dy)
    assert len(gradients) == len(inputs)
    for gradient, array in zip(gradients, inputs.values(), strict=True):
        numerical = numerical_gradient(lambda: float((dy * fg.dense(**inputs, activation="tanh")[0]).sum()), array)
        assert_close("numerical", gradient, numerical, size=10)


def test_dense_chain_is_dense_after_dense(in_force, dtype):
    a = arrays(dtype, x=(5, 4), w0=(4, 6), b0=(6,), w1=(6, 3), dy=(5, 3))
    h, backward_0 = fg.dense(a["x"], a["w0"], a["b0"], activation=("leaky_relu", 0.2))
    y, backward_1 = fg.dense(h, a["w1"], activation="softmax")
    fs = [("leaky_relu", 0.2), "softmax"]
    chained, backward = fg.dense_chain(a["x"], [a["w0"], a["w1"]], [a["b0"], None], fs)
    assert_close("dense_chain", chained, y, size=1)
    dh, dw1 = backward_1(a["dy"])
    dx, dw0, db0 = backward_0(dh)
    chained_dx, dweights, dbiases = backward(a["dy"])
    assert dbiases[1] is None
    for actual, expected in zip([chained_dx, *dweights, dbiases[0]], [dx, dw0, dw1, db0], strict=True):
        assert actual.dtype == dtype
        assert_close("dense_chain", actual, expected, size=10)


def test_dense_chain_takes_one_activation_for_all_and_no_biases(in_force, dtype):
    a = arrays(dtype, x=(5, 4), w0=(4, 6), w1=(6, 3))
    y, backward = fg.dense_chain(a["x"], [a["w0"], a["w1"]], None, "relu")
    expected = np.maximum(np.maximum(a["x"] @ a["w0"], 0) @ a["w1"], 0)
    assert_close("dense_chain", y, expected, size=10)
    assert backward(np.ones_like(y))[2] == [None, None]


def test_backward_may_be_called_again_and_its_results_are_independent(in_force, dtype):
    inputs = arrays(dtype, **DENSE)
    y, backward = fg.dense(**inputs, activation="silu")
    first = backward(np.ones_like(y))
    kept = [g.copy() for g in first]
    doubled = backward(np.full_like(y, 2))
    for g, before, twice in zip(first, kept, doubled, strict=True):
        assert bits(g) == bits(before)
        assert not np.shares_memory(g, twice)
        assert_close("dense_chain", twice, 2 * before, size=10)


def test_outputs_share_no_memory_with_inputs(in_force, dtype):
    inputs = arrays(dtype, **DENSE)
    y, backward = fg.dense(**inputs)
    dy = np.ones_like(y)
    for output in (y, *backward(dy)):
        assert not any(np.shares_memory(output, a) for a in (*inputs.values(), dy))
    loss_inputs = arrays(dtype, logits=(5, 3), targets=(5, 3))
    for loss in LOSSES:
        losses, gradient = call_loss(loss, *loss_inputs.values(), reduction="none")
        assert not any(np.shares_memory(out, a) for out in (losses, gradient) for a in loss_inputs.values())


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*DENSE, "dy"])
def test_layouts_of_dense_inputs_do_not_matter_and_are_not_written(in_force, dtype, name, layout):
    inputs = arrays(dtype, **DENSE)
    dy = arrays(dtype, dy=(5, 3))["dy"]
    y, backward = fg.dense(**inputs, activation="gelu")
    expected = [y, *backward(dy)]
    changed = laid_out({**inputs, "dy": dy}[name], layout)
    before = bits(changed)
    y, backward = fg.dense(**{**inputs, **({} if name == "dy" else {name: changed})}, activation="gelu")
    for actual, wanted in zip([y, *backward(changed if name == "dy" else dy)], expected, strict=True):
        assert_close("dense_chain", actual, wanted, size=10)
    assert bits(changed) == before


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_layouts_of_loss_inputs_do_not_matter_and_are_not_written(in_force, dtype, loss, layout):
    inputs = list(arrays(dtype, logits=(5, 3), targets=(5, 3)).values())
    expected = call_loss(loss, *inputs)
    changed = [laid_out(a, layout) for a in inputs]
    before = [bits(a) for a in changed]
    value, gradient = call_loss(loss, *changed)
    assert value == pytest.approx(expected[0], rel=1e-5)
    assert_close("loss", gradient, expected[1], size=1)
    assert [bits(a) for a in changed] == before


def test_broadcast_and_overlapping_inputs(in_force, dtype):
    row = arrays(dtype, row=(1, 4))["row"]
    x = np.broadcast_to(row, (5, 4))
    y, backward = fg.dense(x, x[:4].T[:, :3], activation="relu")
    assert_close("dense_chain", y, np.maximum(np.array(x) @ np.array(x[:4].T[:, :3]), 0), size=10)
    dx, dw = backward(np.broadcast_to(row[:, :3], (5, 3)))
    assert dx.shape == (5, 4)
    assert dw.shape == (4, 3)
    memory = arrays(dtype, memory=(24,))["memory"]
    y, _ = fg.dense(memory[:20].reshape(5, 4), memory[4:16].reshape(4, 3), memory[3:6])
    assert_close("dense_chain", y, memory[:20].reshape(5, 4) @ memory[4:16].reshape(4, 3) + memory[3:6], size=10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["x", "w", "b"])
def test_nan_and_infinity_go_through(in_force, dtype, name, bad):
    inputs = arrays(dtype, **DENSE)
    inputs[name].flat[0] = bad
    y, backward = fg.dense(**inputs)
    assert not np.isfinite(y[0, 0])
    assert np.isfinite(y[1, 1])
    loss, dy = fg.mse(y, np.zeros_like(y))
    assert not np.isfinite(loss)
    assert not np.isfinite(backward(dy)[1]).all()


@pytest.mark.parametrize("shape", [(0, 4, 3), (5, 0, 3), (5, 4, 0)])
def test_empty_batch_and_zero_width_give_the_empty_sum(in_force, dtype, shape):
    n, c, k = shape
    inputs = arrays(dtype, x=(n, c), w=(c, k), b=(k,))
    y, backward = fg.dense(**inputs, activation="relu")
    np.testing.assert_array_equal(y, np.broadcast_to(np.maximum(inputs["b"], 0), (n, k)) if not c else y)
    assert y.shape == (n, k)
    dx, dw, db = backward(np.ones_like(y))
    assert (dx.shape, dw.shape, db.shape) == ((n, c), (c, k), (k,))
    if not n:
        assert not dw.any()
        assert not db.any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_an_empty_batch_is_zero(in_force, dtype, loss, reduction):
    empty = np.empty((0, 3), dtype)
    labels = np.empty(0, np.int64) if loss == "cross_entropy" else empty
    value, gradient = call_loss(loss, empty, labels, reduction=reduction)
    assert value == 0.0
    assert isinstance(value, float)
    assert gradient.shape == (0, 3)


@pytest.mark.parametrize("loss", LOSSES)
def test_reductions(in_force, dtype, loss):
    first, second = arrays(dtype, logits=(5, 3), targets=(5, 3)).values()
    losses, gradient = call_loss(loss, first, second, reduction="none")
    assert losses.dtype == dtype
    assert losses.shape == ((5,) if loss == "cross_entropy" else (5, 3))
    total, total_gradient = call_loss(loss, first, second, reduction="sum")
    mean, mean_gradient = call_loss(loss, first, second)
    assert isinstance(mean, float)
    assert total == pytest.approx(float(losses.sum()), rel=1e-5)
    assert mean == pytest.approx(total / losses.size, rel=1e-6)
    assert bits(gradient) == bits(total_gradient)
    assert_close("loss", mean_gradient * losses.size, gradient, size=1)


def test_elementwise_losses_take_any_shape(in_force, dtype):
    first, second = arrays(dtype, logits=(2, 5, 3), targets=(2, 5, 3)).values()
    for loss in ("binary_cross_entropy", "mse", "poisson_nll"):
        losses, gradient = call_loss(loss, first, second, reduction="none")
        flat, flat_gradient = call_loss(loss, first.ravel(), second.ravel(), reduction="none")
        assert losses.shape == gradient.shape == (2, 5, 3)
        assert bits(losses) == bits(flat)
        assert bits(gradient) == bits(flat_gradient)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64, ">i4"])
def test_labels_of_any_integer_type(in_force, dtype, kind):
    logits = arrays(dtype, logits=(5, 3))["logits"]
    labels = np.array([0, 1, 2, 1, 0])
    expected = fg.cross_entropy(logits, labels)
    loss, gradient = fg.cross_entropy(logits, labels.astype(kind))
    assert loss == expected[0]
    assert bits(gradient) == bits(expected[1])
    one_hot = fg.cross_entropy(logits, np.eye(3, dtype=dtype)[labels])
    assert one_hot[0] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_huge_logits_are_stable(in_force, dtype, loss):
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    targets = np.eye(2, dtype=dtype)
    right, _ = call_loss(loss, logits, targets)
    wrong, gradient = call_loss(loss, logits, targets[::-1])
    assert right == 0.0
    assert wrong == pytest.approx(2e4 if loss == "cross_entropy" else 1e4)
    assert np.isfinite(gradient).all()


def test_wrong_shapes_are_named():
    x, w, b, residual = arrays(np.float32, **DENSE).values()
    dense, chain = fg.dense, fg.dense_chain
    refuses(ValueError, "dense: x must be (N, C), got (4,)", dense, x[0], w)
    refuses(ValueError, "dense: w must be (C_in, C_out) = (4, _), got (3, 3)", dense, x, w[:3])
    refuses(ValueError, "dense: w must be (C_in, C_out) = (4, _), got (4,)", dense, x, w[:, 0])
    refuses(ValueError, "dense: b must be (C_out,) = (3,), got (2,)", dense, x, w, b[:2])
    refuses(ValueError, "dense: b must be (C_out,) = (3,), got (1, 3)", dense, x, w, b[None])
    message = "dense: residual must be (N, C_out) = (5, 3), got (4, 3)"
    refuses(ValueError, message, dense, x, w, residual=residual[:4])
    message = "dense_chain: weights[1] must be (C_in, C_out) = (3, _), got (4, 3)"
    refuses(ValueError, message, chain, x, [w, w], None, "relu")
    refuses(ValueError, "dense_chain: weights must have length at least 1, got 0", chain, x, [], None, "relu")
    refuses(ValueError, "dense_chain: biases must have length 1, got 2", chain, x, [w], [b, b], "relu")
    refuses(ValueError, "dense_chain: activations must have length 1, got 2", chain, x, [w], [b], ["relu", "relu"])
    refuses(TypeError, "dense_chain: weights must be a list or tuple, got ndarray", chain, x, w, None, "relu")
    y, backward = dense(x, w)
    refuses(ValueError, "dense: dy must be like the output = (5, 3), got (3, 5)", backward, y.T)
    refuses(TypeError, "dense: backward needs dy, an array (5, 3) like the output, got None", backward, None)
    message = "cross_entropy: labels must be integers (5,) or float32 (5, 3), got integers (4,)"
    refuses(ValueError, message, fg.cross_entropy, y, np.zeros(4, int))
    message = "cross_entropy: labels must be (N,) integers or (N, C) = (5, 3), got (5, 2)"
    refuses(ValueError, message, fg.cross_entropy, y, y[:, :2])
    message = "cross_entropy: logits must have at least one class, got (5, 0)"
    refuses(ValueError, message, fg.cross_entropy, y[:, :0], np.zeros(5, int))
    message = "binary_cross_entropy: targets must be like logits = (5, 3), got (5,)"
    refuses(ValueError, message, fg.binary_cross_entropy, y, y[:, 0])
    refuses(ValueError, "mse: target must be like y = (5, 3), got (1, 3)", fg.mse, y, y[:1])


@pytest.mark.parametrize("name", DENSE)
def test_lists_integers_and_other_dtypes_are_refused(name):
    inputs = arrays(np.float32, **DENSE)
    refuses_other_types(
        "dense", name, inputs[name], lambda value: fg.dense(**{**inputs, name: value}), first=name == "x"
    )
    mixed = {**inputs, "x": inputs["x"].astype(np.float64)}
    refuses(TypeError, "dense: w must be float64, got float32 (one call has one dtype)", fg.dense, **mixed)


def test_bad_upstreams_and_targets_are_refused():
    x, w, _, _ = arrays(np.float32, **DENSE).values()
    y, backward = fg.dense(x, w)
    float64 = y.astype(np.float64)
    refuses(TypeError, "dense: dy must be float32, got float64 (one call has one dtype)", backward, float64)
    refuses(TypeError, "dense: dy must be a NumPy array, got float; np.asarray(value, dtype) makes one", backward, 1.0)
    message = "mse: target must be float32, got float64 (one call has one dtype)"
    refuses(TypeError, message, fg.mse, y, float64)
    message = "cross_entropy: labels must be float32, got float64 (one call has one dtype)"
    refuses(TypeError, message, fg.cross_entropy, y, float64)
    message = "cross_entropy: labels must be integers (N,) or float32 (N, C), got bool (5,)"
    refuses(TypeError, message, fg.cross_entropy, y, np.ones(5, bool))
    message = "cross_entropy: labels must be integers (N,) or float32 (N, C), got float32 (5,)"
    refuses(TypeError, message, fg.cross_entropy, y, np.ones(5, np.float32))
    message = "cross_entropy: labels must be a NumPy array, got list; np.asarray(value, dtype) makes one"
    refuses(TypeError, message, fg.cross_entropy, y, [0, 1, 2, 0, 1])
    message = "binary_cross_entropy: targets must be float32 or float64 in native byte order, got int64"
    refuses(TypeError, message, fg.binary_cross_entropy, y, np.ones((5, 3), np.int64))


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 3, 1, 9, 2], "3 at index 1"), ([0, 1, -1, 0, 0], "-1 at index 2")]
)
def test_the_first_label_out_of_range_is_named(labels, message):
    logits = np.zeros((5, 3), np.float32)
    message = f"cross_entropy: labels must be in 0..2, got {message}"
    refuses(ValueError, message, fg.cross_entropy, logits, np.array(labels))


def test_huge_unsigned_labels_are_out_of_range():
    message = f"cross_entropy: labels must be in 0..2, got {2**64 - 1} at index 0"
    refuses(ValueError, message, fg.cross_entropy, np.zeros((1, 3)), np.array([2**64 - 1], np.uint64))


def test_unknown_options_list_the_known_ones():
    x, w, _, _ = arrays(np.float32, **DENSE).values()
    known = ", ".join(ACTIVATIONS)
    refuses(ValueError, f"dense: activation must be one of {known}; got 'rellu'", fg.dense, x, w, activation="rellu")
    refuses(ValueError, f"dense: activation must be one of {known}; got None", fg.dense, x, w, activation=None)
    message = f"dense_chain: activations[0] must be one of {known}; got 'swish'"
    refuses(ValueError, message, fg.dense_chain, x, [w], None, ["swish"])
    message = "mse: reduction must be one of mean, sum, none; got 'avg'"
    refuses(ValueError, message, fg.mse, x, x, reduction="avg")


@pytest.mark.parametrize(
    ("activation", "kind", "message"),
    [
        (("relu", 1.0), ValueError, "activation 'relu' takes no parameter; leaky_relu, clipped_relu, elu do"),
        (
            ("leaky_relu", -0.1),
            ValueError,
            "the slope of activation 'leaky_relu' must be at least 0 and finite, got -0.1",
        ),
        (("clipped_relu", 0), ValueError, "the cap of activation 'clipped_relu' must be above 0 and finite, got 0"),
        (("elu", np.nan), ValueError, "the alpha of activation 'elu' must be at least 0 and finite, got nan"),
        (("elu", np.inf), ValueError, "the alpha of activation 'elu' must be at least 0 and finite, got inf"),
        (("elu", "1"), TypeError, "the alpha of activation 'elu' must be a number, got str"),
    ],
)
def test_bad_parameters_of_activations(activation, kind, message):
    x, w, _, _ = arrays(np.float32, **DENSE).values()
    refuses(kind, f"dense: {message}", fg.dense, x, w, activation=activation)


def test_subclasses_of_arrays_are_taken_as_arrays(in_force, tmp_path):
    x, w, _, _ = arrays(np.float32, **DENSE).values()
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape)
    y, backward = fg.dense(mapped, w)
    assert type(y) is np.ndarray
    assert bits(y) == bits(fg.dense(x, w)[0])
    assert type(backward(y)[0]) is np.ndarray


IMAGE = np.ones((1, 4, 4, 1), np.float32)
KERNEL = np.ones((2, 2, 1, 1), np.float32)
TOO_LARGE = {
    "conv2d: stride": lambda n: fg.conv2d(IMAGE, KERNEL, stride=n),
    "conv2d: padding": lambda n: fg.conv2d(IMAGE, KERNEL, padding=n),
    "conv2d: dilation": lambda n: fg.conv2d(IMAGE, KERNEL, dilation=n),
    "conv2d: groups": lambda n: fg.conv2d(IMAGE, KERNEL, groups=n),
    "max_pool2d: size": lambda n: fg.max_pool2d(IMAGE, n),
    "max_pool2d: stride": lambda n: fg.max_pool2d(IMAGE, 2, stride=(1, n)),
    "avg_pool2d: padding": lambda n: fg.avg_pool2d(IMAGE, 2, padding=(n, 0)),
    "Conv2d: n_in": lambda n: fg.nn.Conv2d(n, 1, 3),
    "Conv2d: size": lambda n: fg.nn.Conv2d(1, 1, n),
    "Conv2d: stride": lambda n: fg.nn.Conv2d(1, 1, 3, stride=n),
    "MaxPool2d: stride": lambda n: fg.nn.MaxPool2d(2, stride=n),
    "Flatten: n_out": lambda n: fg.nn.Flatten(n),
    "DenseChain: sizes": lambda n: fg.nn.DenseChain([2, n]),
    "BatchNorm: n": lambda n: fg.nn.BatchNorm(n),
    "LayerNorm: n": lambda n: fg.nn.LayerNorm(n),
    "LSTM: hidden_size": lambda n: fg.nn.LSTM(1, n),
    "LSTM: num_layers": lambda n: fg.nn.LSTM(1, 1, num_layers=n),
    "LSTM: proj_size": lambda n: fg.nn.LSTM(1, 2, proj_size=n),
    "normal: shape": lambda n: fg.init.normal((n, 2), 0),
    "Steps: every": lambda n: fg.schedule.Steps(0.1, n),
    "Cosine: steps": lambda n: fg.schedule.Cosine(0.1, n),
    "Trainer: health": lambda n: fg.Trainer(fg.nn.DenseChain([2, 2]), health=n),
    "fit: epochs": lambda n: fg.Trainer(fg.nn.DenseChain([2, 2])).fit(np.ones((1, 2), np.float32), np.zeros(1, int), n),
}


@pytest.mark.parametrize("n", [2**31, 2**63 - 1, 2**63, 10**30])
@pytest.mark.parametrize("name", TOO_LARGE)
def test_an_integer_past_all_sizes_is_refused(name, n):
    """A stride of 2**63 - 1 ran for ever: products of two sizes must fit into int64."""
    op, argument = name.split(": ")
    with pytest.raises(ValueError, match=rf"{op}.*{argument}.*must be an integer of at most 2147483647, got {n}"):
        TOO_LARGE[name](n)


def test_a_stride_past_the_image_makes_one_window(in_force):
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    y, backward = fg.conv2d(x, KERNEL, stride=2**31 - 1)
    np.testing.assert_array_equal(y, [[[[10]]]])
    dx, dw = backward(np.ones_like(y))
    assert dx.sum() == 4
    assert bits(dw) == bits(x[0, :2, :2, :, None])
    y, backward = fg.max_pool2d(x, 2, stride=2**31 - 1)
    assert y.item() == 5
    assert backward(np.ones_like(y)).sum() == 1


def test_a_batch_size_past_all_rows_is_one_batch():
    model = fg.nn.DenseChain([2, 2])
    x = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(model.predict(x, 10**30), model.predict(x))
    fg.Trainer(model).fit(x, np.zeros(3, int), batch_size=10**30)


def test_lengths_that_change_after_they_were_checked_are_not_read_again(cpu, monkeypatch):
    """Another thread may write to them: what is looked at is a copy."""
    from fastgrad.functional.packing import checked_lengths

    lengths = np.array([2, 1])
    found = checked_lengths("lstm", "lengths", lengths, 2, 2)
    assert not np.may_share_memory(found, lengths)
    narrow = lengths.astype(np.int32)
    assert not np.may_share_memory(checked_lengths("lstm", "lengths", narrow, 2, 2), narrow)
