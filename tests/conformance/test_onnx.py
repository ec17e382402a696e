"""ONNX's node cases of the ops that fastgrad has, through the kernels of every backend.

A case is left out, with the reason, where ONNX asks for what the op does not offer. The counts are printed at the end
of the run.
"""

import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from arrays import unwritten
from backends import BACKENDS
from convs import geometry
from summary import ONNX_COUNTS
from tolerances import assert_close

import fastgrad as fg
from fastgrad.kernels import types
from fastgrad.kernels.types import (
    ACTIVATIONS,
    ADAM,
    CLIPPED_RELU,
    ELU,
    LEAKY_RELU,
    SELU,
    SGD,
    Activation,
    Affine,
    Chain,
    ChainSaved,
    Geometry,
    LayerSaved,
    Statistics,
    UpdateRule,
)


class LeftOut(Exception):
    """Why a case is not run."""


def activate(backend, x, activation, axis=-1):
    x = np.moveaxis(x, axis, -1)
    y = unwritten(x.shape, x.dtype)
    backend.activation_forward(x, y, activation)
    return [np.moveaxis(y, -1, axis)]


def by_name(name):
    return lambda backend, attributes, x: activate(backend, x, ACTIVATIONS[name])


def leaky_relu(backend, attributes, x):
    return activate(backend, x, Activation(LEAKY_RELU, attributes.get("alpha", 0.01)))


def elu(backend, attributes, x):
    return activate(backend, x, Activation(ELU, attributes.get("alpha", 1.0)))


def selu(backend, attributes, x):
    if attributes.get("gamma", 1.0507) != pytest.approx(1.0507, abs=1e-4):
        raise LeftOut("selu has the scale of its paper, 1.0507")
    return activate(backend, x, Activation(SELU, attributes.get("alpha", 1.6732632423543772)))


def gelu(backend, attributes, x):
    return activate(backend, x, ACTIVATIONS["gelu_tanh" if attributes.get("approximate") == b"tanh" else "gelu"])


def swish(backend, attributes, x):
    if attributes.get("alpha", 1.0) != 1.0:
        raise LeftOut("silu is swish with alpha 1")
    return activate(backend, x, ACTIVATIONS["silu"])


def softmax(backend, attributes, x):
    return activate(backend, x, ACTIVATIONS["softmax"], attributes.get("axis", -1))


def clip(backend, attributes, x, low=None, high=None):
    """A clipped relu, moved to the lower bound."""
    if low is None or high is None or low.size * high.size == 0:
        raise LeftOut("one bound only")
    if low > high:
        raise LeftOut("a lower bound above the upper one")
    (y,) = activate(backend, x - low, Activation(CLIPPED_RELU, float(high - low)))
    return [y + low]


def identity(backend, attributes, x):
    return activate(backend, x, ACTIVATIONS["identity"])


def gemm(backend, attributes, a, b, c=None):
    """A dense layer without an activation; a matrix C is its residual, alpha and beta scale the operands."""
    a = (a.T if attributes.get("transA") else a) * a.dtype.type(attributes.get("alpha", 1.0))
    b = b.T if attributes.get("transB") else b
    y = unwritten((a.shape[0], b.shape[1]), a.dtype)
    bias = residual = None
    if c is not None:
        c = c * c.dtype.type(attributes.get("beta", 1.0))
        if c.ndim == 2 and c.shape[0] > 1:
            residual = np.broadcast_to(c, y.shape)
        else:
            bias = np.broadcast_to(c.reshape(-1), y.shape[1])
    backend.dense_chain_forward(Chain(a, [b], [bias], [ACTIVATIONS["identity"]], residual), ChainSaved([y], [y]))
    return [y]


def softmax_cross_entropy(backend, attributes, x, y, w=None):
    classes = x.shape[1]
    logits, labels = np.moveaxis(x, 1, -1).reshape(-1, classes), y.reshape(-1).astype(np.int64)

    def losses_of(target, mean=False, weights=None, ignored=types.NO_LABEL):
        losses, loss = unwritten(len(logits), x.dtype), types.Loss(types.CROSS_ENTROPY, 0.0, weights, ignored)
        sums = backend.loss_gradient(logits, target, loss, losses, unwritten(logits.shape, x.dtype), mean=mean)
        return float(sums[0]), losses.reshape(y.shape)

    reduction = attributes.get("reduction", b"mean")
    total, losses = losses_of(labels, reduction == b"mean", w, attributes.get("ignore_index", types.NO_LABEL))
    result = losses if reduction == b"none" else x.dtype.type(total)
    # the second output, where asked for: minus the loss of each class in turn
    log_p = np.stack([-losses_of(np.full(len(logits), c))[1] for c in range(classes)], axis=1)
    return [result, log_p]


def lstm(backend, attributes, x, w, r, b=None, lengths=None, h_0=None, c_0=None, p=None):
    """fg.lstm a direction. ONNX has the gates in the order i, o, f, g (its c), two biases, time first unless layout is 1."""
    known = {"direction", "hidden_size", "layout"}
    if set(attributes) - known:
        raise LeftOut(", ".join(sorted(set(attributes) - known)))
    batch_first = attributes.get("layout", 0)
    direction = attributes.get("direction", b"forward")
    hidden = attributes["hidden_size"]

    def in_order(gates):
        """(directions, 4H, ...) in the order i, f, g, o, one part a direction."""
        i, o, f, g = np.split(gates, 4, axis=1)
        return np.concatenate([i, f, g, o], axis=1)

    if not batch_first:
        x, h_0, c_0 = (a if a is None or not a.size else a.swapaxes(0, 1) for a in (x, h_0, c_0))
    w_ih, w_hh = (in_order(a).swapaxes(1, 2) for a in (w, r))
    results = []
    for d, reverse in enumerate({b"forward": [False], b"reverse": [True]}.get(direction, [False, True])):
        with fg.use_backend(next(name for name, module in BACKENDS.items() if module == backend.__name__)):
            result, _ = fg.lstm(
                x, w_ih[d], w_hh[d],
                None if b is None else sum(in_order(part)[d] for part in np.split(b, 2, axis=1)),
                h_0=None if h_0 is None else h_0[:, d], c_0=None if c_0 is None else c_0[:, d], lengths=lengths,
                # i, o, f to i, f, o
                peephole=None if p is None else p[d].reshape(3, hidden)[[0, 2, 1]], reverse=reverse,
            )  # fmt: skip
        results.append(result)
    # with a direction: y (N, T, D, H), states (N, D, H)
    y, h_n, c_n = (np.stack(each, axis=-2) for each in zip(*results, strict=True))
    return [y, h_n, c_n] if batch_first else [y.transpose(1, 2, 0, 3), h_n.swapaxes(0, 1), c_n.swapaxes(0, 1)]


def gru(backend, attributes, x, w, r, b=None, lengths=None, h_0=None):
    """fg.gru a direction. ONNX has the gates in the order z, r, h (our n), two biases, time first unless layout is 1."""
    known = {"direction", "hidden_size", "layout", "linear_before_reset"}
    if set(attributes) - known:
        raise LeftOut(", ".join(sorted(set(attributes) - known)))
    batch_first, hidden = attributes.get("layout", 0), attributes["hidden_size"]
    reset_after = bool(attributes.get("linear_before_reset", 0))

    def in_order(gates):
        """(directions, 3H, ...) in the order r, z, n."""
        z, reset, n = np.split(gates, 3, axis=1)
        return np.concatenate([reset, z, n], axis=1)

    if not batch_first:
        x, h_0 = (a if a is None or not a.size else a.swapaxes(0, 1) for a in (x, h_0))
    w_ih, w_hh = (in_order(a).swapaxes(1, 2) for a in (w, r))
    bias, b_hn = None, [None, None]
    if b is not None:
        of_x, of_h = (in_order(part) for part in np.split(b, 2, axis=1))
        bias = of_x + of_h
        if reset_after:
            bias[:, 2 * hidden :], b_hn = of_x[:, 2 * hidden :], of_h[:, 2 * hidden :]
    results = []
    directions = {b"forward": [False], b"reverse": [True]}.get(attributes.get("direction", b"forward"), [False, True])
    for d, reverse in enumerate(directions):
        with fg.use_backend(next(name for name, module in BACKENDS.items() if module == backend.__name__)):
            result, _ = fg.gru(
                x, w_ih[d], w_hh[d], None if bias is None else bias[d], b_hn[d], reset_after=reset_after,
                h_0=None if h_0 is None else h_0[:, d], lengths=lengths, reverse=reverse,
            )  # fmt: skip
        results.append(result)
    y, h_n = (np.stack(each, axis=-2) for each in zip(*results, strict=True))
    return [y, h_n] if batch_first else [y.transpose(1, 2, 0, 3), h_n.swapaxes(0, 1)]


def batch_normalization(backend, attributes, x, gamma, beta, mean, var):
    """fg.batch_norm, channels last. ONNX's momentum is the share of the old statistics, and its running variance is biased."""
    training = bool(attributes.get("training_mode", 0))
    mean, var = mean.copy(), var.copy()
    with fg.use_backend(next(name for name, module in BACKENDS.items() if module == backend.__name__)):
        y, _ = fg.batch_norm(
            np.moveaxis(x, 1, -1), gamma, beta, mean, var, training=training, unbiased=False,
            momentum=1 - attributes.get("momentum", 0.9), eps=attributes.get("epsilon", 1e-5),
        )  # fmt: skip
    return [np.moveaxis(y, -1, 1), mean, var]


def layer_normalization(backend, attributes, x, gamma, beta=None):
    """fg.layer_norm over the axes from `axis` on. The case's further outputs are mean and rstd."""
    axis = attributes.get("axis", -1) % x.ndim
    rows = int(np.prod(x.shape[:axis]))
    features = x.size // rows
    beta = np.zeros_like(gamma) if beta is None else beta
    affine, like = Affine(gamma.reshape(features), beta.reshape(features)), x.reshape(rows, features)
    statistics, y = Statistics(np.empty(rows), np.empty(rows)), np.empty_like(like)
    eps, identity = attributes.get("epsilon", 1e-5), ACTIVATIONS["identity"]
    backend.layer_norm_forward(like, affine, eps, None, identity, statistics, LayerSaved(y, y))
    shape = *x.shape[:axis], *[1] * (x.ndim - axis)
    return [y.reshape(x.shape), *(a.astype(x.dtype).reshape(shape) for a in statistics)]


def windows(attributes, image, size):
    """(size, stride, pads, dilation, (H', W')) of a node over an image of two axes, or of one, which is then one row."""
    if len(size) > 2:
        raise LeftOut("three axes in space")
    row = [1] * (2 - len(size))
    size, strides, dilations = (
        (*row, *attributes.get(name, default))
        for name, default in (
            ("kernel_shape", size),
            ("strides", [1, 1][len(row) :]),
            ("dilations", [1, 1][len(row) :]),
        )
    )
    pads = attributes.get("pads", [0] * (2 * len(size)))
    top, left, bottom, right = (0, pads[0], 0, pads[1]) if row else pads
    word = attributes.get("auto_pad", b"NOTSET")
    if word.startswith(b"SAME"):
        (top, left, bottom, right), _ = geometry(image, size, strides, "same", dilations)
        if word == b"SAME_LOWER":
            top, left, bottom, right = bottom, right, top, left
    elif word == b"VALID":
        top = left = bottom = right = 0
    sides, ceil_mode = ((top, bottom), (left, right)), bool(attributes.get("ceil_mode", 0))
    pads, outputs = geometry(image, size, strides, sides, dilations, ceil_mode)
    return size, strides, pads, dilations, outputs


def channels_last(x):
    """(N, H, W, C) of (N, C, H, W), or (N, 1, L, C) of (N, C, L); C-contiguous."""
    return np.ascontiguousarray(np.moveaxis(x[:, :, None] if x.ndim == 3 else x, 1, -1))


def channels_first(y, axes):
    """channels_last undone, to so many axes."""
    y = np.moveaxis(y, -1, 1)
    return [y[:, :, 0] if axes == 3 else y]


def conv(backend, attributes, x, w, b=None):
    size, stride, pads, dilation, outputs = windows(attributes, channels_last(x).shape[1:3], w.shape[2:])
    kernel = np.ascontiguousarray((w[:, :, None] if w.ndim == 3 else w).transpose(2, 3, 1, 0))
    assert kernel.shape[:2] == size
    assert x.shape[1] == attributes.get("group", 1) * w.shape[1]
    y = unwritten((len(x), *outputs, len(w)), x.dtype)
    identity = ACTIVATIONS["identity"]
    geometry = Geometry(stride, pads, dilation)
    backend.conv2d_forward(channels_last(x), kernel, b, geometry, None, identity, LayerSaved(y, y))
    return channels_first(y, x.ndim)


def max_pool(backend, attributes, x):
    size, stride, pads, dilation, outputs = windows(attributes, (1, 1, *x.shape[2:])[-2:], attributes["kernel_shape"])
    if dilation != (1, 1):
        raise LeftOut("dilation")
    y = unwritten((len(x), *outputs, x.shape[1]), x.dtype)
    backend.max_pool2d_forward(channels_last(x), size, stride, pads, y)
    return channels_first(y, x.ndim)


def avg_pool(backend, attributes, x):
    size, stride, pads, dilation, outputs = windows(attributes, (1, 1, *x.shape[2:])[-2:], attributes["kernel_shape"])
    if dilation != (1, 1):
        raise LeftOut("dilation")
    y = unwritten((len(x), *outputs, x.shape[1]), x.dtype)
    include_pad = bool(attributes.get("count_include_pad", 0))
    backend.avg_pool2d_forward(channels_last(x), size, stride, pads, include_pad, y)
    return channels_first(y, x.ndim)


def global_avg_pool(backend, attributes, x):
    with fg.use_backend(next(name for name, module in BACKENDS.items() if module == backend.__name__)):
        y, _ = fg.global_avg_pool2d(channels_last(x))
    return [y[:, :, None, None]]


def matmul(backend, attributes, a, b):
    if a.ndim != 2 or b.ndim != 2:
        raise LeftOut("not two matrices")
    return gemm(backend, {}, a, b)


def together(tensors, kinds):
    """(flat arrays, shapes): `kinds` groups of tensors, each group joined into one flat array."""
    each = len(tensors) // kinds
    groups = [tensors[i * each : (i + 1) * each] for i in range(kinds)]
    return [np.concatenate([t.reshape(-1) for t in group]) for group in groups], [t.shape for t in groups[0]]


def apart(flats, shapes):
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return [part.reshape(shape) for flat in flats for part, shape in zip(np.split(flat, ends), shapes, strict=True)]


def adam(backend, attributes, r, t, *tensors):
    """ONNX adds epsilon to sqrt(v) before, PyTorch after the correction of v; at t = 0 ONNX does not correct at all."""
    if attributes.get("norm_coefficient_post", 0.0):
        raise LeftOut("weight decay after the update")
    if "epsilon" not in attributes:
        raise LeftOut("data of an onnx before 1.22, made with an epsilon that the node does not name")
    (x, g, v, h), shapes = together(tensors, 4)
    beta1, beta2 = attributes.get("alpha", 0.9), attributes.get("beta", 0.999)
    lr, step, state = float(r), max(int(t), 1), np.stack([v, h])
    corrected = np.sqrt(1 - beta2**step)
    if t == 0:
        lr *= (1 - beta1) / corrected
    eps = attributes["epsilon"] / corrected
    params = x.copy()
    hyper = np.array([lr, beta1, beta2, eps, attributes.get("norm_coefficient", 0.0), 0, 0])
    backend.update_arrays([params], [g], UpdateRule(ADAM, state, hyper, np.inf, None, None), step, None)
    return apart([params, *state], shapes)


def momentum(backend, attributes, r, t, *tensors):
    """ONNX starts from the given state, and never from the gradient alone: our steps from the second on."""
    if t > 0 and attributes.get("beta", 1.0) != 1:
        raise LeftOut("dampening")
    (x, g, v), shapes = together(tensors, 3)
    params, state = x.copy(), v[None].copy()
    nesterov = attributes["mode"] == b"nesterov"
    hyper = np.array([float(r), attributes["alpha"], 0, 0, attributes["norm_coefficient"], nesterov, 0])
    backend.update_arrays([params], [g], UpdateRule(SGD, state, hyper, np.inf, None, None), 2, None)
    return apart([params, *state], shapes)


OPS = {
    "Adam": adam,
    "AveragePool": avg_pool,
    "BatchNormalization": batch_normalization,
    "Clip": clip,
    "Conv": conv,
    "Elu": elu,
    "Gelu": gelu,
    "GRU": gru,
    "Gemm": gemm,
    "GlobalAveragePool": global_avg_pool,
    "Identity": identity,
    "LSTM": lstm,
    "LayerNormalization": layer_normalization,
    "LeakyRelu": leaky_relu,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Momentum": momentum,
    "Relu": by_name("relu"),
    "Selu": selu,
    "Sigmoid": by_name("sigmoid"),
    "Softmax": softmax,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
    "Softplus": by_name("softplus"),
    "Swish": swish,
    "Tanh": by_name("tanh"),
}


@pytest.fixture(scope="module")
def cases():
    """ONNX's node cases by op: [(name, attributes, asked, data sets)]; not those spelt in other ops, *_expanded.

    asked are the numbers of the outputs that the node names.
    """
    onnx = pytest.importorskip("onnx")
    from onnx.backend.test.loader import load_model_tests

    found = {op: [] for op in OPS}
    # onnx computes the data of all its cases here, some with infinities on purpose, and sets shapes as NumPy 2.5 deprecates
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tests = load_model_tests(kind="node")
    for case in tests:
        model = case.model or onnx.load(Path(case.model_dir, "model.onnx"))
        node = model.graph.node[0]
        if len(model.graph.node) == 1 and node.op_type in OPS and "_expanded" not in case.name:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            data_sets = case.data_sets or read(onnx, case.model_dir)
            asked = [i for i, name in enumerate(node.output) if name]
            found[node.op_type].append((case.name, attributes, asked, data_sets))
    return found


def read(onnx, folder):
    """Data sets from the files of an onnx before 1.23: test_data_set_*/input_0.pb ..."""

    def load(data, kind):
        paths = sorted(data.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))
        try:
            return [onnx.numpy_helper.to_array(onnx.load_tensor(path)) for path in paths]
        except Exception:  # a sequence or an optional
            return [None]

    return [(load(data, "input"), load(data, "output")) for data in sorted(Path(folder).glob("test_data_set_*"))]


@pytest.fixture(scope="module")
def counts(pytestconfig):
    """Counters by backend, printed at the end of the run."""
    found = {}
    yield found
    lines = pytestconfig.stash.setdefault(ONNX_COUNTS, [])
    for name, counter in found.items():
        run, passed = counter.pop("run"), counter.pop("passed")
        lines.append(f"onnx {name}: {run} run, {passed} passed, {counter.total()} left out")
        lines += [f"  {n} left out: {reason}" for reason, n in sorted(counter.items())]


def check(backend, op, attributes, asked, data_sets):
    for inputs, expected in data_sets:
        if not all(isinstance(a, np.ndarray | np.generic) for a in inputs):
            raise LeftOut("a sequence or an optional, not an array")
        if not any(a.dtype in (np.float32, np.float64) for a in inputs):
            raise LeftOut("neither float32 nor float64")
        actual = OPS[op](backend, attributes, *inputs)
        if max(asked) >= len(actual):
            raise LeftOut("an output that the op does not have")
        for ours, theirs in zip([actual[i] for i in asked], expected, strict=True):
            assert ours.dtype == theirs.dtype
            if op == "AveragePool" and (theirs % 1).all() and np.array_equal(theirs, theirs.round(4)):
                # a case whose results are written down with four digits
                np.testing.assert_allclose(ours, theirs, atol=1e-4)
                continue
            assert_close("onnx", ours, theirs, np.abs(theirs).max(initial=0))


@pytest.mark.parametrize("op", OPS)
def test_node_cases(backend, op, cases, counts):
    counter = counts.setdefault(f"node cases, {backend.__name__.rpartition('.')[2]}", Counter(run=0, passed=0))
    passed = run_all(counter, {(op, name): partial(check, backend, op, *case) for name, *case in cases[op]})
    assert passed, f"no case of {op} was run"


def run_all(counter, tests):
    """The names of the tests that passed, of those by (op, name); fails with the messages of those that failed."""
    failures, passed = [], []
    for (op, name), test in tests.items():
        try:
            test()
            passed.append(name)
        except LeftOut as reason:
            counter[f"{op}: {reason}"] += 1
        except AssertionError as error:
            failures.append(f"{name}: {error}")
    counter["run"] += len(passed) + len(failures)
    counter["passed"] += len(passed)
    assert not failures, "\n".join(failures)
    return passed


def test_models_converted_from_pytorch(backend, counts):
    """ONNX's conversions of torch.nn's layers: a node with its weights, for Linear without a bias a transpose before it."""
    onnx = pytest.importorskip("onnx")
    from onnx.backend.test.loader import load_model_tests

    tests = {}
    for case in load_model_tests(kind="pytorch-converted"):
        graph = onnx.load(Path(case.model_dir, "model.onnx")).graph
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        *before, node = graph.node
        if node.op_type not in OPS or any(other.op_type != "Transpose" for other in before):
            continue
        for other in before:
            weights[other.output[0]] = weights[other.input[0]].transpose(other.attribute[0].ints)
        given = [weights.get(name) for name in node.input]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        data_sets = [
            ([inputs[0] if a is None else a for a in given], outputs) for inputs, outputs in read(onnx, case.model_dir)
        ]
        asked = [i for i, name in enumerate(node.output) if name]
        tests[node.op_type, case.name] = partial(check, backend, node.op_type, attributes, asked, data_sets)
    name = f"models converted from pytorch, {backend.__name__.rpartition('.')[2]}"
    passed = run_all(counts.setdefault(name, Counter(run=0, passed=0)), tests)
    assert {"test_Linear", "test_Linear_no_bias", "test_Conv2d_groups", "test_BatchNorm2d_eval"} <= set(passed)


@pytest.mark.parametrize("peepholes", [False, True])
def test_lstm_of_random_weights_matches_the_reference_evaluator(backend, peepholes, rng):
    """The node cases have one value in all weights and no states: gates in a wrong order would pass."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    steps, n, c, hidden = 5, 3, 4, 6
    shapes = {"X": (steps, n, c), "W": (1, 4 * hidden, c), "R": (1, 4 * hidden, hidden), "B": (1, 8 * hidden)}
    shapes |= {"initial_h": (1, n, hidden), "initial_c": (1, n, hidden)}
    if peepholes:
        shapes["P"] = (1, 3 * hidden)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    names = [name if name in arrays else "" for name in ("X", "W", "R", "B", "", "initial_h", "initial_c", "P")]
    node = onnx.helper.make_node("LSTM", names, ["Y", "Y_h"], hidden_size=hidden)
    expected = ReferenceEvaluator(node).run(None, arrays)
    actual = lstm(backend, {"hidden_size": hidden}, *(arrays.get(name) for name in names))
    for ours, theirs in zip(actual[:2], expected, strict=True):
        assert_close("onnx", ours, theirs, np.abs(theirs).max())


@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_gru_of_random_weights_matches_the_reference_evaluator(backend, linear_before_reset, rng):
    """As for the LSTM, and for both conventions of the reset gate."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    steps, n, c, hidden = 5, 3, 4, 6
    shapes = {"X": (steps, n, c), "W": (1, 3 * hidden, c), "R": (1, 3 * hidden, hidden), "B": (1, 6 * hidden)}
    shapes["initial_h"] = (1, n, hidden)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    names = ["X", "W", "R", "B", "", "initial_h"]
    options = {"hidden_size": hidden, "linear_before_reset": linear_before_reset}
    expected = ReferenceEvaluator(onnx.helper.make_node("GRU", names, ["Y", "Y_h"], **options)).run(None, arrays)
    actual = gru(backend, options, *(arrays.get(name) for name in names))
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close("onnx", ours, theirs, np.abs(theirs).max())
