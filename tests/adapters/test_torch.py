"""Operators in PyTorch: against PyTorch's own, by gradcheck and opcheck, compiled, and what they refuse."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402
from torch_inputs import (  # noqa: E402
    ACTS,
    chain_inputs,
    conv_inputs,
    draw,
    gru_inputs,
    lstm_inputs,
    lstm_variant_inputs,
    norm_inputs,
    same,
)

import fastgrad.torch as fgt  # noqa: E402
from fastgrad.core.backend import kernels  # noqa: E402
from fastgrad.kernels.types import ACTIVATIONS  # noqa: E402
from fastgrad.torch import tensors  # noqa: E402
from fastgrad.torch.ops import conv  # noqa: E402

LSTM_VARIANT = {"directions": 2, "layer_norm": True, "zoneout": (0.3, 0.2), "recurrent_dropout": 0.4}


@pytest.mark.parametrize("act", ACTS)
def test_a_chain_is_pytorchs_linear_after_linear(in_force, act):
    x, weights, biases, residual = chain_inputs()
    f = ACTS[act]
    expected = f(F.linear(f(F.linear(x, weights[0], biases[0])), weights[1]) + residual)
    results = fgt.dense_chain(x, weights, biases, act, residual)
    same(results, expected, [x, *weights, biases[0], residual])


def test_a_chain_takes_sequences_and_views(in_force):
    x, weights, biases, _ = chain_inputs()
    sequences, turned = draw(2, 5, 4), draw(4, 6)
    results = fgt.dense_chain(sequences, weights, biases)
    same(results, torch.stack([fgt.dense_chain(part, weights, biases) for part in sequences]), [sequences, *weights])
    same(fgt.dense_chain(x[::2], [turned.t()], None, "tanh"), torch.tanh(F.linear(x[::2], turned.t())), [x, turned])


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("act", ["relu", "silu"])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_batch_norm_is_pytorchs(in_force, shape, act, training, last):
    x, gamma, beta, mean, var = norm_inputs(*shape, last=last)
    residual, theirs = draw(*shape, last=last, seed=5), (mean.clone(), var.clone())
    expected = ACTS[act](F.batch_norm(x, *theirs, gamma, beta, training, 0.3, 1e-3) + residual)
    before = mean._version
    options = {"training": training, "momentum": 0.3, "eps": 1e-3}
    results = fgt.batch_norm(x, gamma, beta, mean, var, activation=act, residual=residual, **options)
    same(results, expected, [x, gamma, beta, residual])
    for ours, other in zip((mean, var), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)
    assert (mean._version > before) == training


@pytest.mark.parametrize("act", ["identity", "relu", "silu"])
@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 3), 1), ((4, 3, 5), 1), ((4, 3, 5), 2), ((2, 3, 4, 5), 3), ((7,), 1), ((0, 4), 1)]
)
def test_layer_norm_is_pytorchs(in_force, shape, axes, act):
    x, residual = draw(*shape), draw(*shape, seed=5)
    gamma, beta = draw(*shape[-axes:], seed=1), draw(*shape[-axes:], seed=2)
    expected = ACTS[act](F.layer_norm(x, shape[-axes:], gamma, beta, 1e-3) + residual)
    results = fgt.layer_norm(x, gamma, beta, eps=1e-3, activation=act, residual=residual)
    same(results, expected, [x, gamma, beta, residual])


def test_a_layer_norm_takes_views(in_force):
    x, residual, gamma, beta = draw(5, 3), draw(5, 3, seed=5), draw(5, seed=1), draw(5, seed=2)
    results = fgt.layer_norm(x.t(), gamma, beta, activation="gelu", residual=residual.t())
    expected = F.gelu(F.layer_norm(x.t(), (5,), gamma, beta) + residual.t())
    same(results, expected, [x, gamma, beta, residual])


def test_a_layer_norm_names_what_does_not_fit():
    x, vector = torch.ones(2, 3), torch.ones(3)
    with pytest.raises(
        ValueError, match=r"layer_norm: x must be \(\.\.\., \*gamma\.shape\) .* got \(2, 3\) and \(2,\)"
    ):
        fgt.layer_norm(x, vector[:2], vector[:2])
    with pytest.raises(ValueError, match=r"layer_norm: beta must be like gamma = \(3,\), got \(2,\)"):
        fgt.layer_norm(x, vector, vector[:2])
    with pytest.raises(ValueError, match=r"layer_norm: residual must be like x = \(2, 3\), got \(3,\)"):
        fgt.layer_norm(x, vector, vector, residual=vector)
    with pytest.raises(ValueError, match="layer_norm: activation softmax needs a gamma of one axis"):
        fgt.layer_norm(x, x, x, activation="softmax")
    with pytest.raises(TypeError, match=r"layer_norm: gamma must be float32, got float64"):
        fgt.layer_norm(x, vector.double(), vector)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"padding": "same"}, {"groups": 2, "dilation": 2, "padding": (2, 1)}]
)
@pytest.mark.parametrize("act", ["relu", "gelu", "identity"])
def test_a_convolution_is_pytorchs(in_force, act, options, last):
    x, weight, bias, _ = conv_inputs(last)
    weight = weight.detach()[:, : 4 // options.get("groups", 1)].requires_grad_()
    z = F.conv2d(x, weight, bias, **options)
    residual = draw(*z.shape, last=last)
    same(fgt.conv2d(x, weight, bias, activation=act, residual=residual, **options), ACTS[act](z + residual),
         [x, weight, bias, residual])  # fmt: skip
    same(fgt.conv2d(x, weight, activation=act, **options), ACTS[act](F.conv2d(x, weight, **options)), [x, weight])


@pytest.mark.parametrize("last", [True, False])
def test_a_convolution_with_other_padding_on_one_side_is_that_of_a_padded_image(in_force, last):
    x, weight, bias, _ = conv_inputs(last)
    expected = F.conv2d(F.pad(x, (0, 1, 2, 1)), weight, bias, 2)
    same(fgt.conv2d(x, weight, bias, stride=2, padding=((2, 1), (0, 1))), expected, [x, weight, bias])
    same(fgt.conv2d(x, weight, bias, padding="valid"), F.conv2d(x, weight, bias), [x, weight, bias])


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "residual"])
def test_what_is_frozen_of_a_convolution_has_no_gradient_computed(monkeypatch, frozen):
    """And the others' gradients keep their bits."""
    inputs = dict(zip(("x", "weight", "bias", "residual"), conv_inputs(), strict=True))
    expected = torch.autograd.grad(fgt.conv2d(**inputs).square().sum(), list(inputs.values()))
    ops, written = kernels(), []

    def conv2d_backward(*arguments):
        written.append(arguments[-1])
        ops.conv2d_backward(*arguments)

    spy = SimpleNamespace(conv2d_forward=ops.conv2d_forward, conv2d_backward=conv2d_backward)
    monkeypatch.setattr(conv, "kernels", lambda: spy)
    inputs[frozen] = inputs[frozen].detach()
    fgt.conv2d(**inputs).square().sum().backward()
    for (name, tensor), gradient in zip(inputs.items(), expected, strict=True):
        assert tensor.grad is None if name == frozen else torch.equal(tensor.grad, gradient)
    (gradients,) = written
    assert [d is None for d in gradients[1:]] == [name == frozen for name in ("x", "weight", "bias")]


def test_a_block_is_convolution_norm_and_activation(in_force):
    x, weight, _, residual = conv_inputs()
    gamma, beta = draw(6), draw(6, seed=1)
    expected = F.relu(F.batch_norm(F.conv2d(x, weight), None, None, gamma, beta, True) + residual)
    same(fgt.conv_block(x, weight, gamma, beta, residual=residual), expected, [x, weight, gamma, beta, residual])


def test_no_rows_no_steps_and_one_image_are_as_in_pytorch():
    w, v = draw(3, 4), draw(6, 4, 3, 3)
    for shape in ((0, 4), (0, 2, 4), (2, 0, 4), (4,)):
        x = draw(*shape)
        same(fgt.dense_chain(x, [w], None, "tanh"), torch.tanh(F.linear(x, w)), [x, w])
    image = draw(4, 5, 6)
    same(
        fgt.conv2d(image, v, activation="relu", residual=draw(6, 3, 4)),
        F.relu(F.conv2d(image, v) + draw(6, 3, 4)),
        [image, v],
    )
    net = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 1), nn.SiLU()).double()
    expected = net(image)
    fgt.accelerate(net)
    same(net(image), expected, [image, *net.parameters()])
    none = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            fgt.cross_entropy(*none, reduction), F.cross_entropy(*none, reduction=reduction), equal_nan=True
        )
    for kind in (fgt.LSTM, fgt.GRU):
        module = kind(4, 3, batch_first=True)
        y, _ = module(torch.zeros(0, 2, 4))
        assert y.shape == (0, 2, 3)
        assert not any(d.any() for d in torch.autograd.grad(y.sum(), [*module.parameters()]))
        with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
            module(torch.zeros(2, 0, 4))


def test_results_share_memory_and_inputs_do_not_change(in_force):
    x = draw(5, 4)
    assert np.shares_memory(tensors.array("op", "x", x), x.detach().numpy())
    image = draw(2, 3, 4, 5)
    assert np.shares_memory(tensors.channels_last(tensors.array("op", "x", image)), image.detach().numpy())
    y = fgt.batch_norm(image, draw(3), draw(3))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert fgt.conv2d(image, draw(6, 3, 3, 3)).is_contiguous(memory_format=torch.channels_last)


CASES = {
    "dense_chain": lambda: (
        lambda x, w0, w1, b, r: fgt.dense_chain(x, [w0, w1], [b, None], ["gelu", "tanh"], r),
        (lambda x, ws, bs, r: (x, *ws, bs[0], r))(*chain_inputs()),
    ),
    "batch_norm": lambda: (
        lambda x, g, b, r: fgt.batch_norm(x, g, b, activation="silu", residual=r),
        (*norm_inputs(2, 3, 2, 2)[:3], draw(2, 3, 2, 2, seed=3)),
    ),
    "layer_norm": lambda: (
        lambda x, g, b, r: fgt.layer_norm(x, g, b, activation="silu", residual=r),
        (draw(4, 2, 3), draw(2, 3, seed=1), draw(2, 3, seed=2), draw(4, 2, 3, seed=3)),
    ),
    "conv2d": lambda: (lambda x, w, b, r: fgt.conv2d(x, w, b, activation="silu", residual=r), conv_inputs()),
    "cross_entropy": lambda: (lambda x: fgt.cross_entropy(x, torch.tensor([0, 1, 3, 2, 0])), (draw(5, 4),)),
    "lstm": lambda: (
        lambda x, *weights: fgt.lstm(x, weights, directions=2, projects=True)[0],
        (lstm_inputs()[0], *lstm_inputs()[1]),
    ),
    "lstm_variant": lambda: (
        lambda x, *weights: fgt.lstm(x, weights, key=torch.tensor([3, -4]), **LSTM_VARIANT)[0],
        lstm_variant_inputs(),
    ),
    "gru": lambda: (
        lambda x, h_0, *weights: fgt.gru(x, weights, h_0, directions=2)[0],
        (gru_inputs()[0], draw(2, 3, 5), *gru_inputs()[1]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_gradients_pass_gradcheck(in_force, case):
    function, inputs = CASES[case]()
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_compiled_operators_give_the_same_and_no_graph_breaks(case):
    function, inputs = CASES[case]()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    same(compiled(*inputs), function(*inputs), inputs, rtol=1e-14, atol=1e-14)


def registered():
    """Arguments with which every registered operator is checked."""
    x, weights, biases, residual = chain_inputs()
    yield "dense_chain", (x, [*weights, biases[0]], [True, False], [ACTIVATIONS["gelu"].code, 5], [0.0, 0.0], residual)
    yield "dense_chain", (x, weights, [False, False], [1, 0], [0.0, 0.0], None)
    x, weights = lstm_inputs()
    yield "lstm", (x, weights, None, None, None, None, 2, True, True, True)
    packed = pack_sequence([draw(k, 4) for k in (2, 6, 1, 4)], enforce_sorted=False)
    states = draw(2, 4, 3), draw(2, 4, 5)
    yield (
        "lstm",
        (packed.data.detach(), weights, *states, packed.batch_sizes, packed.sorted_indices, 2, True, True, True),
    )
    x, *weights = lstm_variant_inputs()
    states, numbers = (draw(2, 4, 5), draw(2, 4, 5, seed=1)), (0.2, 0.3, 0.4, 1e-5)
    rows, key = (packed.data.detach(), packed.batch_sizes, packed.sorted_indices), torch.tensor([3, -4])
    yield "lstm_variant", (x, weights, None, None, None, None, None, 2, True, True, *numbers, True)
    yield "lstm_variant", (rows[0], weights, *states, *rows[1:], key, 2, True, True, *numbers, True)
    yield (
        "lstm_variant",
        (x, [w for w in weights if w.dim() == 2], None, None, None, None, key, 2, False, False, *numbers, True),
    )
    x, weights = gru_inputs()
    states = draw(2, 4, 3), draw(2, 4, 5)
    yield "gru", (x, weights, None, None, None, 2, True, True)
    yield "gru", (packed.data.detach(), weights, states[1], packed.batch_sizes, packed.sorted_indices, 2, True, True)
    x, gamma, beta, *running = norm_inputs(2, 3, 4, 5)
    yield (
        "batch_norm",
        (x, gamma, beta, *running, draw(2, 3, 4, 5, seed=3), True, 0.1, 1e-5, ACTIVATIONS["silu"].code, 0.0),
    )
    yield "batch_norm", (x, gamma, beta, *running, None, False, 0.1, 1e-5, 1, 0.0)
    x, vectors = draw(4, 3), (draw(3, seed=1), draw(3, seed=2))
    yield "layer_norm", (x, *vectors, draw(4, 3, seed=3), 1e-5, ACTIVATIONS["silu"].code, 0.0)
    yield "layer_norm", (x, *vectors, None, 1e-5, 1, 0.0)
    yield "conv2d", (*conv_inputs(), [1, 1], [0, 0, 0, 0], [1, 1], 1, ACTIVATIONS["gelu"].code, 0.0)
    yield "conv2d", (*conv_inputs(False)[:2], None, None, [2, 1], [1, 0, 1, 0], [1, 1], 1, 0, 0.0)
    yield "cross_entropy", (draw(5, 4), torch.tensor([0, 1, 3, 2, 0]), "mean")
    yield "cross_entropy", (draw(5, 4), torch.softmax(draw(5, 4, seed=1).detach(), 1), "none")
    yield (
        "cross_entropy",
        (draw(5, 4, 2), torch.zeros(5, 2, dtype=torch.long), "none", torch.rand(4, dtype=torch.float64), 1, 0.1),
    )
    yield "clip_grad_norm_", ([draw(3).detach(), draw(2).detach()], 0.1, 2.0, False)


@pytest.mark.parametrize(("name", "arguments"), list(registered()))
def test_registrations_pass_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.fastgrad, name).default, arguments)


@pytest.mark.parametrize("case", CASES)
def test_a_second_derivative_and_transforms_are_refused(case):
    function, inputs = CASES[case]()
    op = case.removesuffix("_variant")
    with pytest.raises(NotImplementedError, match=f"{op}: there is no second derivative"):
        torch.autograd.grad(function(*inputs).sum(), inputs[0], create_graph=True)
    for transform in (torch.func.vmap, torch.func.jacrev):
        with pytest.raises(NotImplementedError, match=f"{op}: torch.func's transforms"):
            transform(function)(*(a.detach()[None] for a in inputs))


def test_a_second_derivative_of_the_registered_operator_is_refused():
    logits = draw(5, 4)
    loss = torch.ops.fastgrad.cross_entropy(logits, torch.tensor([0, 1, 3, 2, 0]), "mean")[0]
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="cross_entropy: there is no second derivative"):
        torch.autograd.grad(first.sum(), logits)
    with pytest.raises(NotImplementedError, match=r"torch\.func's transforms"):
        torch.func.vmap(torch.ops.fastgrad.cross_entropy, in_dims=(0, None, None))(
            logits[None], torch.zeros(5, dtype=int), "mean"
        )


def test_a_written_input_is_found_by_autograd():
    x, weights, biases, _ = chain_inputs()
    y = fgt.dense_chain(x, weights, biases)
    with torch.no_grad():
        weights[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


AUTOCAST = {
    "dense_chain": (lambda x: fgt.dense_chain(x, [torch.ones(3, 4)]), lambda x: F.relu(F.linear(x, torch.ones(3, 4)))),
    "with a residual": (
        lambda x: fgt.dense_chain(x, [torch.ones(3, 4)], residual=torch.ones(2, 3)),
        lambda x: F.relu(F.linear(x, torch.ones(3, 4)) + torch.ones(2, 3)),
    ),
    "conv2d": (
        lambda x: fgt.conv2d(x.reshape(2, 4, 1, 1), torch.ones(3, 4, 1, 1)),
        lambda x: F.conv2d(x.reshape(2, 4, 1, 1), torch.ones(3, 4, 1, 1)),
    ),
    "batch_norm": (
        lambda x: fgt.batch_norm(x, torch.ones(4), torch.ones(4)),
        lambda x: F.batch_norm(x, None, None, torch.ones(4), torch.ones(4), True),
    ),
    "layer_norm": (
        lambda x: fgt.layer_norm(x, torch.ones(4), torch.ones(4)),
        lambda x: F.layer_norm(x, (4,), torch.ones(4), torch.ones(4)),
    ),
    "cross_entropy": (
        lambda x: fgt.cross_entropy(x, torch.tensor([0, 3])),
        lambda x: F.cross_entropy(x, torch.tensor([0, 3])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", AUTOCAST)
def test_results_have_the_dtypes_of_pytorch_under_autocast(case, low):
    ours, theirs = AUTOCAST[case]
    for dtype in (torch.float32, low):
        x = draw(2, 4, dtype=torch.float32).to(dtype)
        with torch.autocast("cpu", low):
            results, expected = ours(x), theirs(x)
        assert results.dtype == expected.dtype
        torch.testing.assert_close(results, expected, rtol=0.02, atol=0.02)


def test_autocast_computes_in_float32_and_gradients_are_float32():
    x, weights, biases, _ = chain_inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fgt.dense_chain(x.bfloat16(), weights, biases)
    expected = fgt.dense_chain(x.bfloat16().float(), weights, biases)
    torch.testing.assert_close(y, expected.bfloat16())
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.sum(), [x, *weights]))


def test_meta_and_fake_tensors_find_shapes():
    weights = [torch.ones(6, 4, device="meta"), torch.ones(3, 6, device="meta")]
    assert fgt.dense_chain(torch.ones(5, 4, device="meta"), weights).shape == (5, 3)
    image = torch.ones(2, 4, 7, 6, device="meta")
    assert fgt.conv2d(image, torch.ones(6, 4, 3, 3, device="meta"), stride=2).shape == (2, 6, 3, 2)
    with torch._subclasses.FakeTensorMode():
        assert fgt.batch_norm(torch.ones(2, 4, 3, 3), torch.ones(4), torch.ones(4)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.long(), r"dense_chain: x must be torch.float32 or torch.float64, got torch.int64"),
        (lambda x: x.bfloat16(), r"dense_chain: x must be torch.float32 or torch.float64, got torch.bfloat16"),
        (lambda x: x.float(), r"dense_chain: weights\[0\] must be float32, got float64"),
        (lambda x: x.detach().to_sparse(), r"dense_chain: x must be dense, got torch.sparse_coo"),
        (lambda x: x.detach().numpy(), r"dense_chain: x must be a tensor, got ndarray"),
        (lambda x: x[:, :3], r"dense_chain: weights\[0\] must be \(K_out, K_in\) = \(_, 3\), got \(6, 4\)"),
        (lambda x: None, r"dense_chain: x must be a tensor, got NoneType"),
    ],
)  # fmt: skip
def test_bad_tensors_are_refused_by_name(change, message):
    x, weights, biases, _ = chain_inputs()
    with pytest.raises((TypeError, ValueError), match=message):
        fgt.dense_chain(change(x), weights, biases)


def test_tensors_of_other_devices_are_refused_by_name():
    x, weights, biases, _ = chain_inputs()
    with pytest.raises(TypeError, match=r"dense_chain: weights\[1\] must be on the CPU, got meta"):
        fgt.dense_chain(x, [weights[0], weights[1].to("meta")], biases)
    with pytest.raises(ValueError, match=r"cross_entropy: labels must be in 0..3, got -1 at index 1"):
        fgt.cross_entropy(draw(2, 4), torch.tensor([0, -1]))
    with pytest.raises(TypeError, match=r"cross_entropy: target must be dense, got torch\.sparse_coo"):
        fgt.cross_entropy(draw(2, 4), torch.tensor([0, 1]).to_sparse())
    with pytest.raises(ValueError, match=r"batch_norm: x must be \(N, C\), \(N, C, L\) or \(N, C, H, W\), got \(3,\)"):
        fgt.batch_norm(draw(3), draw(3), draw(3))
    with pytest.raises(ValueError, match="conv2d: groups must divide"):
        fgt.conv2d(draw(1, 4, 3, 3), draw(3, 2, 3, 3), groups=2)


def test_running_statistics_stay_where_a_call_fails(in_force):
    _, gamma, beta, mean, var = norm_inputs(5, 3)
    for x, residual in ((draw(5, 3), draw(4, 3)), (draw(1, 3), None)):
        with pytest.raises(ValueError, match="batch_norm"):
            fgt.batch_norm(x, gamma, beta, mean, var, residual=residual)
    assert (mean == 1).all()
    assert (var == 2).all()


def test_an_import_of_fastgrad_does_not_import_torch_and_threads_stay():
    code = """
import sys, fastgrad
assert "torch" not in sys.modules
import torch
before = torch.get_num_threads(), torch.get_num_interop_threads()
import fastgrad.torch as fgt
x = torch.randn(300, 300, requires_grad=True)
fgt.dense_chain(x, [x, x]).sum().backward()
assert before == (torch.get_num_threads(), torch.get_num_interop_threads())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
