"""Losses and clipping in PyTorch against PyTorch's own: options, orders of axes, and what is refused."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch_inputs import draw, same  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("probabilities", [True, False])
def test_cross_entropy_is_pytorchs(in_force, reduction, probabilities):
    logits, target = draw(5, 4), torch.tensor([0, 1, 3, 2, 0])
    if probabilities:
        target = torch.softmax(draw(5, 4, seed=2).detach(), 1)
    expected = F.cross_entropy(logits, target, reduction=reduction)
    same(fgt.cross_entropy(logits, target, reduction), expected, [logits])


@pytest.mark.parametrize("shape", [(5,), (3, 5), (3, 5, 4), (3, 5, 2, 4), (0, 5), (0, 5, 3)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_options_and_axes_of_cross_entropy_are_pytorchs(in_force, shape, reduction, probabilities):
    axis = min(len(shape) - 1, 1)
    of_target = shape if probabilities else shape[:axis] + shape[axis + 1 :]
    logits = draw(*shape)
    weights = torch.rand(5, dtype=logits.dtype)
    for weight, ignored, smoothing in itertools.product((None, weights), (-100, 2), (0.0, 0.1)):
        ignored = -100 if probabilities else ignored
        target = torch.rand(of_target, dtype=logits.dtype) if probabilities else torch.randint(0, 5, of_target)
        if len(shape) > 1 and target.numel() and not probabilities:
            target.view(-1)[0] = ignored
        options = {"reduction": reduction, "weight": weight, "ignore_index": ignored, "label_smoothing": smoothing}
        found, expected = fgt.cross_entropy(logits, target, **options), F.cross_entropy(logits, target, **options)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, equal_nan=True)
        upstream = torch.rand_like(expected)
        pairs = (torch.autograd.grad(loss, logits, upstream)[0] for loss in (found, expected))
        torch.testing.assert_close(*pairs, equal_nan=True)


def test_the_mean_of_ignored_labels_alone_is_nan_and_its_gradient_0(in_force):
    logits = draw(3, 4)
    loss = fgt.cross_entropy(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.isnan()
    assert not logits.grad.any()


def test_options_of_cross_entropy_that_cannot_be_are_refused(in_force):
    logits, labels = draw(3, 4), torch.tensor([0, 1, 2])
    for message, options in {
        r"weights must be \(C,\) = \(4,\), got \(3,\)": {"weight": torch.rand(3).double()},
        "weights must be at least 0 and finite, got -1.0 at index 1": {
            "weight": torch.tensor([1.0, -1, 1, 1]).double()
        },
        "label_smoothing must be at least 0 and at most 1, got 1.5": {"label_smoothing": 1.5},
    }.items():
        with pytest.raises(ValueError, match=f"cross_entropy: {message}"):
            fgt.cross_entropy(logits, labels, **options)
    with pytest.raises(ValueError, match="ignore_index is for class numbers"):
        fgt.cross_entropy(logits, torch.rand(3, 4).double(), ignore_index=1)
    with pytest.raises(
        ValueError, match=r"target must be integers \(3, 2\) or torch.float64 \(3, 4, 2\), got torch.int64 \(3,\)"
    ):
        fgt.cross_entropy(draw(3, 4, 2), labels)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, np.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e3, np.inf])
def test_clipping_is_pytorchs(in_force, norm_type, max_norm):
    def parameters():
        tensors = [torch.zeros(3, 4), torch.zeros(5), torch.zeros(2)]
        for i, p in enumerate(tensors[:2]):
            p.grad = draw(*p.shape, dtype=torch.float32, seed=i).detach()
        return tensors

    ours, theirs = parameters(), parameters()
    norm = fgt.clip_grad_norm_(ours, max_norm, norm_type)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type))
    for p, q in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert ours[0].grad._version == (max_norm == 0.5)
    assert fgt.clip_grad_norm_(iter([ours[2]]), 1.0) == 0
    ours[0].grad[0] = np.nan
    with pytest.raises(RuntimeError, match="NaN or infinity in 0"):
        fgt.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    assert ours[1].grad.isfinite().all()
    assert fgt.clip_grad_norm_(ours, 1.0).isnan()


CLIPS = {
    "of two dtypes": ((torch.float32, torch.float64), 1.0, 2.0),
    "of two dtypes, the wider first": ((torch.float64, torch.float32), 1.0, 2.0),
    "of 16 bits": ((torch.bfloat16, torch.float32), 1.0, 2.0),
    "of 16 bits alone": ((torch.float16,), 1.0, 1.0),
    "by the largest, in words": ((torch.float32,), 1.0, "inf"),
    "by NumPy's infinity": ((torch.float32,), 1.0, np.float32("inf")),
    "by a tensor": ((torch.float32,), torch.tensor(1.0), torch.tensor(2.0)),
    "by a parameter": ((torch.float64,), nn.Parameter(torch.tensor(1.0)), 2),
    "to nothing": ((torch.float32,), 0, 2.0),
    "by how many are not 0": ((torch.float32,), 1.0, 0),
    "by the smallest": ((torch.float32,), 1.0, -np.inf),
    "none": ((), 1.0, "2"),
}


@pytest.mark.parametrize("case", CLIPS)
def test_clipping_takes_what_pytorchs_takes(case):
    dtypes, max_norm, norm_type = CLIPS[case]
    results = []
    for clip in (fgt.clip_grad_norm_, nn.utils.clip_grad_norm_):
        params = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
        for i, p in enumerate(params):
            p.grad = torch.tensor([2.0, -3.0, 4.0 + i]).to(p.dtype)
        results.append([clip(params, max_norm, norm_type), *(p.grad for p in params)])
    torch.testing.assert_close(*results)


def test_errors_of_clipping_name_it_once():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([1.0, np.inf])
    for error, message, arguments in (
        (RuntimeError, "clip_grad_norm_: grads must be finite, got NaN or infinity in 0", (1.0, 2.0, True)),
        (ValueError, "clip_grad_norm_: norm_type must be a number, got 'fro'", (1.0, "fro")),
        (TypeError, "clip_grad_norm_: max_norm must be a number, got None", (None,)),
        (ValueError, "clip_grad_norm_: max_norm must be above 0 and finite, got -1.0", (-1.0,)),
    ):
        with pytest.raises(error) as caught:
            fgt.clip_grad_norm_([p], *arguments)
        assert str(caught.value) == message
