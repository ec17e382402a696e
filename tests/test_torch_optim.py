"""fgt.Adam and fgt.AdamW beside PyTorch's own: parameters, state_dict both ways, groups, and what they refuse."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402

PAIRS = [(fgt.Adam, torch.optim.Adam), (fgt.AdamW, torch.optim.AdamW)]


def parameters(dtype=torch.float64):
    """Of several layouts: contiguous, turned, channels last, of no values and of no axes."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, dtype=dtype, generator=generator) for shape in ((3, 4), (5,), (2, 3, 4, 5), (0, 2), ())]
    made[0] = made[0].t()
    made[2] = made[2].contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(p) for p in made]


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


@pytest.mark.parametrize(
    "wrong", [torch.ones(3, dtype=torch.float64), torch.ones(3, device="meta"), torch.ones(3).to_sparse()]
)
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


def test_clipping_and_adam_train_as_pytorchs():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    x, target, losses = torch.randn(20, 6), torch.randint(3, (20,)), []
    for kind, clip in ((fgt.Adam, fgt.clip_grad_norm_), (torch.optim.Adam, nn.utils.clip_grad_norm_)):
        model = copy.deepcopy(first)
        optimizer, found = kind(model.parameters(), 1e-2), []
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            clip(model.parameters(), 0.1)
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
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
        (torch.ones(4)[::2], r"adam_step: a parameter must be dense in memory, got \(2,\) with strides \(2,\)"),
    ],
)  # fmt: skip
def test_parameters_that_kernels_cannot_take_are_refused(value, message):
    p = nn.Parameter(value)
    p.grad = torch.ones_like(p)
    with pytest.raises((TypeError, ValueError), match=message):
        fgt.Adam([p]).step()


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
