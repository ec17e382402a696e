"""fgt.Adam and fgt.AdamW beside PyTorch's own: parameters, state_dict both ways, groups, and what they refuse."""

import copy
import pickle
from collections import defaultdict

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402
from fastgrad.torch import optim_state  # noqa: E402

PAIRS = [(fgt.Adam, torch.optim.Adam), (fgt.AdamW, torch.optim.AdamW)]


def parameters(dtype=torch.float64):
    """Of several layouts: contiguous, turned, channels last, of no values and of no axes."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, dtype=dtype, generator=generator) for shape in ((3, 4), (5,), (2, 3, 4, 5), (0, 2), ())
    ]
    tensors[0] = tensors[0].t()
    tensors[2] = tensors[2].contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(p) for p in tensors]


def draw_gradients(params, seed, layout=torch.preserve_format):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator).to(memory_format=torch.contiguous_format)
        if layout is torch.preserve_format:
            p.grad = torch.empty_like(p).copy_(p.grad)


def train(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        draw_gradients(params, step, torch.contiguous_format if step % 2 else torch.preserve_format)
        optimizer.step()


def same(params, others):
    for p, q in zip(params, others, strict=True):
        close = {"rtol": 1e-12, "atol": 1e-14} if p.dtype is torch.float64 else {}
        torch.testing.assert_close(p, q, **close)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True, "weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-3, "lr": 0.1}]
)
def test_updates_are_pytorchs(in_force, pair, options):
    lists = parameters(), parameters()
    for kind, params in zip(pair, lists, strict=True):
        train(kind(params, **options), params, 5)
    same(*lists)


def test_gradients_that_lie_otherwise_than_their_parameters(in_force):
    """Turned, expanded, or none of some parameters at one step."""
    lists = [], []
    for kind, params in zip(PAIRS[0], lists, strict=True):
        params += [nn.Parameter(torch.linspace(-1, 1, 12).reshape(shape)) for shape in ((3, 4), (12,), (4, 3))]
        optimizer = kind(params, lr=0.1)
        clip = fgt.clip_grad_norm_ if kind is fgt.Adam else nn.utils.clip_grad_norm_
        for step in range(4):
            draw_gradients(params, step)
            if step == 1:
                params[0].grad = params[2].grad.t()
                params[2].grad = torch.arange(3.0).expand(4, 3)
            else:
                before = params[1].grad._version
                clip(params, 1.0)
                # autograd is told that they were written
                assert params[1].grad._version > before
            if step == 2:
                params[1].grad = None
            optimizer.step()
    same(*lists)


@pytest.mark.parametrize("wrong", [torch.ones(3, device="meta"), torch.ones(3).to_sparse()])
def test_one_gradient_that_cannot_be_clipped_is_refused(wrong):
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros_like(wrong))]
    params[0].grad, params[1].grad = torch.full((3,), 9.0), wrong
    with pytest.raises((TypeError, ValueError), match=r"clip_grad_norm_: gradients\[1\] must be"):
        fgt.clip_grad_norm_(params, 1.0)
    assert (params[0].grad == 9).all()


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("way", [0, 1])
def test_a_state_dict_goes_either_way(pair, way):
    """Begun in one library and ended in the other, as in PyTorch alone."""
    begins, ends = pair if way else pair[::-1]
    params, expected = parameters(), parameters()
    first = begins(params, 0.1, weight_decay=0.3)
    train(first, params, 3)
    second = ends(params, 0.5)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    train(second, params, 3, first=3)
    train(pair[1](expected, 0.1, weight_decay=0.3), expected, 6)
    same(params, expected)
    assert set(second.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert second.state_dict()["state"][1]["step"] == 6


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_by_themselves(copied):
    params, expected = parameters(), parameters()
    optimizer = fgt.Adam(params, 0.1)
    train(optimizer, params, 2)
    other = copied(optimizer)
    others = other.param_groups[0]["params"]
    before = [p.detach().clone() for p in params]
    train(other, others, 2, first=2)
    same(params, before)
    train(torch.optim.Adam(expected, 0.1), expected, 4)
    same(others, expected)


def test_groups_schedules_and_parameters_without_gradients():
    """As PyTorch: what has no gradient makes no step, and counts its own."""
    lists = parameters(), parameters()
    for kind, params in zip(PAIRS[1], lists, strict=True):
        single = nn.Parameter(torch.ones(3, dtype=torch.float32))
        optimizer = kind([{"params": [*params[:2], single], "lr": 0.3}, {"params": params[2:], "weight_decay": 0.0}])
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for step in range(6):
            draw_gradients([*params, single], step)
            for index in ((), (1,), (0, 2), (), (0,), ())[step]:
                params[index].grad = None
            optimizer.step()
            schedule.step()
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        optimizer.step()
        params.append(single)
    same(*lists)


def test_a_closure_and_exchanged_values():
    params = parameters()[:2]
    optimizer = fgt.Adam(params, 0.1)
    train(optimizer, params, 1)
    with torch.no_grad():
        params[1].data = torch.zeros(5, dtype=torch.float64)
    before = params[1].data
    assert optimizer.step(lambda: 3.0) == 3.0
    assert params[1].data_ptr() == before.data_ptr()
    assert (before != 0).all()
    version = params[1]._version
    optimizer.step()
    assert params[1]._version > version


@pytest.mark.parametrize("pair", PAIRS)
def test_parameters_may_lie_in_another_order_from_a_step_on(in_force, pair):
    lists = [[nn.Parameter(p.detach().contiguous()) for p in parameters()] for _ in pair]
    optimizers = [kind(params, 0.1, amsgrad=True) for kind, params in zip(pair, lists, strict=True)]
    orders = (
        torch.Tensor.contiguous,
        lambda p: p.contiguous(memory_format=torch.channels_last if p.dim() == 4 else torch.preserve_format),
        lambda p: p.t().contiguous().t() if p.dim() == 2 else p,
        torch.Tensor.contiguous,
    )
    for i, order in enumerate(orders):
        for params, optimizer in zip(lists, optimizers, strict=True):
            for p in params:
                p.data = order(p.data)
            train(optimizer, params, 2, 2 * i)
        same(*lists)


def test_parameters_of_another_dtype_than_their_state_are_refused(in_force):
    p = nn.Parameter(torch.ones(3))
    optimizer = fgt.Adam([p])
    draw_gradients([p], 0)
    optimizer.step()
    p.grad, p.data = None, p.data.double()
    draw_gradients([p], 1)
    before = p.detach().clone()
    with pytest.raises(TypeError, match=r"params must be torch\.float32 like their state, got torch\.float64"):
        optimizer.step()
    assert torch.equal(p, before)


def test_clipping_and_adam_train_as_pytorchs():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    x, target, losses = torch.randn(20, 6), torch.randint(3, (20,)), []
    for kind, clip in ((fgt.Adam, fgt.clip_grad_norm_), (torch.optim.Adam, nn.utils.clip_grad_norm_)):
        model = copy.deepcopy(first)
        optimizer, results = kind(model.parameters(), 1e-2), []
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            clip(model.parameters(), 0.1)
            optimizer.step()
            results.append(loss.item())
        losses.append(results)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_the_registered_step_passes_opcheck():
    hyper = [0.1, 0.9, 0.999, 1e-8, 0.0, 0.0, 0.0]
    arguments = [torch.ones(3), torch.ones(2, 2)], [torch.ones(3), torch.ones(2, 2)], torch.zeros(2, 7), hyper, 1
    torch.library.opcheck(torch.ops.fastgrad.adam_step.default, arguments)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "AdamW: maximize must be False", lambda p: fgt.AdamW(p, maximize=True)),
        (TypeError, "Adam: unknown arguments momentum", lambda p: fgt.Adam(p, momentum=0.9)),
        (ValueError, "Adam: lr must be at least 0 and finite, got -1", lambda p: fgt.Adam(p, lr=-1)),
        (ValueError, r"Adam: betas\[1\] must be at least 0 and below 1, got 1", lambda p: fgt.Adam(p, betas=(0.9, 1))),
    ],
)
def test_bad_settings_are_refused(error, message, make):
    with pytest.raises(error, match=message):
        make([nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, dtype=torch.float16), r"Adam: a parameter must be torch\.float32 or torch\.float64, got torch\.float16"),
        (torch.ones(2, device="meta"), "Adam: a parameter must be on the CPU, got meta"),
        (torch._neg_view(torch.ones(2)), "adam_step: a parameter must be no negated view"),
        (torch.ones(4)[::2], r"adam_step: a parameter must be dense in memory, got \(2,\) with strides \(2,\)"),
    ],
)  # fmt: skip
def test_parameters_that_kernels_cannot_take_are_refused(value, message):
    p = nn.Parameter(value)
    p.grad = torch.ones_like(p)
    with pytest.raises((TypeError, ValueError), match=message):
        fgt.Adam([p]).step()


def test_gradients_that_are_negated_views_have_their_sign(in_force):
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for p in params:
        p.grad = torch._neg_view(torch.tensor([3.0, 4.0]))
    assert fgt.clip_grad_norm_(params[0], 1.0) == 5
    torch.testing.assert_close(params[0].grad, torch.tensor([-0.6, -0.8]))
    fgt.Adam(params, 0.1).step()
    for p in params:
        torch.testing.assert_close(p.detach(), torch.full((2,), 0.1))


def test_a_sparse_gradient_is_refused_and_nothing_written():
    embedding, dense = nn.Embedding(3, 4, sparse=True), nn.Parameter(torch.ones(2))
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    before = embedding.weight.detach().clone()
    optimizer = fgt.Adam([dense, *embedding.parameters()])
    with pytest.raises(TypeError, match=r"gradients\[1\] must be dense, got torch\.sparse_coo"):
        optimizer.step()
    assert (dense == 1).all()
    np.testing.assert_array_equal(embedding.weight.detach(), before)


def test_a_step_whose_state_float32_cannot_hold_raises_and_changes_nothing(torch):
    """PyTorch's second moment is infinite from then on, and the parameter never moves again."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = fgt.Adam([p], lr=0.1)
    p.grad = torch.full((3,), 0.5)
    optimizer.step()
    before = p.detach().clone(), {name: v.clone() for name, v in optimizer.state_dict()["state"][0].items()}
    p.grad = torch.tensor([0.0, 1e21, 0.0])
    with pytest.raises(FloatingPointError, match="would not be finite in float32"):
        optimizer.step()
    assert torch.equal(p, before[0])
    assert all(torch.equal(v, before[1][name]) for name, v in optimizer.state_dict()["state"][0].items())


def test_a_size_that_changed_is_refused_and_nothing_is_written(in_force):
    """`data` may be exchanged for another: kernels are told where values lie, and how many there are by the state."""
    for change in (
        lambda p: setattr(p, "data", torch.ones(3)),
        lambda p: setattr(p, "data", p.data[:5]),
        lambda p: setattr(p.grad, "data", torch.ones(2)),
    ):
        params = [nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(2, 2))]
        optimizer = fgt.Adam(params)
        draw_gradients(params, 0)
        optimizer.step()
        change(params[0])
        before = [p.detach().clone() for p in params]
        with pytest.raises(
            ValueError, match=r"adam_step: (params|gradients)\[0\] must have 7 values like its state, got \d"
        ):
            optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def _exchange_parameter(optimizer):
    """As Gaussian splatting grows its parameters: the state of the old one, longer, for a new one."""
    group = optimizer.param_groups[0]
    old = group["params"][0]
    new = nn.Parameter(torch.cat([old.detach(), torch.zeros_like(old.detach())]))
    state = optimizer.state.pop(old)
    group["params"][0] = new
    optimizer.state[new] = {k: v if v.dim() == 0 else torch.cat([v, torch.zeros_like(v)]) for k, v in state.items()}


def _keep_dictionary(optimizer):
    group = optimizer.param_groups[0]
    old = group["params"][0]
    new = group["params"][0] = nn.Parameter(old.detach() * 0.5)
    state = optimizer.state[old]
    state["exp_avg"] = torch.zeros_like(new)
    del optimizer.state[old]
    optimizer.state[new] = state


def _first(optimizer):
    return optimizer.state[optimizer.param_groups[0]["params"][0]]


CHANGES = {
    "cleared": lambda o: o.state.clear(),
    "a new dictionary": lambda o: setattr(o, "state", defaultdict(dict)),
    "one parameter's popped": lambda o: o.state.pop(o.param_groups[0]["params"][1]),
    "one parameter's cleared": lambda o: _first(o).clear(),
    "steps set back in place": lambda o: [entry["step"].zero_() for entry in o.state.values()],
    "one step exchanged": lambda o: _first(o).update(step=torch.tensor(7.0)),
    "a moment exchanged": lambda o: _first(o).__setitem__("exp_avg", torch.ones_like(_first(o)["exp_avg"])),
    "a moment exchanged for its equal": lambda o: _first(o).update(exp_avg=_first(o)["exp_avg"].clone()),
    "a moment written to": lambda o: _first(o)["exp_avg_sq"].mul_(9),
    "a parameter exchanged": _exchange_parameter,
    "a parameter exchanged, its dictionary kept": _keep_dictionary,
    "a group added": lambda o: o.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.float64))]}),
    "its own state loaded": lambda o: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "loaded, then changed": lambda o: (o.load_state_dict(o.state_dict()), _first(o)["step"].fill_(1)),
    "amsgrad from now on": lambda o: (
        o.param_groups[0].update(amsgrad=True),
        [e.update(max_exp_avg_sq=e["exp_avg_sq"].clone()) for e in o.state.values()],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_state_is_pytorchs_and_read_at_every_step(in_force, change):
    states, lists = [], []
    for kind in PAIRS[0]:
        optimizer = kind([nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (3, 1)], 0.1)
        for step in range(6):
            if step == 3:
                CHANGES[change](optimizer)
            params = [p for group in optimizer.param_groups for p in group["params"]]
            draw_gradients(params, step)
            optimizer.step()
            states.append([{k: v.clone() for k, v in optimizer.state[p].items()} for p in params])
        lists.append(params)
    torch.testing.assert_close(states[:6], states[6:], rtol=1e-12, atol=1e-14)
    same(*lists)
    assert all(type(entry) is dict for entry in optimizer.state_dict()["state"].values())


def test_moments_of_another_shape_are_refused_and_nothing_written():
    p = nn.Parameter(torch.ones(3))
    optimizer = fgt.Adam([p])
    train(optimizer, [p], 1)
    optimizer.state[p]["exp_avg"] = torch.zeros(1)
    before = p.detach().clone()
    with pytest.raises(ValueError, match=r"adam_step: exp_avg of a parameter must be \(3,\), got \(1,\)"):
        train(optimizer, [p], 1)
    same([p], [before])


@pytest.mark.parametrize("updated", [True, False])
def test_a_step_that_is_interrupted_is_counted_if_it_was_made(monkeypatch, updated):
    params, expected = parameters(), parameters()
    optimizer, theirs = fgt.Adam(params, 0.1), torch.optim.Adam(expected, 0.1)
    train(optimizer, params, 2)
    train(theirs, expected, 2)

    def interrupted(*arguments):
        if updated:
            update(*arguments)
        raise KeyboardInterrupt

    update = optim_state.update_parameters
    monkeypatch.setattr(optim_state, "update_parameters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(optimizer, params, 1, first=2)
    monkeypatch.undo()
    if updated:
        train(theirs, expected, 1, first=2)
    assert [entry["step"].item() for entry in optimizer.state.values()] == [2 + updated] * 5
    train(optimizer, params, 2, first=3)
    train(theirs, expected, 2, first=3)
    same(params, expected)


def test_a_compiled_step_is_taken_out_of_the_program():
    lists = [], []
    for kind, params in zip(PAIRS[0], lists, strict=True):
        params += parameters()[1:3]
        optimizer = kind(params, 0.1)
        step = torch.compile(optimizer.step, backend="eager") if kind is fgt.Adam else optimizer.step
        for i in range(3):
            draw_gradients(params, i)
            step()
    same(*lists)
