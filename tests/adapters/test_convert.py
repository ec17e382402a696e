"""Weights of LSTMs and GRUs to and from PyTorch, Keras and ONNX: the libraries' own outputs from ours, and back to the same bits."""

import json
import os
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses
from keras_import import import_keras
from tolerances import assert_close

import fastgrad as fg
from fastgrad.nn import GRU, LSTM, Dense, Sequential

LSTMS = {
    "one": {},
    "layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "both": {"num_layers": 2, "bidirectional": True},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "peephole": {"peephole": True},
    "reverse": {"reverse": True},
    "both_ways_peephole": {"bidirectional": True, "peephole": True},
}
GRUS = {
    "gru": {},
    "gru_layers": {"num_layers": 2},
    "gru_bidirectional": {"bidirectional": True},
    "gru_both": {"num_layers": 2, "bidirectional": True},
    "gru_reverse": {"reverse": True},
    "gru_of_the_paper": {"reset_after": False},
    "gru_of_the_paper_bidirectional": {"reset_after": False, "bidirectional": True},
}
OPTIONS = LSTMS | GRUS
PYTORCH = [name for name in OPTIONS if not any(word in name for word in ("peephole", "reverse", "paper"))]
KERAS = [name for name in OPTIONS if "peephole" not in name and name != "projected"]
# PyTorch says so of float32
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
ONNX = [name for name, options in OPTIONS.items() if "num_layers" not in options]


def layers(options, dtype="float32"):
    """A layer with values of its own, and another to read them."""
    kind = GRU if options in GRUS else LSTM
    return (kind(3, 5, dtype=dtype, seed=seed, **OPTIONS[options]) for seed in (1, 2))


def close(layer, x, expected):
    assert_close(type(layer).__name__.lower(), layer(x), expected, size=1)


def sequences(dtype="float32"):
    return np.random.default_rng(2).standard_normal((4, 6, 3)).astype(dtype)


def torch_layer(torch, options, dtype, bias=True):
    torch.manual_seed(0)
    kind = torch.nn.GRU if options in GRUS else torch.nn.LSTM
    return kind(3, 5, batch_first=True, bias=bias, dtype=getattr(torch, str(dtype)), **OPTIONS[options])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", PYTORCH)
def test_from_torch(in_force, dtype, options, bias, torch):
    theirs, (ours, _), x = torch_layer(torch, options, dtype, bias), layers(options, dtype), sequences(dtype)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    # parameters too, which ask for gradients, and arrays
    for values in (theirs.state_dict(), dict(theirs.named_parameters())):
        ours.params[...] = 7
        fg.convert.from_torch(ours, values)
        close(ours, x, theirs(torch.tensor(x))[0].detach().numpy())
    fg.convert.from_torch(ours, {name: value.numpy() for name, value in before.items()})
    close(ours, x, theirs(torch.tensor(x))[0].detach().numpy())
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize("options", PYTORCH)
def test_to_torch(in_force, dtype, options, torch):
    theirs, (ours, other), x = torch_layer(torch, options, dtype), layers(options, dtype), sequences(dtype)
    state_dict = fg.convert.to_torch(ours)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in state_dict.items()})
    close(ours, x, theirs(torch.tensor(x))[0].detach().numpy())
    fg.convert.from_torch(other, state_dict)
    assert bits(other.params) == bits(ours.params)


@pytest.mark.parametrize(("convert", "options"), [*product(["keras"], KERAS), *product(["onnx"], ONNX)])
def test_there_and_back(dtype, options, convert):
    ours, other = layers(options, dtype)
    values = getattr(fg.convert, f"to_{convert}")(ours)
    assert not any(np.shares_memory(a, ours.params) for a in values if a is not None)
    getattr(fg.convert, f"from_{convert}")(other, *([values] if convert == "keras" else values))
    assert bits(other.params) == bits(ours.params)


@pytest.mark.parametrize("options", ["one", "both", "projected", "gru_both"])
def test_what_is_returned_is_not_the_layers(options):
    ours, _ = layers(options)
    assert not any(np.shares_memory(a, ours.params) for a in fg.convert.to_torch(ours).values())


@pytest.mark.parametrize("options", ["both", "gru_both", "gru_of_the_paper"])
def test_without_keras_biases_they_are_zero(options):
    ours, other = layers(options)
    weights = fg.convert.to_keras(ours)
    fg.convert.from_keras(other, [w for i, w in enumerate(weights) if i % 3 < 2])
    without_biases(ours, other)


@pytest.mark.parametrize("options", ["peephole", "gru", "gru_of_the_paper"])
def test_without_onnx_biases_they_are_zero(options):
    ours, other = layers(options)
    w, r, _, _ = fg.convert.to_onnx(ours)
    fg.convert.from_onnx(other, w, r)
    without_biases(ours, other)


def without_biases(ours, other):
    for name, array in other.parameters().items():
        zero = name.endswith((".b", ".b_hn", ".peephole"))
        assert not array.any() if zero else bits(array) == bits(ours.parameters()[name])


def test_a_layer_of_a_sequential_is_written_in_place():
    source, layer = layers("both")
    model = Sequential(layer, Dense(10, 2), seed=0)
    fg.convert.from_torch(layer, fg.convert.to_torch(source))
    assert bits(model.params[: source.params.size]) == bits(source.params)


KERAS_PROGRAM = """
import json
import sys
import numpy as np
import keras
x = np.load(sys.argv[1])
for name, options in json.loads(sys.argv[3]).items():
    model = keras.Sequential([keras.Input(x.shape[1:])])
    cell = keras.layers.GRU if name.startswith("gru") else keras.layers.LSTM
    for i in range(options.get("num_layers", 1)):
        own = {"reset_after": options.get("reset_after", True)} if name.startswith("gru") else {}
        layer = cell(5, return_sequences=True, seed=i, bias_initializer=keras.initializers.RandomNormal(seed=i),
                     go_backwards="reverse" in options, **own)
        model.add(keras.layers.Bidirectional(layer) if "bidirectional" in options else layer)
    weights = model.get_weights()
    y = model.predict(x, verbose=0)
    model.set_weights([w + 0.125 for w in weights])
    np.savez(f"{sys.argv[2]}/{name}", *weights, y=y, moved=model.predict(x, verbose=0))
"""


@pytest.mark.full
def test_keras(tmp_path):
    """In a process of its own: TensorFlow's threads and warnings stay there."""
    environment = {**os.environ, "KERAS_BACKEND": import_keras().backend.backend()}
    x = sequences()
    np.save(tmp_path / "x.npy", x)
    options = json.dumps({name: OPTIONS[name] for name in KERAS})
    arguments = [sys.executable, "-c", KERAS_PROGRAM, tmp_path / "x.npy", tmp_path, options]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for options in KERAS:
        results = np.load(tmp_path / f"{options}.npz")
        weights = [results[name] for name in results.files if name.startswith("arr_")]
        ours, _ = layers(options)
        # what Keras computes backwards comes out in the order in which it was computed
        order = slice(None, None, -1 if "reverse" in options else 1)
        fg.convert.from_keras(ours, weights)
        close(ours, x, results["y"][:, order])
        for a, b in zip(fg.convert.to_keras(ours), weights, strict=True):
            assert bits(a) == bits(with_sums(b))
        fg.convert.from_keras(ours, [w + np.float32(0.125) for w in weights])
        close(ours, x, results["moved"][:, order])


def with_sums(weight):
    """A weight of Keras as it comes back: of two biases of a GRU there is the sum, in the first, in the gates z and r."""
    if weight.shape != (2, 15):
        return weight
    sums = weight[:, :10].sum(axis=0)
    return np.hstack([np.stack([sums, np.zeros_like(sums)]), weight[:, 10:]])


def onnx_layer(onnx, layer, x):
    """Y (N, T, D P) of the reference evaluator of one LSTM or GRU node, with the values of to_onnx."""
    from onnx.reference import ReferenceEvaluator

    w, r, b, p = fg.convert.to_onnx(layer)
    inputs = {"X": x.swapaxes(0, 1), "W": w, "R": r, "B": b} | ({} if p is None else {"P": p})
    # between B and P: lengths and initial states
    names = ["X", "W", "R", "B"] + ([] if p is None else ["", "", "", "P"])
    direction = "bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward"
    attributes = {"hidden_size": layer.hidden_size, "direction": direction}
    if isinstance(layer, GRU):
        attributes["linear_before_reset"] = int(layer.reset_after)
    node = onnx.helper.make_node(type(layer).__name__, names, ["Y"], **attributes)
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [onnx.helper.make_tensor_value_info(name, kind, a.shape) for name, a in inputs.items()],
        [onnx.helper.make_tensor_value_info("Y", kind, None)],
    )
    (y,) = ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, inputs)  # (T, D, N, P)
    return y.transpose(2, 0, 1, 3).reshape(*x.shape[:2], -1)


@pytest.mark.parametrize("options", ["one", "reverse", "peephole", "gru", "gru_reverse", "gru_of_the_paper"])
def test_to_onnx_is_what_the_reference_evaluator_runs(in_force, dtype, options):
    onnx = pytest.importorskip("onnx")
    ours, _ = layers(options, dtype)
    x = sequences(dtype)
    close(ours, x, onnx_layer(onnx, ours, x))


def test_onnx_order_of_gates():
    """Each gate has its number in every value, by hand: i, o, f, c there and i, f, g, o here."""
    i, f, g, o = 1, 2, 3, 4
    layer = LSTM(3, 5, bidirectional=True, peephole=True)
    for name, array in layer.parameters().items():
        sign = -1 if "reverse" in name else 1
        if name.endswith("peephole"):
            array[...] = sign * np.array([[i], [f], [o]])
        else:
            array[...] = sign * np.repeat([i, f, g, o], 5)
    w, r, b, p = fg.convert.to_onnx(layer)
    assert (w.shape, r.shape, b.shape, p.shape) == ((2, 20, 3), (2, 20, 5), (2, 40), (2, 15))
    for way, sign in enumerate((1, -1)):
        gates = sign * np.repeat([i, o, f, g], 5)
        assert (w[way] == gates[:, None]).all()
        assert (r[way] == gates[:, None]).all()
        assert (b[way] == [*gates, *np.zeros(20)]).all()
        assert (p[way] == sign * np.repeat([i, o, f], 5)).all()
    kept = layer.params.copy()
    layer.params[...] = 0
    # two biases are one, their sum
    half = b[:, :20] / 2
    fg.convert.from_onnx(layer, w, r, np.concatenate([half, half], axis=1), p)
    assert bits(layer.params) == bits(kept)


@pytest.mark.parametrize("reset_after", [True, False])
def test_order_of_gates_of_a_gru(reset_after):
    """Each gate has its number in every value, by hand: z, r, h in ONNX and Keras, r, z, n in PyTorch and here."""
    r, z, n = 1, 2, 3
    layer = GRU(3, 5, bidirectional=True, reset_after=reset_after)
    for name, array in layer.parameters().items():
        sign = -1 if "reverse" in name else 1
        array[...] = sign * (np.full(5, 4) if name.endswith("b_hn") else np.repeat([r, z, n], 5))
    kept = layer.params.copy()
    w, u, b, p = fg.convert.to_onnx(layer)
    assert (w.shape, u.shape, b.shape, p) == ((2, 15, 3), (2, 15, 5), (2, 30), None)
    weights = fg.convert.to_keras(layer)
    rows = (2, 15) if reset_after else (15,)
    assert [a.shape for a in weights] == 2 * [(3, 15), (5, 15), rows]
    for way, sign in enumerate((1, -1)):
        gates = sign * np.repeat([z, r, n], 5)
        of_h = sign * np.repeat([0, 0, 4 if reset_after else 0], 5)
        assert (w[way] == gates[:, None]).all()
        assert (u[way] == gates[:, None]).all()
        assert (b[way] == [*gates, *of_h]).all()
        assert (weights[3 * way] == gates).all()
        assert (weights[3 * way + 1] == gates).all()
        assert (weights[3 * way + 2] == ([gates, of_h] if reset_after else gates)).all()
    # of two biases in z and r it is the sum, and in n with reset_after each has its place
    added = np.repeat([8, 16, 0 if reset_after else 32], 5).astype(np.float32)
    layer.params[...] = 0
    fg.convert.from_onnx(layer, w, u, b + np.concatenate([added, -added]))
    assert bits(layer.params) == bits(kept)
    if reset_after:
        weights[2::3] = [a + np.stack([added, -added]) for a in weights[2::3]]
        layer.params[...] = 0
        fg.convert.from_keras(layer, weights)
        assert bits(layer.params) == bits(kept)
        state_dict = fg.convert.to_torch(layer)
        assert (state_dict["weight_hh_l0"] == np.repeat([r, z, n], 5)[:, None]).all()
        assert (state_dict["bias_ih_l0_reverse"] == -np.repeat([r, z, n], 5)).all()
        assert (state_dict["bias_hh_l0"] == np.repeat([0, 0, 4], 5)).all()


def test_a_failed_load_changes_nothing(torch):
    layer = LSTM(3, 5, 2, True)
    before, convert = bits(layer.params), fg.convert
    good = convert.to_torch(layer)
    without = {name: value for name, value in good.items() if name not in ("weight_ih_l1_reverse", "bias_hh_l0")}
    message = "from_torch: state_dict has no bias_hh_l0, weight_ih_l1_reverse"
    refuses(ValueError, message, convert.from_torch, layer, without)
    more = {**good, "weight_hr_l0": good["weight_hh_l0"]}
    message = "from_torch: state_dict has weight_hr_l0, which the layer has not"
    refuses(ValueError, message, convert.from_torch, layer, more)
    wrong = {**good, "weight_hh_l1_reverse": np.zeros((20, 4), np.float32)}
    message = "from_torch: weight_hh_l1_reverse must be (4H, P) = (20, 5), got (20, 4)"
    refuses(ValueError, message, convert.from_torch, layer, wrong)
    wrong = {**good, "bias_hh_l1": torch.zeros(20, dtype=torch.float64)}
    message = "from_torch: bias_hh_l1 must be float32 like the model, got float64; astype(np.float32), or dtype='float64' for the model"
    refuses(TypeError, message, convert.from_torch, layer, wrong)
    wrong = {**good, "bias_hh_l1": [0.0] * 20}
    message = "from_torch: bias_hh_l1 must be a NumPy array, got list; np.asarray(value, dtype) makes one"
    refuses(TypeError, message, convert.from_torch, layer, wrong)

    weights = convert.to_keras(layer)
    message = "from_keras: weights must have length 12, or 8 without biases, got 11"
    refuses(ValueError, message, convert.from_keras, layer, weights[:-1])
    wrong = [*weights[:-2], weights[-2].T, weights[-1]]
    message = "from_keras: weights[10] must be (H, 4H) = (5, 20), got (20, 5)"
    refuses(ValueError, message, convert.from_keras, layer, wrong)
    refuses(TypeError, "from_keras: weights must be a list or tuple, got dict", convert.from_keras, layer, good)
    assert bits(layer.params) == before

    single = LSTM(3, 5)
    kept = bits(single.params)
    w, r, b, _ = convert.to_onnx(LSTM(3, 5, seed=9))
    refuses(
        ValueError, "from_onnx: W must be (D, 4H, C) = (1, 20, 3), got (20, 3)", convert.from_onnx, single, w[0], r, b
    )
    refuses(
        ValueError, "from_onnx: B must be (D, 8H) = (1, 40), got (1, 20)", convert.from_onnx, single, w, r, b[:, :20]
    )
    message = "from_onnx: P must be None, for the layer has no peephole"
    refuses(ValueError, message, convert.from_onnx, single, w, r, b, np.zeros((1, 15), np.float32))
    assert bits(single.params) == kept


def test_a_failed_load_of_a_gru_changes_nothing():
    layer, convert = GRU(3, 5), fg.convert
    before = bits(layer.params)
    good = convert.to_torch(GRU(3, 5, seed=9))
    message = "from_torch: weight_hh_l0 must be (3H, H) = (15, 5), got (20, 5)"
    wrong = {**good, "weight_hh_l0": np.zeros((20, 5), np.float32)}
    refuses(ValueError, message, convert.from_torch, layer, wrong)
    message = "from_torch: state_dict has weight_hr_l0, which the layer has not"
    refuses(ValueError, message, convert.from_torch, layer, {**good, "weight_hr_l0": good["weight_hh_l0"]})
    weights = convert.to_keras(GRU(3, 5, reset_after=False))
    message = "from_keras: weights[2] must be (2, 3H) = (2, 15), got (15,)"
    refuses(ValueError, message, convert.from_keras, layer, weights)
    message = "from_keras: weights[2] must be (3H,) = (15,), got (2, 15)"
    refuses(ValueError, message, convert.from_keras, GRU(3, 5, reset_after=False), convert.to_keras(layer))
    w, r, b, _ = convert.to_onnx(GRU(3, 5, seed=9))
    message = "from_onnx: B must be (D, 6H) = (1, 30), got (1, 15)"
    refuses(ValueError, message, convert.from_onnx, layer, w, r, b[:, :15])
    message = "from_onnx: P must be None, for the layer has no peephole"
    refuses(ValueError, message, convert.from_onnx, layer, w, r, b, np.zeros((1, 15), np.float32))
    assert bits(layer.params) == before


def test_layers_that_the_library_has_not():
    convert = fg.convert
    peephole, projected, two = LSTM(3, 5, peephole=True), LSTM(3, 5, proj_size=2), LSTM(3, 5, 2)
    refuses(ValueError, "to_torch: the layer has peephole, which PyTorch's LSTM has not", convert.to_torch, peephole)
    refuses(
        ValueError, "from_torch: the layer has peephole, which PyTorch's LSTM has not", convert.from_torch, peephole, {}
    )
    refuses(ValueError, "to_keras: the layer has proj_size, which Keras's LSTM has not", convert.to_keras, projected)
    refuses(ValueError, "to_keras: the layer has peephole, which Keras's LSTM has not", convert.to_keras, peephole)
    refuses(ValueError, "to_onnx: the layer has proj_size, which ONNX's LSTM has not", convert.to_onnx, projected)
    reverse = LSTM(3, 5, reverse=True)
    refuses(ValueError, "to_torch: the layer has reverse, which PyTorch's LSTM has not", convert.to_torch, reverse)
    message = "the layer has reset_after=False, which PyTorch's GRU has not"
    of_the_paper = GRU(3, 5, reset_after=False)
    refuses(ValueError, f"to_torch: {message}", convert.to_torch, of_the_paper)
    refuses(ValueError, f"from_torch: {message}", convert.from_torch, of_the_paper, {})
    message = "to_torch: the layer has reverse, which PyTorch's GRU has not"
    refuses(ValueError, message, convert.to_torch, GRU(3, 5, reverse=True))
    message = "to_onnx: the layer must have num_layers 1, got 2; ONNX has a node for each"
    refuses(ValueError, message, convert.to_onnx, two)
    refuses(ValueError, message, convert.to_onnx, GRU(3, 5, 2))
    refuses(TypeError, "to_torch: layer must be an fg.nn.LSTM or fg.nn.GRU, got Dense", convert.to_torch, Dense(3, 5))


def test_what_is_no_state_dict_or_no_layer_is_named(torch):
    layer, module, convert = LSTM(3, 5), torch.nn.LSTM(3, 5), fg.convert
    before = bits(layer.params)
    message = "from_torch: state_dict must be a mapping of names to arrays, got torch's LSTM; its state_dict() is one"
    refuses(TypeError, message, convert.from_torch, layer, module)
    message = "from_torch: layer must be an fg.nn.LSTM or fg.nn.GRU, got torch's LSTM"
    refuses(TypeError, message, convert.from_torch, module, layer)
    refuses(TypeError, message, convert.from_torch, module, module.state_dict())
    message = "from_torch: state_dict must be a mapping of names to arrays, got {}"
    for value in ([], None, 3, "path"):
        refuses(TypeError, message.format(type(value).__name__), convert.from_torch, layer, value)
    message = "from_torch: state_dict has 3, which the layer has not"
    refuses(ValueError, message, convert.from_torch, layer, {**convert.to_torch(layer), 3: np.zeros(1)})
    half = {name: tensor.bfloat16() for name, tensor in module.state_dict().items()}
    refuses(TypeError, "from_torch: weight_ih_l0 must be float32, got torch.bfloat16", convert.from_torch, layer, half)
    message = "from_keras: weights must be a list or tuple, got LSTM"
    refuses(TypeError, message, convert.from_keras, layer, module)
    message = "to_torch: layer must be an fg.nn.LSTM or fg.nn.GRU, got torch's LSTM"
    refuses(TypeError, message, convert.to_torch, module)
    assert bits(layer.params) == before


def test_nothing_else_is_imported():
    program = "import fastgrad as fg, sys; fg.convert.to_torch(fg.nn.LSTM(2, 3)); print([m for m in sys.modules if m in names])"
    names = "torch", "tensorflow", "keras", "onnx"
    done = subprocess.run(
        [sys.executable, "-c", f"names = {names}; {program}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
