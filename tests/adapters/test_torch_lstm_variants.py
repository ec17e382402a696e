"""fgt.lstm and fgt.LSTM with layer norm, zoneout and recurrent dropout: against a loop of steps in PyTorch, masks, and what they refuse."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lstm_variants import NORMS, OPTIONS, random_variant, torch_run  # noqa: E402
from recurrent_problem import assert_arrays_close  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import fastgrad as fg  # noqa: E402
import fastgrad.torch as fgt  # noqa: E402

DOUBLE = torch.float64
ALL = {"layer_norm": True, "zoneout": (0.3, 0.2), "recurrent_dropout": 0.4}
VARIANTS = {"layer_norm": {"layer_norm": True}, "zoneout": {"zoneout": (0.3, 0.2)}, "all": ALL}


def problems_of(rng, directions, lengths, dtype, n=7, steps=9, **options):
    """The problem of each direction, with the same x and keys of its own."""
    problems = [
        random_variant(rng, n, steps, 5, 17, dtype, lengths=lengths, reverse=bool(i), **options)
        for i in range(directions)
    ]
    for i, problem in enumerate(problems):
        problem.x = problems[0].x
        if "key" in problem.options:
            problem.options = problem.options | {"key": problem.options["key"] - i}
    return problems


def weights_of(problem):
    """In PyTorch's layout; half of the bias in each of its two."""
    biases = [] if problem.b is None else [problem.b / 2, problem.b / 2]
    norms = [getattr(problem, name) for name in NORMS if problem.gamma_x is not None]
    arrays = [problem.w_ih.T.copy(), problem.w_hh.T.copy(), *biases, *norms]
    return [torch.tensor(a, requires_grad=True) for a in arrays]


def run_torch(problems, function):
    """What torch_run gives of each direction, y side by side and dx added up, from function(x, weights, h_0, c_0)."""
    first = problems[0]
    x = torch.tensor(first.x, requires_grad=True)
    weights = [weights_of(problem) for problem in problems]
    states = [None, None]
    if first.h_0 is not None:
        states = [torch.tensor(np.stack([getattr(p, n) for p in problems]), requires_grad=True) for n in ("h_0", "c_0")]
    results = function(x, [w for ws in weights for w in ws], *states)
    upstreams = [
        np.concatenate([p.dy for p in problems], 2),
        *(np.stack([getattr(p, n) for p in problems]) for n in ("dh_n", "dc_n")),
    ]
    torch.autograd.backward(results, [torch.tensor(a) for a in upstreams])
    found = {"y": results[0], "h_n": results[1], "c_n": results[2], "dx": x.grad}
    if first.h_0 is not None:
        found |= {"dh_0": states[0].grad, "dc_0": states[1].grad}
    for i, (problem, ws) in enumerate(zip(problems, weights, strict=True)):
        names = ["w_ih", "w_hh", *(["b", "b_hh"] if problem.b is not None else []), *NORMS]
        found |= {f"d{name}{i}": (w.grad.T if w.dim() == 2 else w.grad) for name, w in zip(names, ws, strict=False)}
        if problem.b is not None:
            assert torch.equal(found[f"db{i}"], found.pop(f"db_hh{i}"))
    return {name: a.detach().numpy() for name, a in found.items()}


def expected_of(problems):
    """The same from a loop over steps in PyTorch."""
    parts = [torch_run(torch, problem)[0] for problem in problems]
    states = [name for name in ("h_n", "c_n", "dh_0", "dc_0") if name in parts[0]]
    expected = {"y": np.concatenate([p["y"] for p in parts], 2), "dx": sum(p["dx"] for p in parts)}
    expected |= {name: np.stack([p[name] for p in parts]) for name in states}
    weights = [name for name in parts[0] if name not in (*expected, *states)]
    return expected | {f"{name}{i}": part[name] for i, part in enumerate(parts) for name in weights}


def keys_of(problems):
    """As signed integers of the same bits; None in evaluation."""
    keys = [problem.options.get("key") for problem in problems]
    return None if keys[0] is None else torch.tensor(np.array(keys, np.uint64).view(np.int64))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_function_is_a_loop_in_pytorch(in_force, dtype, rng, options, directions):
    problems = problems_of(rng, directions, None, dtype, **OPTIONS[options])
    first, settings = problems[0], {k: v for k, v in problems[0].options.items() if k != "key"}
    norms = first.gamma_x is not None
    settings |= {"directions": directions, "bias": first.b is not None, "layer_norm": norms, "key": keys_of(problems)}
    found = run_torch(problems, lambda *a: fgt.lstm(*a, **settings))
    assert_arrays_close("lstm_variant", found, expected_of(problems), least=1)
    with torch.no_grad():
        arguments = torch.tensor(first.x), [w for p in problems for w in weights_of(p)]
        states = (
            []
            if first.h_0 is None
            else [torch.tensor(np.stack([getattr(p, n) for p in problems])) for n in ("h_0", "c_0")]
        )
        assert np.array_equal(fgt.lstm(*arguments, *states, **settings)[0].numpy(), found["y"])


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_module_over_packed_sequences_is_a_loop_in_pytorch(in_force, rng, variant, directions):
    """Its masks are those of the keys that PyTorch's generator gives: one of each direction, by a sequence's place in the batch."""
    lengths = np.array([3, 9, 1, 4, 9, 7, 2])
    module = fgt.LSTM(5, 17, bidirectional=directions == 2, batch_first=True, dtype=DOUBLE, **VARIANTS[variant])
    torch.manual_seed(3)
    keys = torch.randint(2**63 - 1, (directions,)).tolist()
    problems = problems_of(rng, directions, lengths, np.float64, **VARIANTS[variant])
    for problem, key in zip(problems, keys, strict=True):
        problem.options = problem.options | {"key": key}

    def run(x, weights, h_0, c_0):
        names = dict(zip(module._flat_weights_names, weights, strict=True))
        torch.manual_seed(3)
        packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        y, ends = torch.func.functional_call(module, names, (packed, (h_0, c_0)))
        return pad_packed_sequence(y, batch_first=True)[0], *ends

    assert_arrays_close("lstm_variant", run_torch(problems, run), expected_of(problems), least=1)


def test_the_bits_are_those_of_the_library(cpu, rng):
    problem = random_variant(rng, 20, 6, 5, 8, np.float32, **OPTIONS["all"])
    problem.b = problem.b * 0
    weights, norms = weights_of(problem), tuple(getattr(problem, name) for name in NORMS)
    settings = {"zoneout": (0.3, 0.2), "recurrent_dropout": 0.4}
    key = keys_of([problem])
    y, _, _ = fgt.lstm(torch.tensor(problem.x), weights, layer_norm=True, key=key, **settings)
    arrays, key = (problem.x, problem.w_ih, problem.w_hh, problem.b), problem.options["key"]
    (expected, _, _), _ = fg.lstm(*arrays, layer_norm=norms, key=key, **settings)
    assert np.array_equal(y.detach().numpy(), expected)


def results_of(module, x, seed=5):
    torch.manual_seed(seed)
    y, (h, c) = module(x)
    return [y, h, c, *torch.autograd.grad(y.square().sum() + h.sum() + c.square().sum(), list(module.parameters()))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_are_for_training_alone_and_manual_seed_decides(variant):
    torch.manual_seed(0)
    module, x = (
        fgt.LSTM(3, 5, 2, bidirectional=True, dtype=DOUBLE, **VARIANTS[variant]),
        torch.randn(6, 4, 3, dtype=DOUBLE),
    )
    first = results_of(module, x)
    torch.testing.assert_close(results_of(module, x), first, rtol=0, atol=0)
    draws = variant != "layer_norm"
    assert torch.equal(results_of(module, x, 6)[0], first[0]) is not draws
    assert torch.equal(module(x)[0], module(x)[0]) is not draws
    module.eval()
    state, y = torch.random.get_rng_state(), module(x)[0]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(module(x)[0], y)
    # the two layers, by the function without a key
    rows, settings = x.transpose(0, 1), {"directions": 2, **VARIANTS[variant]}
    weights = [getattr(module, name) for name in module._flat_weights_names]
    for half in (weights[: len(weights) // 2], weights[len(weights) // 2 :]):
        rows, *_ = fgt.lstm(rows, half, **settings)
    assert torch.equal(rows.transpose(0, 1), y)


def test_a_checkpoint_draws_the_same_masks_again():
    torch.manual_seed(0)
    module, x = fgt.LSTM(3, 5, 2, dtype=DOUBLE, **ALL), torch.randn(6, 4, 3, dtype=DOUBLE)
    torch.manual_seed(5)
    y = checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), list(module.parameters()))
    torch.manual_seed(5)
    expected = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_state_has_the_norms_and_goes_from_module_to_module(bias):
    settings = {"bidirectional": True, "layer_norm": True, "bias": bias}
    module, other = (fgt.LSTM(3, 5, 2, **settings) for _ in range(2))
    state = module.state_dict()
    assert {name: tuple(state[name + "_l1_reverse"].shape) for name in NORMS} == {
        "gamma_x": (20,), "gamma_h": (20,), "gamma_c": (5,), "beta_c": (5,)
    }  # fmt: skip
    for name, value in state.items():
        if name.startswith(NORMS):
            assert torch.equal(value, torch.full_like(value, 0 if name.startswith("beta_c") else 1))
    module.gamma_h_l1.data.cos_()
    other.load_state_dict(state)
    x = torch.randn(6, 4, 3)
    expected = results_of(module, x)
    module.gamma_h_l1.data.zero_()
    torch.testing.assert_close(results_of(other, x), expected, rtol=0, atol=0)
    for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        torch.testing.assert_close(results_of(copied, x), expected, rtol=0, atol=0)
    assert results_of(other.double(), x.double())[0].dtype is DOUBLE
    other.reset_parameters()
    assert torch.equal(other.gamma_h_l1, torch.ones(20).double())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_compiled_module_draws_the_masks_of_a_plain_one(variant):
    torch.manual_seed(0)
    module, x = fgt.LSTM(3, 5, 2, **VARIANTS[variant]), torch.randn(6, 4, 3)
    expected = results_of(module, x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: module(x), fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    y, (h, c) = compiled(x)
    gradients = torch.autograd.grad(y.square().sum() + h.sum() + c.square().sum(), list(module.parameters()))
    torch.testing.assert_close([y, h, c, *gradients], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_under_autocast_a_variant_has_the_dtypes_of_the_plain_lstm(variant):
    torch.manual_seed(0)
    module, plain, x = fgt.LSTM(3, 5, **VARIANTS[variant]), fgt.LSTM(3, 5), torch.randn(6, 4, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (results_of(m, x) for m in (module, plain))
    assert [a.dtype for a in found[:7]] == [a.dtype for a in expected]
    with torch.no_grad():
        torch.manual_seed(5)
        torch.testing.assert_close(found[0].float(), module(x.float())[0], rtol=0.02, atol=0.02)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    module, head = (
        fgt.LSTM(3, 16, batch_first=True, layer_norm=True, zoneout=(0.1, 0.1), recurrent_dropout=0.1),
        torch.nn.Linear(16, 2),
    )
    x = torch.randn(64, 7, 3)
    target, optimizer = (x[:, -1, 0] > 0).long(), torch.optim.Adam([*module.parameters(), *head.parameters()], 0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(module(x)[0][:, -1]), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


X, WEIGHTS = torch.zeros(2, 4, 3), [torch.zeros(20, 3), torch.zeros(20, 5)]
NORM_WEIGHTS = [torch.ones(20), torch.ones(20), torch.ones(5), torch.zeros(5)]
ERRORS = {
    "a projection": (lambda: fgt.LSTM(3, 5, proj_size=2, layer_norm=True), ValueError, "lstm: layer_norm.* come without a proj"),
    "zoneout of 1": (lambda: fgt.LSTM(3, 5, zoneout=(0.1, 1.0)), ValueError, r"lstm: zoneout\[1\] must be at least 0 and below 1"),
    "one rate": (lambda: fgt.LSTM(3, 5, zoneout=(0.1,)), ValueError, "lstm: zoneout must have length 2"),
    "dropout of 1": (lambda: fgt.LSTM(3, 5, recurrent_dropout=1), ValueError, "lstm: recurrent_dropout must be"),
    "no norms": (lambda: fgt.lstm(X, WEIGHTS, bias=False, layer_norm=True), ValueError, "lstm: weights must have length 6, got 2"),
    "norms of another size": (
        lambda: fgt.lstm(X, [*WEIGHTS, *NORM_WEIGHTS[1:], torch.ones(5)], bias=False, layer_norm=True),
        ValueError,
        r"lstm: gamma_h must be \(4H,\) = \(20,\)",
    ),
    "a key for two": (
        lambda: fgt.lstm(X, WEIGHTS, bias=False, zoneout=(0.1, 0.1), key=torch.zeros(2, dtype=torch.int64)),
        ValueError,
        r"lstm: key must be \(D,\) = \(1,\), got \(2,\)",
    ),
    "a key of floats": (
        lambda: fgt.lstm(X, WEIGHTS, bias=False, zoneout=(0.1, 0.1), key=torch.zeros(1)), TypeError, "lstm: key must be integers"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_does_not_fit_is_named(case):
    call, error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        call()
