"""Layers: flat parameters and views into them, initial weights, forward and predict, copies, saved files."""

import copy
import functools
import math
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from arrays import LAYOUTS, bits, laid_out, numerical_gradient
from error_messages import refuses
from tolerances import assert_close

import fastgrad as fg
from fastgrad.nn import Dense, DenseChain, Sequential

SIZES = [4, 6, 5, 3]


def models(dtype="float32", output="softmax"):
    """The same net in every form."""
    chain = DenseChain(SIZES, "relu", output, dtype=dtype, seed=7)
    flat = Sequential(
        Dense(4, 6, "relu", dtype=dtype), Dense(6, 5, "relu", dtype=dtype), Dense(5, 3, output, dtype=dtype), seed=7
    )
    inner = Sequential(Dense(4, 6, "relu", dtype=dtype), DenseChain([6, 5], "relu", "relu", dtype=dtype))
    nested = Sequential(inner, Dense(5, 3, output, dtype=dtype), seed=7)
    return {"chain": chain, "sequential": flat, "nested": nested}


def batch(dtype="float32", n=8):
    return np.random.default_rng(3).standard_normal((n, SIZES[0])).astype(dtype)


@pytest.mark.parametrize("model", models())
def test_views_write_through_to_the_flat_arrays(model):
    model = models()[model]
    model.params[...] = np.arange(model.params.size)
    model.grads[...] = -np.arange(model.params.size)
    for arrays, flat in ((model.parameters(), model.params), (model.gradients(), model.grads)):
        assert all(np.shares_memory(a, flat) for a in arrays.values())
        assert bits(np.concatenate([a.ravel() for a in arrays.values()])) == bits(flat)
    for array in model.parameters().values():
        array[...] = 5
    assert (model.params == 5).all()


def test_names_and_views_of_layers():
    chain = DenseChain(SIZES, seed=0)
    assert list(chain.parameters()) == ["0.w", "0.b", "1.w", "1.b", "2.w", "2.b"]
    assert [w.shape for w in chain.weights] == [(4, 6), (6, 5), (5, 3)]
    chain.weights[1][...] = 2
    chain.biases[1][...] = 3
    assert (chain.parameters()["1.w"] == 2).all()
    assert (chain.parameters()["1.b"] == 3).all()
    dense = Dense(4, 3)
    assert list(dense.parameters()) == ["w", "b"]
    model = Sequential(dense, Sequential(Dense(3, 2, bias=False)))
    assert list(model.parameters()) == ["0.w", "0.b", "1.0.w"]
    dense.w[...] = 4
    assert (model.params[:12] == 4).all()
    assert DenseChain(SIZES, bias=False).biases == (None, None, None)


def test_views_cannot_be_replaced():
    dense = Dense(4, 3)
    with pytest.raises(AttributeError):
        dense.w = np.zeros((4, 3), np.float32)
    with pytest.raises(TypeError):
        dense.weights[0] = np.zeros((4, 3), np.float32)
    with pytest.raises(AttributeError):
        dense.params = np.zeros(15, np.float32)


def test_one_seed_gives_one_net_in_every_form_and_dtype():
    chain, *others = models().values()
    assert not any(b.any() for b in chain.biases)
    for other in others:
        assert bits(other.params) == bits(chain.params)
    for double in models("float64").values():
        assert double.params.dtype == np.float64
        assert bits(double.params.astype(np.float32)) == bits(chain.params)
    assert bits(DenseChain(SIZES, seed=8).params) != bits(DenseChain(SIZES, seed=7).params)


def test_layers_without_a_seed_start_unlike_in_a_sequential():
    model = Sequential(Dense(4, 4), Sequential(Dense(4, 4)), Sequential(Dense(4, 4)))
    first, second, third = model.parameters()["0.w"], model.parameters()["1.0.w"], model.parameters()["2.0.w"]
    assert not (first == second).any()
    assert not (second == third).any()


def test_a_sequential_keeps_seeded_and_written_weights():
    seeded, written = Dense(4, 4, seed=5), Dense(4, 4)
    expected = seeded.w.copy()
    written.w[...] = 1
    inner = Sequential(Dense(4, 4), seed=6)
    kept = inner.params.copy()
    model = Sequential(seeded, written, inner)
    assert bits(model.layers[0].w) == bits(expected)
    assert (written.w == 1).all()
    assert bits(inner.params) == bits(kept)


STATISTICS = {
    "zeros": (0.0, 0.0, None),
    "normal": (0.0, 0.05, None),
    "xavier_uniform": (0.0, math.sqrt(2 / 500), math.sqrt(6 / 500)),
    "xavier_normal": (0.0, math.sqrt(2 / 500), None),
    "he_uniform": (0.0, math.sqrt(2 / 300), math.sqrt(6 / 300)),
    "he_normal": (0.0, math.sqrt(2 / 300), None),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_initial_weights_have_the_mean_deviation_and_bounds_of_their_formula(name, dtype):
    mean, deviation, bound = STATISTICS[name]
    w = Dense(300, 200, init=name, dtype=dtype, seed=1).w
    assert w.dtype == dtype
    assert w.mean(dtype=np.float64) == pytest.approx(mean, abs=5 * deviation / math.sqrt(w.size))
    assert w.std(dtype=np.float64) == pytest.approx(deviation, rel=0.02)
    if bound:
        assert 0.99 * bound < np.abs(w).max() <= np.float32(bound)
    drawn = getattr(fg.init, name)((300, 200), np.random.Generator(np.random.PCG64(1)), dtype)
    assert bits(drawn) == bits(w)


def test_init_may_be_a_function():
    exploding = functools.partial(fg.init.normal, mean=1.0)
    assert DenseChain([100, 100], init=exploding).weights[0].mean() == pytest.approx(1, abs=0.01)
    uniform = Dense(100, 10, init=lambda shape, rng: rng.uniform(-1, 1, shape) / math.sqrt(shape[0])).w
    assert np.abs(uniform).max() <= 0.1
    message = "Dense: init must return finite numbers (4, 3) of float32, got float64 (3, 4)"
    refuses(ValueError, message, Dense, 4, 3, init=lambda shape, rng: np.zeros(shape[::-1]))
    message = "Dense: init must return finite numbers (4, 3) of float32, got float64 (4, 3)"
    refuses(ValueError, message, Dense, 4, 3, init=lambda shape, rng: np.full(shape, np.nan))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("model", models())
def test_gradients_are_central_differences(in_force, model, training):
    model = models("float64", "tanh")[model]
    x = batch("float64")
    y, backward = model.forward(x, training)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx = backward(dy).copy()
    analytic = model.grads.copy()

    def objective():
        return float((dy * model.forward(x, training)[0]).sum())

    assert_close("numerical", analytic, numerical_gradient(objective, model.params), size=10)
    assert_close("numerical", dx, numerical_gradient(objective, x), size=10)


@pytest.mark.parametrize("model", models())
def test_forward_predict_and_call_agree(in_force, dtype, model):
    model = models(dtype)[model]
    x = batch(dtype)
    y, _ = model.forward(x)
    assert_close("dense_chain", y.sum(axis=1), np.ones(len(x)))
    for other in (model(x), model.predict(x), model.predict(x, 3), model.forward(x, True)[0]):
        assert other.dtype == dtype
        assert_close("dense_chain", other, y, size=1)
    logits, _ = model.forward(x, logits=True)
    assert_close("dense_chain", model.predict(x, logits=True), logits, size=10)
    assert_close("dense_chain", model.predict(x, 3, logits=True), logits, size=10)
    exponential = np.exp(logits)
    assert_close("dense_chain", y, exponential / exponential.sum(axis=1, keepdims=True), size=1)


@pytest.mark.parametrize("model", models())
def test_predict_of_an_empty_batch_is_empty(in_force, model):
    model = models()[model]
    empty = np.empty((0, 4), np.float32)
    assert model.predict(empty).shape == model.predict(empty, 10).shape == model.forward(empty)[0].shape == (0, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter(in_force, layout):
    chain = models()["chain"]
    x = batch()
    expected = chain(x)
    changed = laid_out(x, layout)
    assert_close("dense_chain", chain(changed), expected, size=1)
    assert_close("dense_chain", chain.forward(changed)[0], expected, size=1)
    assert bits(changed) == bits(x)


def test_activations_for_each_layer(in_force):
    x = batch()
    chain = DenseChain(SIZES, ["tanh", ("clipped_relu", 0.5), "sigmoid"], seed=1)
    h = np.clip(np.tanh(x @ chain.weights[0]) @ chain.weights[1], 0, 0.5) @ chain.weights[2]
    assert_close("dense_chain", chain(x), 1 / (1 + np.exp(-h)), size=1)


def test_inputs_outputs_and_results_outside_training_are_independent(in_force):
    chain = models()["chain"]
    x = batch()
    first, backward = chain.forward(x)
    second, _ = chain.forward(x)
    assert not np.shares_memory(first, second)
    dx = backward(first)
    assert not np.shares_memory(dx, backward(first))
    assert not np.shares_memory(chain(x), chain(x))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (DenseChain([64, 64, 64, 10], output="softmax", seed=0), (8, 100, 64)),
        (fg.nn.LSTM(3, 20, 2, True, seed=0), (6, 5, 7, 3)),
    ],
    ids=["chain", "lstm"],
)
def test_any_number_of_threads_may_predict_at_once(in_force, model, shape):
    xs = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = [bits(model(x)) for x in xs]
    wrong = []

    def predict(x, result):
        with fg.use_backend(in_force):
            wrong.extend(1 for _ in range(20) if bits(model.predict(x)) != result)

    threads = [threading.Thread(target=predict, args=pair) for pair in zip(xs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("model", models())
def test_copies_are_whole_and_apart(in_force, model, copied):
    model = models()[model]
    twin = copied(model)
    x = batch()
    before = bits(model(x))
    assert bits(twin(x)) == before
    twin.parameters()["0.w" if "0.w" in twin.parameters() else "0.0.w"][...] = 0
    assert not twin.params[:24].any()
    assert bits(model(x)) == before
    y, backward = twin.forward(x)
    backward(y)
    assert twin.grads.any()
    assert bits(twin(x)) == bits(y)
    assert not model.grads.any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_layer_belongs_to_no_model(copied):
    model = Sequential(Sequential(Dense(4, 3, seed=0)), Dense(3, 2, seed=1))
    before = bits(model.params)
    small = Sequential(copied(model.layers[0]))
    assert bits(small.params) == bits(model.layers[0].params)
    small.params[...] = 0
    assert bits(model.params) == before
    # the layers of a copy are part of the copy
    message = "Sequential: layers[0] is part of a Sequential already; a layer belongs to one"
    for layer in (copied(model).layers[1], copied(model.layers[0]).layers[0]):
        refuses(ValueError, message, Sequential, layer)


def test_bad_settings_of_layers():
    refuses(ValueError, "DenseChain: sizes must have length at least 2, got 1", DenseChain, [4])
    refuses(TypeError, "DenseChain: sizes must be a list or tuple, got int", DenseChain, 4)
    refuses(ValueError, "DenseChain: sizes[1] must be an integer of at least 1, got 0", DenseChain, [4, 0, 3])
    refuses(TypeError, "DenseChain: sizes[0] must be an integer, got float", DenseChain, [4.0, 3])
    refuses(ValueError, "Dense: sizes[1] must be an integer of at least 1, got -1", Dense, 4, -1)
    refuses(
        ValueError, "DenseChain: dtype must be float32 or float64, got 'float16'", DenseChain, [4, 3], dtype="float16"
    )
    refuses(ValueError, "DenseChain: dtype must be float32 or float64, got 'f5'", DenseChain, [4, 3], dtype="f5")
    refuses(ValueError, "DenseChain: dtype must be float32 or float64, got None", DenseChain, [4, 3], dtype=None)
    known = (
        "zeros, constant, normal, truncated_normal, uniform, fan_in_uniform, xavier_uniform, xavier_normal, "
        "he_uniform, he_normal, lecun_uniform, lecun_normal, orthogonal"
    )
    refuses(ValueError, f"DenseChain: init must be one of {known}; got 'glorot'", DenseChain, [4, 3], init="glorot")
    refuses(ValueError, "DenseChain: activations must have length 1, got 2", DenseChain, [4, 3], ["relu", "relu"])
    message = "DenseChain: output must be left out where activation is a list, whose last entry it is"
    refuses(ValueError, message, DenseChain, [4, 3], ["relu"], "softmax")
    with pytest.raises(ValueError, match=r"DenseChain: output must be one of identity, relu, .*; got 'max'"):
        DenseChain([4, 3], output="max")


@pytest.mark.parametrize(("seed", "kind"), [("x", TypeError), (1.5, TypeError), (-1, ValueError)])
def test_bad_seeds(seed, kind):
    makers = {
        "Dense": lambda: Dense(4, 3, seed=seed),
        "Conv2d": lambda: fg.nn.Conv2d(3, 4, 3, seed=seed),
        "LSTM": lambda: fg.nn.LSTM(3, 4, seed=seed),
        "GRU": lambda: fg.nn.GRU(3, 4, seed=seed),
        "Dropout": lambda: fg.nn.Dropout(0.5, seed=seed),
        "Sequential": lambda: Sequential(Dense(4, 3), seed=seed),
        "Residual": lambda: fg.nn.Residual(Dense(3, 3), seed=seed),
        "Trainer": lambda: fg.Trainer(Dense(4, 3), "mse", seed=seed),
    }
    for op, make in makers.items():
        refuses(kind, f"{op}: seed must be an integer of at least 0, got {seed!r}", make)


def test_bad_layers_of_a_sequential():
    refuses(ValueError, "Sequential: layers must have length at least 1, got 0", Sequential)
    refuses(TypeError, "Sequential: layers[1] must be a layer of fastgrad.nn, got str", Sequential, Dense(4, 3), "relu")
    refuses(ValueError, "Sequential: layers[1] must take 3 columns, got 4", Sequential, Dense(4, 3), Dense(4, 3))
    message = "Sequential: layers[1] must be float32, got float64"
    refuses(TypeError, message, Sequential, Dense(4, 3), Dense(3, 3, dtype="float64"))
    message = "Sequential: layers[{}] is part of a Sequential already; a layer belongs to one"
    layer = Dense(3, 3)
    refuses(ValueError, message.format(1), Sequential, layer, layer)
    Sequential(layer)
    refuses(ValueError, message.format(0), Sequential, layer)


def test_layers_stay_free_where_a_sequential_fails():
    draws = []

    def init(shape, rng):
        draws.append(shape)
        # the fourth is that of the second layer for the Sequential
        if len(draws) == 4:
            raise RuntimeError("no weights")
        return rng.normal(size=shape)

    layers = Dense(4, 3, init=init), Dense(3, 2, init=init)
    with pytest.raises(RuntimeError, match=r"^no weights$"):
        Sequential(*layers)
    model = Sequential(*layers)
    assert len(draws) == 6
    assert all(layer.w.all() for layer in model.layers)


def test_bad_input_of_models():
    chain = models()["chain"]
    x = batch()
    refuses(ValueError, "DenseChain.predict: x must be (N, C) = (_, 4), got (8, 3)", chain.predict, x[:, :3])
    refuses(ValueError, "DenseChain: x must be (N, C) = (_, 4), got (4,)", chain.forward, x[0])
    message = "DenseChain.predict: x must be float32 like the model, got float64; astype(np.float32), or dtype='float64' for the model"
    refuses(TypeError, message, chain.predict, x.astype(np.float64))
    message = "DenseChain.predict: x must be a NumPy array, got list; np.asarray(value, dtype) makes one"
    refuses(TypeError, message, chain.predict, x.tolist())
    refuses(TypeError, message, chain.predict, x.tolist(), 2)
    message = "DenseChain.predict: batch_size must be an integer of at least 1, got 0"
    refuses(ValueError, message, chain.predict, x, 0)


@pytest.mark.parametrize("model", models())
def test_saved_and_loaded(tmp_path, dtype, model):
    model = models(dtype)[model]
    fg.save(tmp_path / "net.safetensors", model)
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
    values = model.params.copy()
    model.params[...] = 0
    fg.load(str(tmp_path / "net.safetensors"), model)
    assert bits(model.params) == bits(values)


def test_a_saved_file_is_read_by_safetensors_and_by_the_same_net_in_another_form(tmp_path):
    from safetensors.numpy import load_file

    nets = models()
    fg.save(tmp_path / "net", nets["chain"])
    loaded = load_file(tmp_path / "net")
    for name, array in nets["chain"].parameters().items():
        assert bits(loaded[name]) == bits(array)
    nets["sequential"].params[...] = 0
    fg.load(tmp_path / "net", nets["sequential"])
    assert bits(nets["sequential"].params) == bits(nets["chain"].params)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([4, 6], "load: {}: the file has no 1.w, 1.b"),
        ([4, 6, 3, 2], "load: {}: the model has no 2.b, 2.w"),
        ([4, 5, 3], "load: {}: 0.w must be (4, 6), got (4, 5)"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_failed_load_changes_nothing(tmp_path, sizes, message):
    model = DenseChain([4, 6, 3])
    before = bits(model.params)
    path = tmp_path / "net"
    fg.save(path, DenseChain(sizes))
    refuses(ValueError, message.format(path), fg.load, path, model)
    assert bits(model.params) == before


def test_broken_and_missing_files(tmp_path):
    model = DenseChain([4, 3])
    before = bits(model.params)
    path = tmp_path / "net"
    fg.save(path, model)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        fg.load(path, model)
    with pytest.raises(FileNotFoundError):
        fg.load(tmp_path / "none", model)
    with pytest.raises(FileNotFoundError):
        fg.save(tmp_path / "none" / "net", model)
    message = "save: model must be a layer of fastgrad.nn or a Trainer, got dict"
    refuses(TypeError, message, fg.save, path, {})
    assert bits(model.params) == before


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net"
    fg.save(path, DenseChain([4, 3]))
    before = path.read_bytes()

    write = Path.write_bytes

    def fails(file, content):
        write(file, content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="disk full"):
        fg.save(path, DenseChain([4, 3], seed=1))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda nn: nn.Dropout(0.0),
        lambda nn: nn.Dropout(0.5),
        lambda nn: nn.Flatten(),
        lambda nn: nn.MaxPool2d(1),
        lambda nn: nn.AvgPool2d(1),
        lambda nn: nn.Sequential(nn.Dropout(0.0), nn.Flatten()),
        lambda nn: nn.Residual(nn.Dropout(0.0)),
        lambda nn: nn.Conv2d(2, 2, 1),
        lambda nn: nn.BatchNorm(2),
        lambda nn: nn.LayerNorm(2),
    ],
    ids=[
        "dropout_0",
        "dropout",
        "flatten",
        "max_pool",
        "avg_pool",
        "sequential",
        "residual",
        "conv",
        "batch_norm",
        "layer_norm",
    ],
)
def test_outputs_and_gradients_share_no_memory_with_what_was_given(in_force, make, training):
    x = np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype(np.float32)
    layer = make(fg.nn)
    y, backward = layer.forward(x, training)
    dy = np.ones_like(y)
    dx = backward(dy)
    for result in (y, dx, layer.predict(x), layer.predict(x, 100), layer(x)):
        assert not any(np.shares_memory(result, a) for a in (x, dy))
    assert not np.shares_memory(y, dx)
