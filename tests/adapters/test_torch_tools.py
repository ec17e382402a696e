"""Accelerated models in PyTorch's own tools: copies, pickles, undo, replicas, functional calls, transforms, traces and exports."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_models import Block, Recurrent, assert_identical, attributes, dense, images, input_of  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402


@pytest.mark.parametrize("make", [dense, images, Block])
def test_parameters_that_are_given_for_a_call_are_used(make):
    torch.manual_seed(0)
    theirs, x = make().eval(), input_of(make)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    parameters = {name: value / 2 for name, value in theirs.state_dict().items()}
    torch.testing.assert_close(*(torch.func.functional_call(net, parameters, (x,)) for net in (ours, theirs)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transforms_and_tangents_go_through_pytorchs_layers():
    theirs, x = dense(), input_of(dense)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    parameters = dict(theirs.named_parameters())

    def gradients(net):
        return torch.func.grad(lambda p: torch.func.functional_call(net, p, (x,)).square().sum())(parameters)

    def tangent(net):
        with torch.no_grad(), torch.autograd.forward_ad.dual_level():
            y = net(torch.autograd.forward_ad.make_dual(x, x))
            return torch.autograd.forward_ad.unpack_dual(y).tangent

    for of in (lambda net: torch.func.vmap(net)(x), gradients, tangent):
        torch.testing.assert_close(of(ours), of(theirs))


@pytest.mark.parametrize("make", [dense, images, Block, Recurrent])
def test_other_dtypes_and_devices_run_as_pytorchs(make):
    net, x = make(), input_of(make)
    fgt.accelerate(net)
    assert net.bfloat16()(x.bfloat16()).dtype is torch.bfloat16
    assert net.float().to("meta")(x.float().to("meta")).is_meta


@pytest.mark.parametrize("make", [dense, images, Block, Recurrent])
def test_undo_leaves_nothing_behind(make):
    net, x = make(), input_of(make)
    before = attributes(net)
    report = fgt.accelerate(net)
    net(x).sum().backward()
    report.undo()
    assert_identical(attributes(net), before)


def test_what_was_put_over_a_fused_forward_is_left_there():
    net, x = dense(), input_of(dense)
    report = fgt.accelerate(net)
    fused = net.forward
    net.forward = lambda x: fused(x) * 2
    expected = net(x)
    report.undo()
    torch.testing.assert_close(net(x), expected)
    del net.forward
    assert vars(net).keys() == vars(dense()).keys()


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
@pytest.mark.parametrize("make", [dense, images, Block, Recurrent])
def test_a_copy_is_its_own_and_can_be_undone(make, copied):
    net, x = make().eval(), input_of(make)
    kinds = [type(module) for module in net.modules()]
    fgt.accelerate(net)
    expected, other = net(x), copied(net)
    torch.testing.assert_close(other(x), expected)
    report = fgt.accelerate(other)
    assert not report.replaced
    assert "is accelerated already" in dict(report.left).values()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    torch.testing.assert_close(net(x), expected)
    changed = other(x)
    report.undo()
    torch.testing.assert_close(other(x), changed)
    assert [type(module) for module in other.modules()] == kinds
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(other.modules(), make().modules(), strict=True))
    torch.testing.assert_close(net(x), expected)


def test_replicas_for_other_devices_run_pytorchs_forward():
    for make in (dense, Block):
        net = make()
        fgt.accelerate(net)
        assert vars(net._replicate_for_data_parallel()).keys() - vars(make()).keys() == {"_is_replica"}
        torch.testing.assert_close(nn.DataParallel(net.eval())(input_of(make)), net(input_of(make)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", [dense, Block, Recurrent])
def test_traces_and_exports_are_of_pytorchs_operators(make):
    net, x = make().eval(), input_of(make)
    expected = net(x).detach()
    fgt.accelerate(net)
    trace = torch.jit.trace(net, x)
    assert "fastgrad::" not in str(trace.inlined_graph)
    exported = torch.export.export(net, (x,))
    assert "fastgrad" not in str(exported.graph)
    for other in (trace, exported.module()):
        torch.testing.assert_close(other(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_an_onnx_file_is_of_onnx_operators():
    onnx = pytest.importorskip("onnx")
    net, x = images().float().eval(), input_of(images).float()
    fgt.accelerate(net)
    file = io.BytesIO()
    torch.onnx.export(net, (x,), file, dynamo=False)
    assert {node.domain for node in onnx.load_from_string(file.getvalue()).graph.node} == {""}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [dense, Block, Recurrent])
def test_torchscript_is_told_to_undo_first(make):
    net, x = make().eval(), input_of(make)
    expected = net(x)
    report = fgt.accelerate(net)
    for model in (net, nn.Sequential(net)):
        with pytest.raises(RuntimeError, match=r"call undo\(\) of its report first"):
            torch.jit.script(model)
    report.undo()
    torch.testing.assert_close(torch.jit.script(net)(x), expected)


def test_torch_fx_sees_the_layers():
    for make in (dense, Block):
        net, x = make().eval(), input_of(make)
        fgt.accelerate(net)
        traced = torch.fx.symbolic_trace(net)
        assert "fastgrad" not in str(traced.graph)
        torch.testing.assert_close(traced(x), net(x))
    net = Recurrent()
    fgt.accelerate(net)
    with pytest.raises(RuntimeError, match=r"call undo\(\) of its report first"):
        torch.fx.symbolic_trace(net)
