"""The LSTM layer against PyTorch: directions, layers, projections, lengths and states; pools, dropout, copies, bad input."""

import copy
import pickle

import numpy as np
import pytest
from arrays import LAYOUTS, assert_is_gradient, bits, laid_out, with_threads
from error_messages import refuses
from lstms import lstm_layer, random_states, sequences
from tolerances import assert_close

import fastgrad as fg
from fastgrad.nn import LSTM, Dense, Sequential

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]

# C 3, H 5
NETS = {
    "one": {},
    "layers": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "both": {"num_layers": 2, "bidirectional": True},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
}
TORCH = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b": "bias_ih", "w_proj": "weight_hr"}
POOLS = [None, "last", "mean"]
LENGTHS = [None, [4, 0, 7, 1]]


def torch_name(name):
    layer, *way, array = name.split(".")
    return f"{TORCH[array]}_l{layer}{'_reverse' if way else ''}"


def torch_lstm(torch, layer):
    """The torch.nn.LSTM of a layer, in float64."""
    options = {"num_layers": layer.num_layers, "bidirectional": layer.bidirectional, "proj_size": layer.proj_size}
    twin = torch.nn.LSTM(layer.input_size, layer.hidden_size, batch_first=True, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter[...] = 0 if name.startswith("bias_hh") else parameter
        for name, array in layer.parameters().items():
            getattr(twin, torch_name(name))[...] = torch.tensor(array.T.astype(np.float64))
    return twin


@pytest.mark.pairwise
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 2, 7, 1]], ids=["full", "ragged"])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_outputs_states_and_gradients_are_those_of_pytorch(in_force, dtype, net, states, lengths, training, torch):
    layer = lstm_layer(dtype, **NETS[net])
    x, state = sequences(dtype), random_states(layer) if states else None
    y, backward = layer.forward(x, training, lengths=lengths, state=state)
    dy = np.random.default_rng(3).standard_normal(y.shape).astype(dtype)
    dx = backward(dy)

    twin = torch_lstm(torch, layer)
    tx = torch.tensor(x.astype(np.float64), requires_grad=True)
    given = None if state is None else tuple(torch.tensor(a.astype(np.float64)) for a in state)
    packed = torch.nn.utils.rnn.pack_padded_sequence(tx, lengths or [7] * 4, batch_first=True, enforce_sorted=False)
    ty, ends = twin(packed, given)
    ty, _ = torch.nn.utils.rnn.pad_packed_sequence(ty, batch_first=True, total_length=7)
    ty.backward(torch.tensor(dy.astype(np.float64)))

    assert_close("lstm", y, ty.detach().numpy(), size=1)
    assert_close("lstm", dx, tx.grad.numpy(), size=5)
    for name, gradient in layer.gradients().items():
        expected = getattr(twin, torch_name(name)).grad.numpy().T
        assert_close("lstm", gradient, expected, size=np.abs(expected).max(), terms=7)
    y, found = layer.run(x, state, lengths)
    assert_close("lstm", y, ty.detach().numpy(), size=1)
    for end, expected in zip(found, ends, strict=True):
        assert end.dtype == dtype
        assert_close("lstm", end, expected.detach().numpy(), size=1)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=["full", "ragged"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("net", ["one", "projected"])
def test_gradients_are_central_differences(in_force, net, pool, lengths, training):
    layer = lstm_layer(peephole=True, pool=pool, **NETS[net])
    x, state = sequences(), random_states(layer)
    y, backward = layer.forward(x, training, lengths=lengths, state=state)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx = backward(dy).copy()
    analytic = layer.grads.copy()

    def objective():
        return float((dy * layer.forward(x, training, lengths=lengths, state=state)[0]).sum())

    assert_is_gradient(analytic, objective, layer.params)
    assert_is_gradient(dx, objective, x)


def flipped(x, lengths):
    """Each sequence's own steps in the reverse order."""
    y = x.copy()
    for i, n in enumerate(lengths or [x.shape[1]] * len(x)):
        y[i, :n] = x[i, :n][::-1]
    return y


@pytest.mark.parametrize("lengths", LENGTHS, ids=["full", "ragged"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("net", ["one", "layers", "projected"])
def test_reverse_is_the_layer_over_sequences_in_the_reverse_order(in_force, dtype, net, pool, lengths):
    options = {**NETS[net], "bidirectional": False, "peephole": True, "pool": pool}
    layer, twin = lstm_layer(dtype, reverse=True, **options), lstm_layer(dtype, **options)
    assert layer.parameters().keys() == twin.parameters().keys()
    assert bits(layer.params) == bits(twin.params)
    x, state = sequences(dtype), random_states(layer)
    y, backward = layer.forward(x, True, lengths=lengths, state=state)
    expected, twin_backward = twin.forward(flipped(x, lengths), True, lengths=lengths, state=state)
    dy = np.random.default_rng(4).standard_normal(y.shape).astype(dtype)
    dx = backward(dy)
    twin_dx = twin_backward(dy if pool else flipped(dy, lengths))
    assert_close("lstm", y, expected if pool else flipped(expected, lengths), size=1)
    assert_close("lstm", dx, flipped(twin_dx, lengths), size=5)
    assert_close("lstm", layer.grads, twin.grads, size=np.abs(twin.grads).max(), terms=7)
    ends, twin_ends = layer.run(x, state, lengths)[1], twin.run(flipped(x, lengths), state, lengths)[1]
    for end, twin_end in zip(ends, twin_ends, strict=True):
        assert_close("lstm", end, twin_end, size=1)


def test_reverse_reads_ahead_and_refuses_windows_and_a_second_direction(numpy_backend):
    message = "LSTM: reverse is for one direction, and bidirectional has both"
    refuses(ValueError, message, LSTM, 3, 5, bidirectional=True, reverse=True)
    layer = LSTM(3, 5, reverse=True, seed=0)
    both = LSTM(3, 5, bidirectional=True, seed=0)
    for name in ("w_ih", "w_hh", "b"):
        both.parameters()[f"0.reverse.{name}"][...] = layer.parameters()[f"0.{name}"]
    x = sequences("float32")
    assert_close("lstm", layer.predict(x), both.predict(x)[..., 5:], size=1)
    assert bits(copy.deepcopy(layer).predict(x)) == bits(pickle.loads(pickle.dumps(layer)).predict(x))
    assert bits(copy.deepcopy(layer).predict(x)) == bits(layer.predict(x))
    message = "Trainer.fit: window is for models with an LSTM or a GRU that runs forwards only and pools nothing"
    trainer = fg.Trainer(Sequential(layer, Dense(5, 2)))
    refuses(ValueError, message, trainer.fit, x, np.zeros((4, 7), np.int64), window=3)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("lengths", LENGTHS, ids=["full", "ragged"])
@pytest.mark.parametrize("net", NETS)
def test_pools_are_of_the_sequences_own_steps(in_force, dtype, net, lengths):
    every, last, mean = (lstm_layer(dtype, pool=pool, **NETS[net]) for pool in POOLS)
    x = sequences(dtype)
    y, (h_n, _) = every.run(x, lengths=lengths)
    ends = lengths or [7] * 4
    for n, end in enumerate(ends):
        assert not y[n, end:].any()
        expected = y[n, :end].astype(np.float64).mean(axis=0) if end else np.zeros(y.shape[2])
        assert_close("lstm", mean.predict(x, lengths=lengths)[n], expected, size=1)
        steps = y[n, max(end - 1, 0)], y[n, 0]
        width = every.n_out // every.directions
        found = last.predict(x, lengths=lengths)[n]
        for way in range(every.directions):
            part = slice(way * width, (way + 1) * width)
            assert bits(found[part]) == bits(steps[way][part]) == bits(h_n[way - every.directions, n])


def test_names_shapes_and_sizes():
    layer = lstm_layer(num_layers=2, bidirectional=True, proj_size=2, peephole=True)
    shapes = {name: a.shape for name, a in layer.parameters().items()}
    first = {"w_ih": (3, 20), "w_hh": (2, 20), "b": (20,), "peephole": (3, 5), "w_proj": (5, 2)}
    second = {**first, "w_ih": (4, 20)}
    ways = {"0.": first, "0.reverse.": first, "1.": second, "1.reverse.": second}
    assert shapes == {way + name: shape for way, arrays in ways.items() for name, shape in arrays.items()}
    assert (layer.n_in, layer.n_out) == (3, 4)
    assert list(lstm_layer().parameters()) == ["0.w_ih", "0.w_hh", "0.b"]
    assert lstm_layer().n_out == 5
    for arrays, flat in ((layer.parameters(), layer.params), (layer.gradients(), layer.grads)):
        assert bits(np.concatenate([a.ravel() for a in arrays.values()])) == bits(flat)
        assert all(np.shares_memory(a, flat) for a in arrays.values())


def test_initial_values_are_uniform_and_the_forget_bias_is_added(dtype):
    layer = LSTM(40, 64, 2, True, proj_size=16, peephole=True, dtype=dtype, seed=3)
    for array in layer.parameters().values():
        assert 0.9 / 8 < np.abs(array).max() <= 1 / 8
        assert array.mean() == pytest.approx(0, abs=5 / 8 / np.sqrt(3 * array.size))
    biased = LSTM(40, 64, 2, True, proj_size=16, peephole=True, forget_bias=1.5, dtype=dtype, seed=3)
    for name, array in biased.parameters().items():
        expected = layer.parameters()[name].copy()
        if name.endswith(".b"):
            expected[64:128] += 1.5
        assert bits(array) == bits(expected)
    assert bits(LSTM(40, 64, seed=4).params) != bits(LSTM(40, 64, seed=3).params)
    unseeded = Sequential(LSTM(4, 4), LSTM(4, 4), seed=3).parameters()
    assert not (unseeded["0.0.w_ih"] == unseeded["1.0.w_ih"]).any()


@pytest.mark.emulated(0)
@pytest.mark.parametrize("net", NETS)
def test_forward_predict_run_and_call_agree(in_force, dtype, net):
    layer, x = lstm_layer(dtype, **NETS[net]), sequences(dtype)
    for lengths in LENGTHS:
        y, _ = layer.forward(x, lengths=lengths)
        found = [
            layer.predict(x, lengths=lengths),
            layer.predict(x, 3, lengths=lengths),
            layer.run(x, lengths=lengths)[0],
            layer.forward(x, True, lengths=lengths)[0],
        ]
        for other in found if lengths else [*found, layer(x)]:
            assert other.dtype == dtype
            assert_close("lstm", other, y, size=1)


@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("net", ["one", "layers"])
def test_windows_that_pass_their_state_on_are_the_whole_sequence(in_force, dtype, net, window):
    layer, x = lstm_layer(dtype, **NETS[net]), sequences(dtype)
    lengths = np.array([4, 0, 7, 1])
    for ends in (None, lengths):
        expected, last = layer.run(x, lengths=ends)
        state, found = None, []
        for first in range(0, 7, window):
            left = None if ends is None else np.clip(ends - first, 0, min(window, 7 - first))
            y, state = layer.run(x[:, first : first + window], state, left)
            found.append(y)
        assert_close("lstm", np.concatenate(found, axis=1), expected, size=1)
        for a, b in zip(state, last, strict=True):
            assert_close("lstm", a, b, size=1)


@pytest.mark.emulated(0)
def test_a_sequential_runs_from_the_states_of_its_layers(in_force):
    model = Sequential(LSTM(3, 5, 2), Dense(5, 4, "tanh"), LSTM(4, 2), Dense(2, 3, "softmax"), seed=1)
    x = sequences("float32")
    expected = model.predict(x)
    state, found = None, []
    for t in range(7):
        y, state = model.run(x[:, t : t + 1], state)
        found.append(y)
    assert_close("lstm", np.concatenate(found, axis=1), expected, size=1)
    assert [None if s is None else s[0].shape for s in state] == [(2, 4, 5), None, (1, 4, 2), None]


def test_states_begin_as_zeros_and_are_not_written(in_force):
    layer, x = lstm_layer(num_layers=2), sequences()
    zeros = tuple(np.zeros_like(a) for a in random_states(layer))
    assert bits(layer.run(x, zeros)[0]) == bits(layer.predict(x))
    state = random_states(layer)
    before = [bits(a) for a in (*state, x)]
    _, ends = layer.run(x, state)
    layer.forward(x, True, state=state)[1](layer.predict(x))
    assert [bits(a) for a in (*state, x)] == before
    assert not any(np.shares_memory(a, b) for a in ends for b in state)


@pytest.mark.parametrize("shape", [(0, 7, 3), (4, 0, 3), (0, 0, 3)])
@pytest.mark.parametrize("pool", POOLS)
def test_no_sequences_and_no_steps(in_force, pool, shape):
    layer = lstm_layer(num_layers=2, bidirectional=True, pool=pool)
    y, backward = layer.forward(np.zeros(shape))
    assert y.shape == ((shape[0], 10) if pool else (*shape[:2], 10))
    assert not y.any()
    assert backward(np.ones_like(y)).shape == shape
    assert not layer.grads.any()
    assert layer.predict(np.zeros(shape), 2).shape == y.shape


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS)
def test_layouts_do_not_matter_and_inputs_are_not_written(in_force, pool, layout):
    layer = lstm_layer(num_layers=2, bidirectional=True, pool=pool)
    x, state = sequences(), random_states(layer)
    y, backward = layer.forward(x, state=state)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    expected = [y, backward(dy), layer.grads.copy()]
    changed = [laid_out(a, layout) for a in (x, *state, dy)]
    before = [bits(a) for a in changed]
    y, backward = layer.forward(changed[0], state=changed[1:3])
    for actual, wanted in zip([y, backward(changed[3]), layer.grads], expected, strict=True):
        assert_close("lstm", actual, wanted, size=10)
    assert [bits(a) for a in changed] == before


def test_backward_may_be_called_again_and_results_outside_training_are_independent(in_force):
    layer, x = lstm_layer(num_layers=2, bidirectional=True), sequences()
    y, backward = layer.forward(x)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    first = backward(dy)
    before, gradient = bits(first), bits(layer.grads)
    other, _ = layer.forward(x + 1)
    second = backward(dy)
    assert bits(first) == bits(second) == before
    assert bits(layer.grads) == gradient
    assert not np.shares_memory(y, other)
    assert not np.shares_memory(first, second)


@pytest.mark.emulated(0)
def test_dropout_is_for_training_alone_and_from_the_seed(in_force):
    x = sequences("float32")
    layer, same, other = (LSTM(3, 5, 2, dropout=0.5, seed=seed) for seed in (1, 1, 2))
    other.params[...] = layer.params
    plain = LSTM(3, 5, 2, seed=1)
    assert bits(plain.params) == bits(layer.params)
    for found in (layer.predict(x), layer.forward(x)[0], layer.run(x)[0]):
        assert bits(found) == bits(plain.predict(x))
    runs = [[bits(net.forward(x, True)[0]) for _ in range(3)] for net in (layer, same, other)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert len(set(runs[0])) == 3
    twin = copy.deepcopy(layer)
    assert bits(twin.forward(x, True)[0]) == bits(layer.forward(x, True)[0])
    # two layers of a Sequential without seeds draw unlike masks
    first, second = Sequential(LSTM(3, 3, 2, dropout=0.5), LSTM(3, 3, 2, dropout=0.5), seed=1)._generators()
    assert first.random() != second.random()


def test_dropout_is_the_same_on_any_number_of_threads(cpu):
    x = sequences("float32", 64, 50)

    def found():
        layer = LSTM(3, 40, 2, True, dropout=0.5, seed=1)
        y, backward = layer.forward(x, True)
        return bits(y), bits(backward(y)), bits(layer.grads)

    first, *others = with_threads(found)
    assert all(other == first for other in others)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_through_dropout_are_central_differences(in_force, pool):
    layer = lstm_layer(num_layers=2, bidirectional=True, dropout=0.5, pool=pool)
    x, before = sequences(), layer._rng.bit_generator.state

    def forward():
        layer._rng.bit_generator.state = before
        return layer.forward(x, True, lengths=[4, 0, 7, 1])

    y, backward = forward()
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx = backward(dy).copy()
    assert_is_gradient(dx, lambda: float((dy * forward()[0]).sum()), x)


# a BLAS does not promise that a row has its bits in whatever number of rows
@pytest.mark.host
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(in_force):
    if in_force == "numpy":
        pytest.skip("NumPy's products depend on the number of rows")
    x = sequences("float32", 9, 30)
    lengths = np.array([3, 30, 0, 7, 29, 30, 1, 16, 8])
    for pool in POOLS:
        layer = LSTM(3, 20, 2, True, pool=pool, seed=1)
        together = layer.predict(x, lengths=lengths)
        for n, end in enumerate(lengths):
            alone = layer.predict(x[n : n + 1, :end])[0]
            assert bits(alone) == bits(together[n] if pool else together[n, :end])


@pytest.mark.emulated(0)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("whole", [False, True])
def test_copies_are_whole_and_apart(in_force, whole, copied):
    layer = lstm_layer(num_layers=2, bidirectional=True, peephole=True, pool="mean")
    model = Sequential(layer, Dense(10, 3, dtype="float64")) if whole else layer
    x = sequences()
    model.forward(x, True)
    twin = copied(model)
    before = bits(model(x))
    assert bits(twin(x)) == before
    y, backward = twin.forward(x, True)
    backward(y)
    assert twin.grads.any()
    assert not model.grads.any()
    twin.parameters()["0.0.w_hh" if whole else "0.w_hh"][...] = 0
    assert bits(twin(x)) != before
    assert bits(model(x)) == before


def test_saved_and_loaded(tmp_path, dtype):
    layer = lstm_layer(dtype, num_layers=2, bidirectional=True, proj_size=2, peephole=True)
    fg.save(tmp_path / "layer", layer)
    values = layer.params.copy()
    layer.params[...] = 0
    fg.load(tmp_path / "layer", layer)
    assert bits(layer.params) == bits(values)
    message = f"load: {tmp_path / 'layer'}: the model has no 0.reverse.b, 0.reverse.peephole"
    with pytest.raises(ValueError, match=message):
        fg.load(tmp_path / "layer", lstm_layer(dtype, num_layers=2, proj_size=2, peephole=True))


def test_bad_settings():
    refuses(ValueError, "LSTM: input_size must be an integer of at least 1, got 0", LSTM, 0, 4)
    refuses(TypeError, "LSTM: hidden_size must be an integer, got float", LSTM, 4, 4.0)
    refuses(ValueError, "LSTM: num_layers must be an integer of at least 1, got 0", LSTM, 4, 4, 0)
    refuses(ValueError, "LSTM: dropout must be at least 0 and below 1, got 1", LSTM, 4, 4, 2, dropout=1)
    refuses(ValueError, "LSTM: dropout is between layers and needs num_layers of at least 2", LSTM, 4, 4, dropout=0.1)
    refuses(ValueError, "LSTM: proj_size must be an integer of at least 0, got -1", LSTM, 4, 4, proj_size=-1)
    refuses(ValueError, "LSTM: forget_bias must be at least 0 and finite, got nan", LSTM, 4, 4, forget_bias=np.nan)
    refuses(ValueError, "LSTM: pool must be one of last, mean; got 'max'", LSTM, 4, 4, pool="max")
    refuses(ValueError, "LSTM: dtype must be float32 or float64, got 'int8'", LSTM, 4, 4, dtype="int8")
    message = "Sequential: layers[1] must take rows (N, C), for a layer before it pools sequences"
    refuses(ValueError, message, Sequential, LSTM(4, 4, pool="last"), LSTM(4, 4))
    refuses(
        ValueError, "Sequential: layers[1] must take 8 columns, got 4", Sequential, LSTM(4, 4, 1, True), Dense(4, 4)
    )


def test_bad_input_changes_nothing(in_force):
    layer, x = lstm_layer(num_layers=2, bidirectional=True), sequences()
    before = bits(layer.params), bits(layer.grads)
    for call in (layer.forward, layer.predict, layer.run):
        refuses(ValueError, "LSTM: x must be (N, T, C) = (_, _, 3), got (4, 7)", call, x[:, :, 0])
        refuses(ValueError, "LSTM: x must be (N, T, C) = (_, _, 3), got (4, 7, 2)", call, x[:, :, :2])
        message = (
            "LSTM: x must be float64 like the model, got float32; astype(np.float64), or dtype='float32' for the model"
        )
        refuses(TypeError, message, call, x.astype(np.float32))
        refuses(ValueError, "LSTM: lengths must be integers (N,) = (4,), got (3,)", call, x, lengths=[1, 2, 3])
        refuses(ValueError, "LSTM: lengths must be in 0..7, got 8 at index 1", call, x, lengths=[1, 8, 3, 2])
    message = "LSTM.predict: lengths must be integers (N,) = (4,), got (5,)"
    refuses(ValueError, message, layer.predict, x, 3, lengths=[1] * 5)
    h, c = random_states(layer)
    for call in (layer.forward, layer.run):
        message = "LSTM: state[0] must be (layers, N, P) = (4, 4, 5), got (2, 4, 5)"
        refuses(ValueError, message, call, x, state=(h[:2], c))
        message = "LSTM: state[1] must be (layers, N, H) = (4, 4, 5), got (4, 3, 5)"
        refuses(ValueError, message, call, x, state=(h, c[:, :3]))
        refuses(ValueError, "LSTM: state must have length 2, got 1", call, x, state=[h])
        refuses(TypeError, "LSTM: state must be a list or tuple, got ndarray", call, x, state=h)
    _, backward = layer.forward(x)
    refuses(
        ValueError, "LSTM: dy must be like the output = (4, 7, 10), got (4, 7, 5)", backward, x[:, :, :1].repeat(5, 2)
    )
    message = "LSTM: dy must be a NumPy array, got NoneType; np.asarray(value, dtype) makes one"
    refuses(TypeError, message, backward, None)
    assert (bits(layer.params), bits(layer.grads)) == before
    rows = Sequential(Dense(3, 2))
    message = "Sequential: lengths and state are for models with an LSTM or a GRU"
    refuses(ValueError, message, rows.forward, x[:, 0].astype(np.float32), lengths=[1] * 4)
    refuses(ValueError, message, rows.run, x[:, 0].astype(np.float32), [None])
    model = Sequential(LSTM(3, 2), Dense(2, 2))
    refuses(ValueError, "Sequential: state must have length 2, got 1", model.run, x.astype(np.float32), [None])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2, "peephole": True}])
@pytest.mark.parametrize("pool", [None, "last", "mean"])
@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 0, 3), (3, 4, 3)], ids=["no_sequence", "no_step", "lengths_0"])
def test_of_no_steps_states_stay_and_gradients_are_zero(in_force, shape, pool, options):
    """As in PyTorch of no sequence; PyTorch refuses sequences of no step."""
    layer = LSTM(3, 5, pool=pool, seed=0, **options)
    n, width = shape[0], layer.n_out // layer.directions
    state = tuple(
        np.full((layer.num_layers * layer.directions, n, w), value, np.float32) for w, value in ((width, 2), (5, 3))
    )
    lengths = np.zeros(n, np.int64) if shape[1] == 4 else None
    x = np.ones(shape, np.float32)
    for training in (False, True):
        layer.grads[...] = 9
        y, backward = layer.forward(x, training, lengths=lengths, state=state)
        assert y.shape == ((*shape[:2], layer.n_out) if pool is None else (n, layer.n_out))
        assert (y == (2 if pool == "last" else 0)).all()
        dx = backward(np.ones_like(y))
        assert dx.shape == shape
        assert not dx.any()
        assert not layer.grads.any()
    y, ends = layer.run(x, state, lengths)
    for found, given in zip(ends, state, strict=True):
        np.testing.assert_array_equal(found, given)
    for size in (None, 2):
        np.testing.assert_array_equal(layer.predict(x, size, lengths=lengths), np.zeros_like(y))
