"""Nothing past a sequence's end, NaN included, reaches a result, statistic, loss, gradient or report, in any layer beside an LSTM."""

import numpy as np
import pytest
from arrays import bits
from ranks import shared
from tolerances import assert_close

import fastgrad as fg
from fastgrad.nn import LSTM, BatchNorm, Dense, DenseChain, Dropout, Residual, Sequential
from fastgrad.optim import SGD, Adam

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]

N, C, K = 5, 3, 4
# one sequence is empty, two are equally long
ENDS = np.array([2, 0, 4, 1, 2])
LONGEST = 4
NETS = {
    "lstm": lambda **options: LSTM(C, K, 2, bidirectional=True, dropout=0.3, proj_size=2, seed=0, **options),
    "norms": lambda **options: Sequential(
        BatchNorm(C, **options), LSTM(C, 6, **options), BatchNorm(6, "relu", **options), Dense(6, K, **options), seed=0
    ),
    "dropouts": lambda **options: Sequential(
        Dropout(0.4), Dense(C, 6, "tanh", **options), Dropout(0.3), LSTM(6, K, **options), Dropout(0.2), seed=0
    ),
    "nested": lambda **options: Sequential(
        Sequential(Dense(C, 5, **options), BatchNorm(5, "tanh", **options)),
        Sequential(LSTM(5, 3, bidirectional=True, **options), Sequential(Dropout(0.2), BatchNorm(6, **options))),
        Residual(Sequential(BatchNorm(6, **options), Dense(6, 6, **options))),
        Residual(DenseChain([6, 7, K], "relu", "relu", **options), Dense(6, K, **options), "tanh"),
        seed=0,
    ),
    "last": lambda **options: Sequential(
        BatchNorm(C, **options), LSTM(C, 6, pool="last", **options), BatchNorm(6, **options), Dense(6, K, **options), seed=0
    ),
    "mean": lambda **options: Sequential(
        Dropout(0.2), BatchNorm(C, **options), LSTM(C, 6, pool="mean", **options), Dense(6, K, **options), seed=0
    ),
}  # fmt: skip
MODELS = pytest.mark.parametrize("net", NETS)


def padded(steps, fill, dtype="float64", channels=C, seed=1):
    """The same sequences of ENDS steps whatever the padding, which is full of `fill`."""
    x = np.full((N, steps, channels), fill, dtype)
    own = np.random.default_rng(seed).standard_normal((N, LONGEST, channels)) + 2
    for n, end in enumerate(ENDS):
        x[n, :end] = own[n, :end]
    return x


def own_steps(a):
    return np.concatenate([row[:end] for row, end in zip(a, ENDS, strict=True)])


def forward_and_back(net, steps, fill, training, dtype):
    """All that a forward and a backward leave, of own steps; what is past the ends must be 0."""
    model = NETS[net](dtype=dtype)
    y, backward = model.forward(padded(steps, fill, dtype), training, lengths=ENDS)
    pooled = y.ndim == 2
    dy = np.random.default_rng(2).standard_normal(y.shape).astype(dtype) if pooled else padded(steps, fill, dtype, K, 3)
    dx = backward(dy)
    assert dx.shape == (N, steps, C)
    outside = [dx] if pooled else [y, dx]
    for a in outside:
        assert not a[np.arange(steps) >= ENDS[:, None]].any()
    found = [y if pooled else own_steps(y), own_steps(dx), model.grads, *model.statistics().values()]
    if not training:
        predicted = [model.predict(padded(steps, fill, dtype), size, lengths=ENDS) for size in (None, 2)]
        ran, _ = model.run(padded(steps, fill, dtype), lengths=ENDS)
        found += [a if pooled else own_steps(a) for a in (*predicted, ran)]
    return found


@MODELS
@pytest.mark.parametrize("training", [True, False])
def test_the_padding_and_what_is_in_it_do_not_matter(in_force, dtype, net, training):
    expected = forward_and_back(net, LONGEST, 0, training, dtype)
    assert all(np.isfinite(a).all() for a in expected)
    for steps, fill in ((30, np.nan), (LONGEST, np.inf)):
        for found, wanted in zip(forward_and_back(net, steps, fill, training, dtype), expected, strict=True):
            assert bits(found) == bits(wanted)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_batch_norm_and_dense_beside_an_lstm_are_those_of_pytorch_on_packed_sequences(in_force, torch, bidirectional):
    ends = np.where(ENDS == 0, 3, ENDS)  # PyTorch packs no empty sequence
    x = np.random.default_rng(1).standard_normal((N, 9, C)) + 2
    x[np.arange(9) >= ends[:, None]] = np.nan
    width = 12 if bidirectional else 6
    model = Sequential(
        BatchNorm(C, dtype="float64"),
        Dense(C, 5, "tanh", dtype="float64"),
        LSTM(5, 6, bidirectional=bidirectional, dtype="float64"),
        BatchNorm(width, "relu", dtype="float64"),
        Dense(width, K, dtype="float64"),
        seed=0,
    )
    y, backward = model.forward(x, True, lengths=ends)
    norms = [torch.nn.BatchNorm1d(n, dtype=torch.float64) for n in (C, width)]
    dense = [torch.nn.Linear(*n, dtype=torch.float64) for n in ((C, 5), (width, K))]
    lstm = torch.nn.LSTM(5, 6, batch_first=True, bidirectional=bidirectional, dtype=torch.float64)
    lstm.load_state_dict({k: torch.tensor(v) for k, v in fg.convert.to_torch(model.layers[2]).items()})
    with torch.no_grad():
        for theirs, ours in zip(dense, (model.layers[1], model.layers[4]), strict=True):
            theirs.weight.copy_(torch.tensor(ours.w.T))
            theirs.bias.copy_(torch.tensor(ours.b))
    tx = torch.tensor(np.nan_to_num(x), requires_grad=True)
    pack = torch.nn.utils.rnn.pack_padded_sequence(tx, torch.tensor(ends), batch_first=True, enforce_sorted=False)
    h, _ = lstm(pack._replace(data=torch.tanh(dense[0](norms[0](pack.data)))))
    h = h._replace(data=dense[1](torch.relu(norms[1](h.data))))
    ty, _ = torch.nn.utils.rnn.pad_packed_sequence(h, batch_first=True, total_length=9)
    dy = np.random.default_rng(3).standard_normal(y.shape)
    ty.backward(torch.tensor(dy))
    assert_close("lstm", y, ty.detach().numpy(), size=1, terms=100)
    dy[np.arange(9) >= ends[:, None]] = np.nan
    assert_close("lstm", backward(dy), tx.grad.numpy(), size=1, terms=100)
    for ours, theirs in ((model.layers[0], norms[0]), (model.layers[3], norms[1])):
        assert_close("lstm", ours.running_mean, theirs.running_mean.numpy(), size=1, terms=100)
        assert_close("lstm", ours.running_var, theirs.running_var.numpy(), size=1, terms=100)
        assert_close("lstm", ours._gradients[0], theirs.weight.grad.numpy(), size=1, terms=100)
    assert_close("lstm", model.layers[1].gradients()["w"], dense[0].weight.grad.numpy().T, size=1, terms=100)


def test_what_is_past_the_ends_of_a_functional_lstm_does_not_matter(in_force, dtype):
    rng = np.random.default_rng(0)
    w_ih, w_hh, b = (rng.standard_normal(shape).astype(dtype) for shape in ((C, 4 * K), (K, 4 * K), (4 * K,)))
    results = []
    for steps, fill in ((LONGEST, 0), (30, np.nan)):
        (y, h_n, c_n, c), backward = fg.lstm(padded(steps, fill, dtype), w_ih, w_hh, b, lengths=ENDS, cells=True)
        dx, *gradients = backward(padded(steps, fill, dtype, K, 3))
        results.append([own_steps(y), h_n, c_n, own_steps(c), own_steps(dx), *gradients])
        assert not any(a[np.arange(steps) >= ENDS[:, None]].any() for a in (y, c, dx))
    assert [bits(a) for a in results[0]] == [bits(a) for a in results[1]]


def trained(net, steps, fill, window=None, reduce=None):
    """All that a trainer makes of sequences with this padding."""
    model = NETS[net](dtype="float32")
    x = padded(steps, fill, "float32")
    y = np.random.default_rng(4).integers(0, K, N)
    if not model.pools:
        labels = np.random.default_rng(4).integers(0, K, (N, LONGEST))
        y = np.full((N, steps), -1)
        for n, end in enumerate(ENDS):
            y[n, :end] = labels[n, :end]
    trainer = fg.Trainer(model, optimizer=Adam(0.01), health=True, reduce=reduce)
    history = trainer.fit(x, y, epochs=2, batch_size=N, lengths=ENDS, window=window, validation=(x, y, ENDS))
    found = [
        np.array([float(trainer.step(x, y, ENDS)), *trainer.evaluate(x, y, ENDS), *history.loss, *history.val_loss])
    ]
    predicted = trainer.predict(x, 2, ENDS)
    report = trainer.health()
    found += [predicted if model.pools else own_steps(predicted), model.params, *model.statistics().values()]
    return [*found, report.values, report.history]


@pytest.mark.emulated(0)
@MODELS
def test_training_and_its_reports_do_not_see_the_padding(in_force, net):
    expected = trained(net, LONGEST, 0)
    assert all(np.isfinite(a).all() for a in expected[:-2])
    for found, wanted in zip(trained(net, 12, np.nan), expected, strict=True):
        assert bits(found) == bits(wanted)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("reduced", [False, True])
def test_windows_do_not_see_the_padding(in_force, reduced):
    """Also of a process that goes on to windows past the ends of its own sequences."""
    reduce = (lambda values: None) if reduced else None
    expected = trained("norms", LONGEST, 0, 2, reduce)
    for found, wanted in zip(trained("norms", 11, np.nan, 2, reduce), expected, strict=True):
        assert bits(found) == bits(wanted)


def test_batch_norms_of_a_process_without_steps_of_its_own_stay(in_force):
    """The other one has two more windows."""
    lengths = np.array([2, 1, 6, 5])
    x, y = np.full((4, 9, C), np.nan, np.float32), np.zeros((4, 9), np.int64)
    for n, end in enumerate(lengths):
        x[n, :end] = np.random.default_rng(n).standard_normal((end, C))

    def program(rank, reduce):
        mine = slice(2 * rank, 2 * rank + 2)
        trainer = fg.Trainer(NETS["norms"](), optimizer=SGD(0.0), reduce=reduce)
        trainer.fit(x[mine], y[mine], 1, 2, shuffle=False, lengths=lengths[mine], window=2)
        return trainer

    first, second = shared(2, program)
    assert first.step_count == second.step_count == 3
    own = np.concatenate([x[0, :2], x[1, :1]]).astype(np.float64)
    assert_close("batch_norm", first.model.layers[0].running_mean, 0.1 * own.mean(axis=0), size=1, terms=10)


def test_on_a_gpu_the_padding_does_not_matter(fake_gpu, cpu):
    expected = trained("norms", LONGEST, 0)
    results = []
    for steps, fill in ((LONGEST, 0), (9, np.nan)):
        with fg.use_backend("cuda"):
            results.append([np.asarray(a.get() if hasattr(a, "get") else a) for a in trained("norms", steps, fill)])
    for host, found, other in zip(expected, *results, strict=True):
        np.testing.assert_array_equal(found, other)
        np.testing.assert_allclose(found, host, rtol=1e-3, atol=1e-5)


def test_a_state_goes_on_through_sequentials_within_sequentials(in_force):
    model = Sequential(LSTM(C, 5), Sequential(Dense(5, 6, "tanh"), Dense(6, K)), seed=0)
    x = padded(LONGEST, 0, "float32")
    whole, _ = model.run(x)
    first, state = model.run(x[:, :1])
    second, _ = model.run(x[:, 1:], state)
    assert_close("lstm", np.concatenate([first, second], axis=1), whole, size=1)
    fg.Trainer(model).fit(x, np.zeros((N, LONGEST), np.int64), window=2)
    message = r"Sequential: state\[1\] must be None, for layers\[1\] has no LSTM and no GRU"
    with pytest.raises(ValueError, match=message):
        model.run(x, [state[0], (1, 2)])
