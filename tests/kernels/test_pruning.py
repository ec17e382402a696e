"""Pruning: the masks against PyTorch's, models that stay pruned as they train, are saved and merged, and chains without pruned units."""

import copy
import pickle

import numpy as np
import pytest
from arrays import LAYOUTS, bits, laid_out, with_threads
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgrad as fg
from fastgrad.nn import LSTM, BatchNorm, Dense, DenseChain, Sequential
from fastgrad.optim import SGD, Adam, RMSprop

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]

SHAPES = [(3, 4), (17,), (0, 3), (200, 101), (3, 3, 2, 5), (1, 1)]


def arrays(rng, dtype, shapes=SHAPES, decimals=9):
    return [np.round(rng.standard_normal(shape), decimals).astype(dtype) for shape in shapes]


def torch_masks(torch, method, values, **options):
    """Masks of torch.nn.utils.prune over parameters of these values."""
    from torch.nn.utils import prune

    modules = [torch.nn.Module() for _ in values]
    for module, value in zip(modules, values, strict=True):
        module.w = torch.nn.Parameter(torch.tensor(value))
    if method == "global":
        prune.global_unstructured([(m, "w") for m in modules], prune.L1Unstructured, **options)
    for module in modules if method != "global" else ():
        getattr(prune, method)(module, "w", **options)
    return [module.w_mask.numpy().astype(bool) for module in modules]


def same(masks, expected, params, before):
    """The masks are these, and what they leave is as it was."""
    for mask, other, p, q in zip(masks, expected, params, before, strict=True):
        np.testing.assert_array_equal(mask, other)
        assert mask.dtype == bool
        assert bits(p) == bits(np.where(mask, q, np.zeros_like(q)))


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 1.0, 7])
def test_masks_are_pytorchs(in_force, dtype, amount, rng, torch):
    shapes = [shape for shape in SHAPES if shape not in ((0, 3), (1, 1))]
    params = arrays(rng, dtype, shapes)
    before = [p.copy() for p in params]
    masks = fg.prune(params, amount)
    same(masks, torch_masks(torch, "l1_unstructured", before, amount=amount), params, before)
    params = [p.copy() for p in before]
    masks = fg.prune(params, amount, scope="global")
    same(masks, torch_masks(torch, "global", before, amount=amount), params, before)


@pytest.mark.parametrize("amount", [0.0, 0.25, 0.5, 2])
def test_units_are_pytorchs(in_force, dtype, amount, rng, torch):
    params = arrays(rng, dtype, [(7, 4), (1, 9), (200, 101), (3, 3, 2, 5)])
    before = [p.copy() for p in params]
    masks = fg.prune(params, amount, units=True)
    expected = []
    for p in before:
        expected += torch_masks(torch, "ln_structured", [p], amount=amount, n=2, dim=p.ndim - 1)
    same(masks, expected, params, before)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_smallest_go_and_of_equals_the_first(data):
    """Against sorting, of values that are equal often, infinity and -0 among them, with masks from before."""
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    value = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1 + 2**-20, 1e-40, 3.5, -np.inf, 2.0**100])
    params = [np.array(row, dtype) for row in data.draw(st.lists(st.lists(value, max_size=9), min_size=1, max_size=4))]
    masks = [np.array(data.draw(st.lists(st.booleans(), min_size=p.size, max_size=p.size)), bool) for p in params]
    flat, alive = np.abs(np.concatenate(params)), np.concatenate(masks)
    amount = data.draw(st.integers(0, flat.size))
    order = sorted(np.flatnonzero(alive), key=lambda i: (flat[i], i))
    expected = alive.copy()
    expected[order[: max(0, amount - int((~alive).sum()))]] = False
    for backend in ("numpy", "cpu"):
        ours = [p.copy() for p in params]
        with fg.use_backend(backend):
            found = fg.prune(ours, amount, scope="global", masks=masks)
        assert bits(np.concatenate(found)) == bits(expected)
        same(found, np.split(expected, np.cumsum([p.size for p in params])[:-1]), ours, params)


def test_ties_in_many_blocks_go_from_the_first(backend, dtype):
    """Blocks of equals of which all, some and none go."""
    values, masks = np.ones(100_003, dtype), np.ones(100_003, bool)
    masks[::3] = False
    values[5000] = 0.5
    backend.prune_smallest([values], masks, 30_001)
    first = np.flatnonzero(np.arange(100_003) % 3)[:30_001]
    expected = np.arange(100_003) % 3 > 0
    expected[first] = False
    assert bits(masks) == bits(expected)
    assert bits(values) == bits(expected.astype(dtype))


def test_ties_go_from_the_first_up_to_the_end_of_an_array(backend, dtype):
    """The last threads of a block have no value of their own, and number those of the others as well."""
    values, masks = np.ones(300, dtype), np.ones(300, bool)
    backend.prune_smallest([values], masks, 298)
    assert np.flatnonzero(masks).tolist() == np.flatnonzero(values).tolist() == [298, 299]


def test_any_number_of_threads_gives_the_same_bits(cpu, dtype, rng):
    params = arrays(rng, dtype, [(300, 700), (100_003,), (3, 4)], decimals=2)

    def pruned():
        ours = [p.copy() for p in params]
        return [bits(a) for a in (*fg.prune(ours, 0.37, scope="global"), *ours)]

    first, *others = with_threads(pruned)
    assert all(other == first for other in others)


def test_threshold(in_force, dtype, rng):
    params = arrays(rng, dtype)
    before = [p.copy() for p in params]
    same(fg.prune(params, threshold=0.5), [np.abs(p) >= 0.5 for p in before], params, before)
    (p,) = params = [np.array([[3, 0.1], [4, 0.2]], dtype)]
    assert fg.prune(params, threshold=4.9, units=True)[0].tolist() == [[True, False]] * 2
    assert p[:, 0].tolist() == [3, 4]


def test_what_is_pruned_stays_and_counts(in_force, dtype):
    p = np.array([5, 4, 3, 2, 1], dtype)
    first = fg.prune(p, 2)
    assert first.tolist() == [True, True, True, False, False]
    p[4] = 9
    second = fg.prune(p, 0.6, masks=first)
    assert second.tolist() == [True, True, False, False, False]
    assert p.tolist() == [5, 4, 0, 0, 0]
    assert first.tolist() == [True, True, True, False, False]
    assert fg.prune(p, 1, masks=second).tolist() == second.tolist()


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "read_only"])
def test_any_layout(in_force, layout, rng):
    values = rng.standard_normal((8, 6))
    p = laid_out(values, layout)
    mask = fg.prune(p, 0.5)
    np.testing.assert_array_equal(p, np.where(mask, values, 0))
    assert mask.sum() == 24


def digits(rng, dtype, n=60):
    return rng.standard_normal((n, 12)).astype(dtype), rng.integers(0, 4, n)


def chain(dtype="float32", activation="tanh"):
    return DenseChain([12, 9, 7, 4], activation, "softmax", dtype=dtype, seed=2)


def model_of(form, dtype):
    """A chain, or layers."""
    if form == "chain":
        return chain(dtype)
    return Sequential(Dense(12, 9, "relu", dtype=dtype), Dense(9, 4, "softmax", dtype=dtype))


@pytest.mark.emulated(0)
def test_a_pruned_chain_trains_as_pytorchs(in_force, rng, torch):
    """Against PyTorch's masks over Adam, whose hidden weights keep moving under the mask."""
    from torch.nn.utils import prune

    model = chain("float64", "relu")
    layers = [torch.nn.Linear(w.shape[0], w.shape[1], dtype=torch.float64) for w in model.weights]
    for layer, w, b in zip(layers, model.weights, model.biases, strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(w.T.copy()), torch.tensor(b)
        prune.l1_unstructured(layer, "weight", 0.6)
    fg.prune(model, 0.6)
    net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    theirs, trainer = torch.optim.Adam(net.parameters(), 0.01), fg.Trainer(model, optimizer=Adam(0.01))
    x, y = digits(rng, np.float64)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y))
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        assert trainer.step(x, y) == pytest.approx(loss.item(), rel=1e-9)
    for layer, w, mask in zip(layers, model.weights, (m for m in model.masks().values() if m.ndim > 1), strict=True):
        np.testing.assert_array_equal(layer.weight_mask.numpy().T.astype(bool), mask)
        np.testing.assert_allclose(w, (layer.weight_orig * layer.weight_mask).detach().numpy().T, rtol=1e-7, atol=1e-9)


def test_a_model_prunes_its_weights_and_with_units_their_biases(in_force, dtype):
    model = chain(dtype)
    masks = fg.prune(model, 0.5)
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {
        "0.w": 54, "0.b": 0, "1.w": round(31.5), "1.b": 0, "2.w": 14, "2.b": 0,
    }  # fmt: skip
    model = chain(dtype)
    for b in model.biases:
        b[...] = 1
    masks = fg.prune(model, 3, units=True)
    assert [int((~masks[name]).sum()) for name in ("0.b", "1.b", "2.w", "2.b")] == [3, 3, 0, 0]
    for w, b in (("0.w", "0.b"), ("1.w", "1.b")):
        dead = ~masks[b]
        assert not masks[w][:, dead].any()
        assert masks[w][:, ~dead].all()
        assert not model.parameters()[w][:, dead].any()
        np.testing.assert_array_equal(model.parameters()[b], masks[b])
    again = fg.prune(model, 0.5, names=["2.w"])
    assert int((~again["2.w"]).sum()) == 14
    assert int((~again["0.b"]).sum()) == 3


@pytest.mark.parametrize("form", ["chain", "layers", "lstm"])
def test_a_model_stays_pruned_in_steps_and_epochs(in_force, dtype, form, rng):
    if form == "lstm":
        model = Sequential(LSTM(12, 5, dtype=dtype), Dense(5, 4, "softmax", dtype=dtype), seed=0)
        x, y = rng.standard_normal((20, 6, 12)).astype(dtype), rng.integers(0, 4, (20, 6))
    else:
        layers = Dense(12, 9, dtype=dtype), BatchNorm(9, "relu", dtype=dtype), Dense(9, 4, "softmax", dtype=dtype)
        model = chain(dtype) if form == "chain" else Sequential(*layers)
        x, y = digits(rng, dtype)
    trainer = fg.Trainer(model, optimizer=RMSprop(0.01, momentum=0.9))
    trainer.step(x, y)
    masks = fg.prune(model, 0.7, scope="global")
    trainer.step(x, y)
    trainer.fit(x, y, 2, 8, progress=False)
    for name, p in model.parameters().items():
        np.testing.assert_array_equal(p[~masks[name]], 0)
        assert p[masks[name]].any()
    state = trainer.state[:, ~np.concatenate([mask.reshape(-1) for mask in masks.values()])]
    assert state.size
    assert not state.any()


def test_layers_take_their_masks_with_them(in_force, dtype, rng):
    first, second = chain(dtype), Dense(4, 3, dtype=dtype)
    before = fg.prune(first, 0.5)
    trainer = fg.Trainer(first, optimizer=SGD(0.1, 0.9))
    model = Sequential(first, second)
    after = model.masks()
    assert {f"0.{name}": bits(mask) for name, mask in before.items()} == {
        n: bits(after[n]) for n in after if n[0] == "0"
    }
    assert all(after[name].all() for name in ("1.w", "1.b"))
    fg.prune(model, 0.8)
    assert {f"0.{name}": bits(mask) for name, mask in first.masks().items()} == {
        n: bits(m) for n, m in model.masks().items() if n[0] == "0"
    }
    with pytest.raises(ValueError, match=r"^prune: the model is part of a Sequential; prune that, with names$"):
        fg.prune(first, 0.5)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        part = twin.layers[0]
        assert np.shares_memory(part.masks()["0.w"], twin.masks()["0.0.w"])
        fg.prune(twin, 0.9)
        assert bits(part._mask) == bits(twin._mask[: part.params.size]) != bits(model._mask[: part.params.size])
    x, y = digits(rng, dtype)
    trainer.step(x, y)
    assert not first.params[~first._mask].any()


@pytest.mark.emulated(0)
@pytest.mark.parametrize("form", ["chain", "layers"])
def test_training_goes_on_from_a_file_with_the_same_bits(in_force, tmp_path, dtype, form, rng):
    """Masks and the place in the schedule with it."""
    x, y = digits(rng, dtype)

    def trained():
        schedule = fg.GradualPruning(0.8, begin=3, end=20, every=4)
        return fg.Trainer(
            model_of(form, dtype), optimizer=Adam(0.01), constraint=fg.optim.MaxNorm(2.0), pruning=schedule
        )

    whole, again = trained(), trained()
    whole.fit(x, y, 2, 16, progress=False)
    fg.save(tmp_path / "whole", whole)
    whole.fit(x, y, 2, 16, progress=False)
    fg.load(tmp_path / "whole", again)
    again.fit(x, y, 2, 16, progress=False)
    assert 0.5 < float((~whole.model._mask).mean()) < 0.8
    for ours, theirs in (
        (whole.model.params, again.model.params),
        (whole.state, again.state),
        (whole.model._mask, again.model._mask),
    ):
        assert bits(ours) == bits(theirs)


def test_files_of_models(in_force, tmp_path):
    pruned, model, other = chain(), chain(), DenseChain([12, 9, 7, 5], seed=1)
    fg.prune(pruned, 0.5)
    fg.save(tmp_path / "pruned", pruned)
    fg.save(tmp_path / "whole", model)
    fg.load(tmp_path / "pruned", model)
    assert {n: bits(m) for n, m in model.masks().items()} == {n: bits(m) for n, m in pruned.masks().items()}
    assert bits(model.params) == bits(pruned.params)
    with pytest.raises(ValueError, match=r"^load: .*: 2.w must be \(7, 5\), got \(7, 4\)"):
        fg.load(tmp_path / "pruned", other)
    assert other.masks() == {}
    fg.load(tmp_path / "whole", model)
    assert model.masks() == {}
    Sequential(model)
    with pytest.raises(ValueError, match=r"has masks, and the model is part of a Sequential; load into that$"):
        fg.load(tmp_path / "pruned", model)


def test_the_schedule_is_zhu_and_guptas():
    schedule = fg.GradualPruning(0.9, begin=10, end=110, every=30, initial=0.1)
    due, step = [], 0
    while (step := schedule.next_due(step)) is not None:
        due.append(step)
    assert due == [10, 40, 70, 100, 110]
    for step in (0, 10, 35, 60, 110, 500):
        t = min(max(step, 10), 110)
        assert schedule.share(step) == pytest.approx(0.9 + (0.1 - 0.9) * (1 - (t - 10) / 100) ** 3)
    assert schedule.share(10) == pytest.approx(0.1)
    assert schedule.share(110) == 0.9
    assert fg.GradualPruning(0.5, 0, 5, 2).next_due(0) == 2
    small = fg.GradualPruning(np.float32(0.5), np.int8(0), np.int16(1000), np.int8(100), np.float32(0.25))
    assert small == fg.GradualPruning(0.5, 0, 1000, 100, 0.25)
    assert [small.next_due(step) for step in (0, 150, 999)] == [100, 200, 1000]


@pytest.mark.emulated(0)
@pytest.mark.parametrize("form", ["chain", "layers"])
def test_the_first_share_is_pruned_before_the_update_after_begin(in_force, form, rng, tmp_path):
    """At 0 before any update, in steps, epochs and a trainer from a file; later where the pruning begins at the count of its assignment."""
    x, y = digits(rng, np.float32, 40)

    def trained(pruning=None):
        return fg.Trainer(model_of(form, np.float32), optimizer=Adam(0.01), pruning=pruning)

    schedule = fg.GradualPruning(0.9, begin=0, end=100, every=50, initial=0.5)
    steps, epochs, loaded, expected = trained(schedule), trained(schedule), trained(schedule), trained()
    fg.save(tmp_path / "file", steps)
    fg.load(tmp_path / "file", loaded)
    fg.prune(expected.model, 0.5)
    for trainer in (steps, loaded, expected):
        trainer.step(x, y)
    epochs.fit(x, y, 1, 40, shuffle=False, progress=False)
    for trainer in (steps, epochs, loaded):
        assert bits(trainer.model._mask) == bits(expected.model._mask)
        assert bits(trainer.model.params) == bits(expected.model.params)
    assigned, expected = trained(), trained()
    for trainer in (assigned, expected):
        trainer.step(x, y)
    assigned.pruning = fg.GradualPruning(0.9, begin=1, end=100, every=50, initial=0.5)
    fg.prune(expected.model, 0.5)
    for trainer in (assigned, expected):
        trainer.step(x, y)
    assert bits(assigned.model.params) == bits(expected.model.params)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("form", ["chain", "layers"])
def test_epochs_prune_when_steps_do(in_force, dtype, form, rng):
    """To the bit, and as a loop that prunes by itself."""
    x, y = digits(rng, dtype, 40)

    def trained(pruning):
        return fg.Trainer(model_of(form, dtype), optimizer=Adam(0.01), pruning=pruning)

    schedule = fg.GradualPruning(0.9, begin=2, end=15, every=3, scope="global")
    epochs, steps, loop = trained(schedule), trained(schedule), trained(None)
    epochs.fit(x, y, 4, 8, shuffle=False, progress=False)
    due = 2
    for i in range(20):
        rows = slice(i % 5 * 8, i % 5 * 8 + 8)
        steps.step(x[rows], y[rows])
        loop.step(x[rows], y[rows])
        if loop.step_count == due:
            fg.prune(loop.model, schedule.share(due), scope="global")
            due = schedule.next_due(due)
    assert due is None
    for other in (steps, loop):
        assert bits(other.model.params) == bits(epochs.model.params)
        assert bits(other.model._mask) == bits(epochs.model._mask)
    pruned = sum(int((~m).sum()) for n, m in epochs.model.masks().items() if n.endswith("w"))
    assert pruned == round(0.9 * sum(p.size for n, p in epochs.model.parameters().items() if n.endswith("w")))


def test_windows_prune_between_batches(in_force, rng):
    model = Sequential(LSTM(3, 5), Dense(5, 2), seed=0)
    trainer = fg.Trainer(model, "mse", pruning=fg.GradualPruning(0.5, 1, 5, 3))
    x, y = rng.standard_normal((2, 8, 7, 3)).astype(np.float32)[0], rng.standard_normal((8, 7, 2)).astype(np.float32)
    trainer.fit(x, y, 1, 4, window=2, progress=False)
    assert trainer.step_count == 8
    assert int((~model.masks()["0.0.w_hh"]).sum()) == 50


ACTIVATIONS = [
    "relu", "sigmoid", "tanh", "softplus", "elu", "selu", "gelu", "gelu_tanh", "silu", "identity", "relu6", ("leaky_relu", 0.3),
    ("clipped_relu", 0.5), "softmax",
]  # fmt: skip


@pytest.mark.pairwise
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_compact_chain_gives_the_same(in_force, dtype, activation, bias, rng):
    model = DenseChain([10, 20, 15, 12, 3], activation, "softmax", dtype=dtype, seed=3, bias=bias)
    for b in model.biases if bias else ():
        b[...] = rng.standard_normal(b.shape)
    x = rng.standard_normal((9, 10)).astype(dtype)
    fg.prune(model, 0.5, units=True)
    if bias:
        # pruned units whose biases live give what is not 0
        model.biases[1][...] = rng.standard_normal(15)
    compact = model.compact()
    assert compact.sizes == ((10, 20, 15, 12, 3) if activation == "softmax" else (10, 10, 7, 6, 3))
    tolerance = 2e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(compact.predict(x), model.predict(x), rtol=tolerance, atol=tolerance)
    assert not np.shares_memory(compact.params, model.params)


def test_a_compact_chain_is_pytorchs(in_force, rng, torch):
    """PyTorch's layers with the whole, pruned weights."""
    model = DenseChain([6, 20, 9, 4], ["tanh", "sigmoid", "identity"], dtype="float64", seed=3)
    for b in model.biases:
        b[...] = rng.standard_normal(b.shape)
    dead = np.array([1, 4, 8])
    model.weights[1][:, dead] = 0
    model.weights[2][2] = 0
    x = rng.standard_normal((9, 6))
    y, functions = torch.tensor(x), (torch.tanh, torch.sigmoid, lambda z: z)
    for w, b, f in zip(model.weights, model.biases, functions, strict=True):
        y = f(y @ torch.tensor(w) + torch.tensor(b))
    compact = model.compact()
    assert compact.sizes == (6, 20, 5, 4)
    np.testing.assert_allclose(compact.predict(x), y.numpy(), rtol=1e-12)


def test_units_that_go_take_others_with_them():
    """What only a unit that is not read reads, and what reads only constant units, go too; at least one unit stays."""
    model = DenseChain([3, 4, 4, 2], "sigmoid", seed=0)
    w = model.weights
    for b in model.biases:
        b[...] = 0.5
    w[2][0] = 0
    w[1][0, 1:] = 0
    w[0][:, 3] = 0
    w[1][:3, 3] = 0
    x = np.ones((2, 3), np.float32)
    compact = model.compact()
    assert compact.sizes == (3, 2, 2, 2)
    np.testing.assert_allclose(compact.predict(x), model.predict(x), rtol=1e-6)
    for layer in (0, 1, 2):
        model.weights[layer][...] = 0
        assert model.compact().sizes[1:-1] == (1, 1) if layer else (3, 1, 1, 2)
        np.testing.assert_allclose(model.compact().predict(x), model.predict(x), rtol=1e-6)
    assert model.compact().predict(x).shape == (2, 2)
    assert Dense(3, 2).compact().sizes == (3, 2)


def test_a_compact_chain_keeps_what_else_is_pruned(in_force, rng):
    model = chain()
    fg.prune(model, 3, units=True)
    fg.prune(model, 0.7)
    compact = model.compact()
    x, y = digits(rng, np.float32)
    zeros = [w == 0 for w in compact.weights]
    assert sum(zero.sum() for zero in zeros) > 20
    fg.Trainer(compact).fit(x, y, 1, 8, progress=False)
    for w, zero in zip(compact.weights, zeros, strict=True):
        assert not w[zero].any()
    assert chain().compact().masks() == {}


NAN = np.array([1.0, np.nan])


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "prune: one of amount and threshold must be given, got none", lambda p: fg.prune(p)),
        (ValueError, "prune: one of amount and threshold must be given, got both", lambda p: fg.prune(p, 1, 1.0)),
        (ValueError, "prune: amount must be at least 0 and at most 1, got 1.5", lambda p: fg.prune(p, 1.5)),
        (ValueError, "prune: amount must be at least 0 and at most 1, got -0.5", lambda p: fg.prune(p, -0.5)),
        (TypeError, "prune: amount must be a number, got bool", lambda p: fg.prune(p, True)),
        (
            ValueError,
            "prune: amount must be at least 0 and at most 2, the number in params[1], got 3",
            lambda p: fg.prune(p, 3),
        ),
        (
            ValueError,
            "prune: amount must be at least 0 and at most 8, the number in all, got 9",
            lambda p: fg.prune(p, 9, scope="global"),
        ),
        (ValueError, "prune: threshold must be at least 0 and finite, got -1", lambda p: fg.prune(p, threshold=-1)),
        (ValueError, "prune: scope must be one of array, global; got 'all'", lambda p: fg.prune(p, 1, scope="all")),
        (ValueError, "prune: NaN has no magnitude, and is in params[2]", lambda p: fg.prune([*p, NAN], 1)),
        (ValueError, "prune: NaN has no magnitude, and is in params", lambda p: fg.prune(NAN.copy(), 1)),
        (ValueError, "prune: masks must have length 2, got 1", lambda p: fg.prune(p, 1, masks=[None])),
        (
            ValueError,
            "prune: units are of arrays with 2 or 4 axes and with values, got params[1] (2,)",
            lambda p: fg.prune(p, 1, units=True),
        ),
        (TypeError, "prune: names are for models", lambda p: fg.prune(p, 1, names=["w"])),
        (TypeError, "prune: masks are for arrays; a model keeps its own", lambda p: fg.prune(Dense(2, 2), 1, masks=p)),
        (ValueError, "prune: names[0] must be one of w; got 'b'", lambda p: fg.prune(Dense(2, 2), 1, names=["b"])),
        (ValueError, "prune: the model has no units but its outputs", lambda p: fg.prune(Dense(2, 2), 1, units=True)),
        (ValueError, "prune: the model has no weights", lambda p: fg.prune(BatchNorm(2), 1)),
        (
            TypeError,
            "Trainer: pruning must be a GradualPruning, got float",
            lambda p: fg.Trainer(Dense(2, 2), pruning=0.5),
        ),
        (
            ValueError,
            "GradualPruning: final must be at least 0 and at most 1, got 2",
            lambda p: fg.GradualPruning(2, 0, 1, 1),
        ),
        (
            ValueError,
            "GradualPruning: initial must be at most final, 0.5, got 0.6",
            lambda p: fg.GradualPruning(0.5, 0, 1, 1, 0.6),
        ),
        (
            ValueError,
            "GradualPruning: names[0] must be one of w; got '0.w'",
            lambda p: fg.Trainer(Dense(2, 2), pruning=fg.GradualPruning(0.5, 0, 1, 1, names=["0.w"])),
        ),
        (
            ValueError,
            "GradualPruning: end must be an integer of at least 6, got 5",
            lambda p: fg.GradualPruning(0.5, 5, 5, 1),
        ),
    ],
)
def test_bad_input_changes_nothing(in_force, error, message, call):
    params = [np.arange(6.0).reshape(3, 2), np.arange(2.0)]
    before = [bits(p) for p in params]
    with pytest.raises(error) as found:
        call(params)
    assert str(found.value) == message
    assert [bits(p) for p in params] == before


def test_nan_in_a_model_is_named(in_force):
    model = chain()
    fg.prune(model, 0.2)
    model.weights[1][2, 3] = np.nan
    params, mask = bits(model.params), bits(model._mask)
    with pytest.raises(ValueError, match=r"^prune: NaN has no magnitude, and is in 1.w$"):
        fg.prune(model, 0.5)
    assert (bits(model.params), bits(model._mask)) == (params, mask)
