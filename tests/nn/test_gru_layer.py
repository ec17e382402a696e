"""The GRU layer against PyTorch: directions, layers, lengths and states; central differences, training, copies, bad input."""

import copy
import pickle

import numpy as np
import pytest
from arrays import assert_is_gradient, bits
from error_messages import refuses
from tolerances import assert_close

import fastgrad as fg
from fastgrad.nn import GRU, Dense, Sequential

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]

# C 3, H 5
NETS = {
    "one": {},
    "layers": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "both": {"num_layers": 2, "bidirectional": True},
}


def gru_layer(dtype="float64", seed=1, **options):
    """A small layer; options are those of fg.nn.GRU."""
    return GRU(3, 5, dtype=dtype, seed=seed, **options)


def sequences(dtype="float64"):
    """A batch for gru_layer."""
    return np.random.default_rng(2).standard_normal((4, 7, 3)).astype(dtype)


def random_state(layer):
    rows = layer.num_layers * layer.directions
    return np.random.default_rng(6).standard_normal((rows, 4, 5)).astype(layer.dtype)


def torch_gru(torch, layer):
    """The torch.nn.GRU of a layer, in float64."""
    options = {"num_layers": layer.num_layers, "bidirectional": layer.bidirectional}
    twin, parameters = torch.nn.GRU(3, 5, batch_first=True, dtype=torch.float64, **options), layer.parameters()
    with torch.no_grad():
        for name, array in parameters.items():
            number, *way, kind = name.split(".")
            suffix, values = f"_l{number}{'_reverse' if way else ''}", torch.tensor(array.T.astype(np.float64))
            if kind == "b_hn":
                getattr(twin, "bias_hh" + suffix)[...] = torch.cat([torch.zeros(10, dtype=torch.float64), values])
            else:
                theirs = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b": "bias_ih"}[kind]
                getattr(twin, theirs + suffix)[...] = values
    return twin


@pytest.mark.pairwise
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 2, 7, 1]], ids=["full", "ragged"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_outputs_states_and_gradients_are_those_of_pytorch(in_force, dtype, net, with_state, lengths, training, torch):
    layer = gru_layer(dtype, **NETS[net])
    x, state = sequences(dtype), random_state(layer) if with_state else None
    y, backward = layer.forward(x, training, lengths=lengths, state=state)
    dy = np.random.default_rng(3).standard_normal(y.shape).astype(dtype)
    dx = backward(dy)
    _, end = layer.run(x, state, lengths=lengths)

    twin, ends = torch_gru(torch, layer), torch.tensor(lengths or [7] * 4)
    theirs = torch.tensor(x.astype(np.float64), requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(theirs, ends, batch_first=True, enforce_sorted=False)
    their_y, their_end = twin(packed, None if state is None else torch.tensor(state.astype(np.float64)))
    their_y, _ = torch.nn.utils.rnn.pad_packed_sequence(their_y, batch_first=True, total_length=7)
    their_y.backward(torch.tensor(dy.astype(np.float64)))
    assert_close("gru", y, their_y.detach().numpy(), size=1)
    assert_close("gru", end, their_end.detach().numpy(), size=1)
    assert_close("gru", dx, theirs.grad.numpy(), size=float(theirs.grad.abs().max()))
    for name, gradient in layer.gradients().items():
        number, *way, kind = name.split(".")
        theirs_name = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b": "bias_ih", "b_hn": "bias_hh"}[kind]
        expected = getattr(twin, f"{theirs_name}_l{number}{'_reverse' if way else ''}").grad.numpy().T
        expected = expected[10:] if kind == "b_hn" else expected
        assert_close("gru", gradient, expected, size=np.abs(expected).max(), terms=28)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("pool", [None, "last", "mean"])
@pytest.mark.parametrize("options", [{"reset_after": False, "num_layers": 2, "bidirectional": True}, {"reverse": True}])
def test_gradients_are_central_differences(in_force, options, pool):
    layer, x = gru_layer(pool=pool, **options), sequences()
    y, backward = layer.forward(x, True, lengths=[4, 0, 7, 1])
    dy = np.random.default_rng(3).standard_normal(y.shape)
    dx = backward(dy)
    gradients = layer.grads.copy()

    def value():
        return float((layer.predict(x, lengths=[4, 0, 7, 1]) * dy).sum())

    assert_is_gradient(dx, value, x)
    assert_is_gradient(gradients, value, layer.params)


def test_windows_that_pass_their_state_on_are_the_whole_sequence(in_force, dtype):
    layer, x = gru_layer(dtype, num_layers=2), sequences(dtype)
    whole, end = layer.run(x)
    first, state = layer.run(x[:, :3])
    second, state = layer.run(x[:, 3:], state)
    assert_close("gru", np.concatenate([first, second], 1), whole, size=1)
    assert_close("gru", state, end, size=1)


def test_training_takes_the_gates_memory_and_makes_the_same_gradients(in_force, dtype):
    for reset_after in (True, False):
        layer, x = gru_layer(dtype, reset_after=reset_after), sequences(dtype)
        found = []
        for training in (False, True):
            y, backward = layer.forward(x, training, lengths=[4, 0, 7, 1])
            found.append([bits(backward(np.ones_like(y))), bits(layer.grads)])
        assert found[0] == found[1]
        with pytest.raises(RuntimeError, match="it runs once for each forward in training"):
            backward(np.ones_like(y))


def test_a_sequential_with_a_gru_learns_in_windows_and_with_lengths(cpu):
    """Whether the first value is above 0."""
    x = np.random.default_rng(0).standard_normal((64, 9, 3)).astype(np.float32)
    net = Sequential(GRU(3, 16, pool="last"), Dense(16, 2), seed=0)
    trainer = fg.Trainer(net, "cross_entropy", fg.optim.Adam(1e-2), seed=0)
    history = trainer.fit(x, (x[:, 0, 0] > 0).astype(np.int64), lengths=np.full(64, 5), epochs=30, batch_size=16)
    assert history.loss[-1] < 0.3 * history.loss[0]
    steps = Sequential(GRU(3, 16), Dense(16, 2), seed=0)
    trainer = fg.Trainer(steps, "cross_entropy", fg.optim.Adam(1e-2), seed=0)
    history = trainer.fit(x, (x[:, :, 0] > 0).astype(np.int64), window=4, epochs=20, batch_size=16)
    assert history.loss[-1] < 0.5 * history.loss[0]


def test_names_shapes_and_dropout(dtype):
    layer = gru_layer(dtype, num_layers=2, bidirectional=True, dropout=0.5)
    shapes = {name: array.shape for name, array in layer.parameters().items()}
    first = {"0.w_ih": (3, 15), "0.w_hh": (5, 15), "0.b": (15,), "0.b_hn": (5,), "0.reverse.w_ih": (3, 15)}
    assert first.items() <= shapes.items()
    assert shapes["1.reverse.w_ih"] == (10, 15)
    assert "0.b_hn" not in gru_layer(reset_after=False).parameters()
    limit = 1 / np.sqrt(5)
    assert 0.8 * limit < np.abs(layer.params).max() <= limit
    x = sequences(dtype)
    assert bits(layer.forward(x, True)[0]) != bits(layer.forward(x, False)[0])
    assert bits(layer.forward(x, False)[0]) == bits(layer.predict(x))


def test_saved_loaded_and_copied(tmp_path, dtype):
    layer, x = gru_layer(dtype, num_layers=2, reset_after=False), sequences(dtype)
    fg.save(tmp_path / "gru.npz", layer)
    other = gru_layer(dtype, seed=5, num_layers=2, reset_after=False)
    fg.load(tmp_path / "gru.npz", other)
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert bits(twin.predict(x)) == bits(layer.predict(x))
    assert repr(layer).startswith("GRU(3, 5, num_layers=2, reset_after=False")


def test_bad_settings_and_input():
    refuses(
        ValueError, "GRU: reverse is for one direction, and bidirectional has both", GRU, 3, 5, 1, True, reverse=True
    )
    refuses(ValueError, "GRU: dropout is between layers and needs num_layers of at least 2", GRU, 3, 5, dropout=0.5)
    layer = gru_layer()
    refuses(
        ValueError, "GRU: state must be (layers, N, H) = (1, 4, 5), got (4, 5)", layer.run, sequences(), np.ones((4, 5))
    )
