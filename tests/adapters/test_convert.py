"""LSTM weights to and from PyTorch, Keras and ONNX: the libraries' own outputs from ours, and back to the same bits."""

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
from fastgrad.nn import LSTM, Dense, Sequential

OPTIONS = {
    "one": {},
    "layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "both": {"num_layers": 2, "bidirectional": True},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "peephole": {"peephole": True},
    "reverse": {"reverse": True},
    "both_ways_peephole": {"bidirectional": True, "peephole": True},
}
PYTORCH = [name for name in OPTIONS if "peephole" not in name and name != "reverse"]
KERAS = [*(name for name in PYTORCH if name != "projected"), "reverse"]
# PyTorch says so of float32
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
ONNX = ["one", "reverse", "bidirectional", "peephole", "both_ways_peephole"]


def layers(options, dtype="float32"):
    """A layer with values of its own, and another to read them."""
    return (LSTM(3, 5, dtype=dtype, seed=seed, **OPTIONS[options]) for seed in (1, 2))


def sequences(dtype="float32"):
    return np.random.default_rng(2).standard_normal((4, 6, 3)).astype(dtype)


def torch_lstm(torch, options, dtype, bias=True):
    torch.manual_seed(0)
    options = {name: value for name, value in OPTIONS[options].items() if name != "peephole"}
    return torch.nn.LSTM(3, 5, batch_first=True, bias=bias, dtype=getattr(torch, str(dtype)), **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", PYTORCH)
def test_from_torch(in_force, dtype, options, bias, torch):
    theirs, (ours, _), x = torch_lstm(torch, options, dtype, bias), layers(options, dtype), sequences(dtype)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    # parameters too, which ask for gradients, and arrays
    for values in (theirs.state_dict(), dict(theirs.named_parameters())):
        ours.params[...] = 7
        fg.convert.from_torch(ours, values)
        assert_close("lstm", ours(x), theirs(torch.tensor(x))[0].detach().numpy(), size=1)
    fg.convert.from_torch(ours, {name: value.numpy() for name, value in before.items()})
    assert_close("lstm", ours(x), theirs(torch.tensor(x))[0].detach().numpy(), size=1)
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize("options", PYTORCH)
def test_to_torch(in_force, dtype, options, torch):
    theirs, (ours, other), x = torch_lstm(torch, options, dtype), layers(options, dtype), sequences(dtype)
    state_dict = fg.convert.to_torch(ours)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in state_dict.items()})
    assert_close("lstm", ours(x), theirs(torch.tensor(x))[0].detach().numpy(), size=1)
    fg.convert.from_torch(other, state_dict)
    assert bits(other.params) == bits(ours.params)


@pytest.mark.parametrize(("convert", "options"), [*product(["keras"], KERAS), *product(["onnx"], ONNX)])
def test_there_and_back(dtype, options, convert):
    ours, other = layers(options, dtype)
    values = getattr(fg.convert, f"to_{convert}")(ours)
    assert not any(np.shares_memory(a, ours.params) for a in values if a is not None)
    getattr(fg.convert, f"from_{convert}")(other, *([values] if convert == "keras" else values))
    assert bits(other.params) == bits(ours.params)


@pytest.mark.parametrize("options", ["one", "both", "projected"])
def test_what_is_returned_is_not_the_layers(options):
    ours, _ = layers(options)
    assert not any(np.shares_memory(a, ours.params) for a in fg.convert.to_torch(ours).values())


def test_without_biases_they_are_zero():
    ours, other = layers("both")
    weights = fg.convert.to_keras(ours)
    fg.convert.from_keras(other, [w for i, w in enumerate(weights) if i % 3 < 2])
    for name, array in other.parameters().items():
        assert not array.any() if name.endswith(".b") else bits(array) == bits(ours.parameters()[name])
    ours, other = layers("peephole")
    w, r, _, _ = fg.convert.to_onnx(ours)
    fg.convert.from_onnx(other, w, r)
    assert not other.parameters()["0.b"].any()
    assert not other.parameters()["0.peephole"].any()
    assert bits(other.parameters()["0.w_hh"]) == bits(ours.parameters()["0.w_hh"])


def test_a_layer_of_a_sequential_is_written_in_place():
    source, layer = layers("both")
    model = Sequential(layer, Dense(10, 2), seed=0)
    fg.convert.from_torch(layer, fg.convert.to_torch(source))
    assert bits(model.params[: source.params.size]) == bits(source.params)


KERAS_PROGRAM = """
import sys
import numpy as np
import keras
x = np.load(sys.argv[1])
for name, bidirectional, units in (("one", False, [5]), ("layers", False, [5, 5]), ("bidirectional", True, [5]), ("both", True, [5, 5]),
                                  ("reverse", False, [5])):
    model = keras.Sequential([keras.Input(x.shape[1:])])
    for i, n in enumerate(units):
        layer = keras.layers.LSTM(n, return_sequences=True, seed=i, bias_initializer=keras.initializers.RandomNormal(seed=i),
                                  go_backwards=name == "reverse")
        model.add(keras.layers.Bidirectional(layer) if bidirectional else layer)
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
    arguments = [sys.executable, "-c", KERAS_PROGRAM, tmp_path / "x.npy", tmp_path]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for options in KERAS:
        results = np.load(tmp_path / f"{options}.npz")
        weights = [results[name] for name in results.files if name.startswith("arr_")]
        ours, _ = layers(options)
        # what Keras computes backwards comes out in the order in which it was computed
        order = slice(None, None, -1 if options == "reverse" else 1)
        fg.convert.from_keras(ours, weights)
        assert_close("lstm", ours(x), results["y"][:, order], size=1)
        for a, b in zip(fg.convert.to_keras(ours), weights, strict=True):
            assert bits(a) == bits(b)
        fg.convert.from_keras(ours, [w + np.float32(0.125) for w in weights])
        assert_close("lstm", ours(x), results["moved"][:, order], size=1)


def onnx_lstm(onnx, layer, x):
    """Y (N, T, D P) of the reference evaluator of one LSTM node, with the values of to_onnx."""
    from onnx.reference import ReferenceEvaluator

    w, r, b, p = fg.convert.to_onnx(layer)
    inputs = {"X": x.swapaxes(0, 1), "W": w, "R": r, "B": b} | ({} if p is None else {"P": p})
    # between B and P: lengths and initial states
    names = ["X", "W", "R", "B"] + ([] if p is None else ["", "", "", "P"])
    direction = "bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward"
    node = onnx.helper.make_node("LSTM", names, ["Y"], hidden_size=layer.hidden_size, direction=direction)
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = onnx.helper.make_graph(
        [node],
        "lstm",
        [onnx.helper.make_tensor_value_info(name, kind, a.shape) for name, a in inputs.items()],
        [onnx.helper.make_tensor_value_info("Y", kind, None)],
    )
    (y,) = ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, inputs)  # (T, D, N, P)
    return y.transpose(2, 0, 1, 3).reshape(*x.shape[:2], -1)


@pytest.mark.parametrize("options", ["one", "reverse", "peephole"])
def test_to_onnx_is_what_the_reference_evaluator_runs(in_force, dtype, options):
    onnx = pytest.importorskip("onnx")
    ours, _ = layers(options, dtype)
    x = sequences(dtype)
    assert_close("lstm", ours(x), onnx_lstm(onnx, ours, x), size=1)


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
    message = "to_onnx: the layer must have num_layers 1, got 2; ONNX has a node for each"
    refuses(ValueError, message, convert.to_onnx, two)
    refuses(TypeError, "to_torch: layer must be an fg.nn.LSTM, got Dense", convert.to_torch, Dense(3, 5))


def test_what_is_no_state_dict_or_no_layer_is_named(torch):
    layer, module, convert = LSTM(3, 5), torch.nn.LSTM(3, 5), fg.convert
    before = bits(layer.params)
    message = "from_torch: state_dict must be a mapping of names to arrays, got torch's LSTM; its state_dict() is one"
    refuses(TypeError, message, convert.from_torch, layer, module)
    message = "from_torch: layer must be an fg.nn.LSTM, got torch's LSTM"
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
    message = "to_torch: layer must be an fg.nn.LSTM, got torch's LSTM"
    refuses(TypeError, message, convert.to_torch, module)
    assert bits(layer.params) == before


def test_nothing_else_is_imported():
    program = "import fastgrad as fg, sys; fg.convert.to_torch(fg.nn.LSTM(2, 3)); print([m for m in sys.modules if m in names])"
    names = "torch", "tensorflow", "keras", "onnx"
    done = subprocess.run(
        [sys.executable, "-c", f"names = {names}; {program}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
