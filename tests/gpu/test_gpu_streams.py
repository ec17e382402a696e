"""Arrays of other libraries are in order with their owners' streams: before a call's first launch, after its last, and no host waits.

The streams are fakegpu.py's, which know what each of their steps came after.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import gpu
from fastgrad.core import device

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

from fakegpu import FakeEvent

# of the owner, and of CuPy: the default one has two numbers, 2 is a thread's own, others are addresses
STREAMS = [(7, 0), (0, 9), (7, 9), (7, 7), (1, 0), (2, 0), (2, 1)]


class Tensor:
    """PyTorch's: it makes the stream that reads it wait for the current one of its own."""

    def __init__(self, array):
        self.array, self.device = array, array.device

    def __dlpack_device__(self):
        return 2, self.device.id

    def __dlpack__(self, stream):
        fake_gpu = self.array.gpu
        if fake_gpu.stream_at(stream) is not fake_gpu.stream_at(fake_gpu.owners):
            fake_gpu.stream_at(stream).wait_event(fake_gpu.stream_at(fake_gpu.owners).record(FakeEvent()))
        return self.array


class Interface:
    """What names its stream in __cuda_array_interface__."""

    def __init__(self, array, stream):
        self.array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, "stream": stream}


@pytest.fixture(params=["dlpack", "interface"])
def library(request, fake_gpu, monkeypatch):
    """A library on the fake GPU with a stream of its own: library(stream) gives a function that wraps arrays."""
    fake_gpu.owners = None
    cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=fake_gpu.owners))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Tensor=Tensor, cuda=cuda))

    def on(stream):
        fake_gpu.owners = stream
        return Tensor if request.param == "dlpack" else lambda array: Interface(array, stream or 1)

    return on


def ordered(fake_gpu, owners, call):
    """Call it: all its steps come after what the owner's stream was given, and before what that is given next."""
    work = owners.work()[owners.ptr]
    fake_gpu.steps.clear()
    with fake_gpu.counted() as counts:
        call()
    assert fake_gpu.steps
    assert all(seen[owners.ptr] >= work for _, seen in fake_gpu.steps)
    after = owners.work()
    assert all(after[stream.ptr] >= seen[stream.ptr] for stream, seen in fake_gpu.steps)
    return counts


def clip(wrap, array):
    fg.clip_grad_value([wrap(array((3, 4))), wrap(array((5,)).T)], 0.5)


def clip_columns(wrap, array):
    """What is not contiguous is written by way of a copy."""
    fg.clip_grad_value(wrap(array((3, 4))[:, ::2]), 0.5)


def clip_norm(wrap, array):
    fg.clip_grad_norm([wrap(array((3, 4))), wrap(array((5,)))], 1.0)


def prune(wrap, array):
    fg.prune(wrap(array((3, 4))), threshold=0.5)


def statistics(wrap, array):
    vector = [wrap(array((4,))) for _ in range(4)]
    fg.batch_norm(wrap(array((6, 4))), *vector)


def dense(wrap, array):
    """Results are CuPy's; the arrays are read until backward is gone."""
    _, backward = fg.dense(wrap(array((3, 4))), wrap(array((4, 2))))
    backward(wrap(array((3, 2))))


class Update:
    """The updater's arrays are lent anew at each step."""

    def __init__(self, wrap, array):
        self.w, self.dw = wrap(array((3, 4))), wrap(array((3, 4)))
        self.updater = fg.Updater([self.w], fg.optim.SGD(0.1), clip_norm=1.0)

    def __call__(self):
        self.updater.step([self.dw])


@pytest.mark.pairwise
@pytest.mark.parametrize(("owners", "current"), STREAMS)
@pytest.mark.parametrize("function", [clip, clip_columns, clip_norm, prune, statistics, dense])
def test_a_call_is_in_order_with_the_owners_stream(fake_gpu, library, function, owners, current):
    wrap = library(owners)
    owner, current_stream = fake_gpu.stream_at(owners), fake_gpu.stream_at(current)

    def array(shape):
        return fake_gpu.array(np.ones(shape, np.float32))

    with current_stream, fake_gpu.counted() as own:
        function(lambda a: a, array)
    events = fake_gpu.events
    with current_stream:
        counts = ordered(fake_gpu, owner, lambda: function(wrap, array))
    assert all(stream is current_stream for stream, _ in fake_gpu.steps)
    assert counts["waits"] == own["waits"]
    # a stream does not wait for itself
    assert (fake_gpu.events == events) == (owner is current_stream)


@pytest.mark.parametrize(("owners", "current"), [(7, 0), (0, 9)])
def test_an_updates_params_are_in_order_at_each_step(fake_gpu, library, owners, current):
    wrap, owner = library(owners), fake_gpu.stream_at(owners)
    with fake_gpu.stream_at(current):
        update = Update(wrap, lambda shape: fake_gpu.array(np.ones(shape, np.float32)))
        for _ in range(2):
            assert ordered(fake_gpu, owner, update)["waits"] == 0


@pytest.mark.parametrize("goes_back_on", [None, 11])
def test_what_is_given_back_elsewhere_is_in_order_with_who_read_it(fake_gpu, library, goes_back_on):
    wrap, owner = library(7), fake_gpu.stream_at(7)
    x, w, dy = (fake_gpu.array(np.ones(shape, np.float32)) for shape in ((3, 4), (4, 2), (3, 2)))
    x, w = wrap(x), wrap(w)

    def call():
        with fake_gpu.stream_at(9):
            _, backward = fg.dense(x, w)
        if goes_back_on:
            with fake_gpu.stream_at(goes_back_on) as other:
                # CuPy's own streams are its user's to order
                other.wait_event(fake_gpu.stream_at(9).record(FakeEvent()))
                backward(dy)
                del backward

    ordered(fake_gpu, owner, call)
    assert {stream.ptr for stream, _ in fake_gpu.steps} == {9, goes_back_on or 9}


def test_without_a_stream_there_is_nothing_to_wait_for(fake_gpu):
    """What has no stream, and CuPy's own arrays, whose stream is the current one."""
    events = fake_gpu.events
    a = fake_gpu.array(np.ones((3, 4), np.float32))
    with fake_gpu.stream_at(9):
        for given in (a, Interface(a, None)):
            fg.clip_grad_value(given, 0.5)
    assert fake_gpu.events == events
    assert {stream.ptr for stream, _ in fake_gpu.steps[-2:]} == {9}


def of_lists(fake_gpu):
    return lambda: fg.clip_grad_value([fake_gpu.array(np.ones(shape, np.float32)) for shape in ((4, 3, 2), (7,))], 0.5)


def of_lengths(fake_gpu):
    arrays = [fake_gpu.array(np.ones(shape, np.float32)) for shape in ((4, 3, 2), (2, 12), (3, 12))]
    return lambda: fg.lstm(*arrays, lengths=[1, 0, 3, 1])


@pytest.mark.parametrize("function", [of_lists, of_lengths])
def test_what_is_kept_there_is_copied_once_for_a_stream(fake_gpu, function):
    """On another stream, or where a graph is replayed, it need not have arrived, or be there still."""
    call = function(fake_gpu)

    def copies(what, *arguments):
        with fake_gpu.counted() as counts:
            what(*arguments)
        return counts["copies"]

    for ptr in (9, 11):
        with fake_gpu.stream_at(ptr):
            first, second = copies(call), copies(call)
            assert copies(gpu.capture, call) == first > second


def test_a_graph_takes_cupys_arrays_alone(fake_gpu, library):
    tensor = library(7)(fake_gpu.array(np.ones((2, 2), np.float32)))
    message = "clip_grad_value: grads cannot be taken from its .*: a graph that is captured takes CuPy's arrays alone"
    with pytest.raises(TypeError, match=message):
        gpu.capture(lambda: fg.clip_grad_value(tensor, 0.5))


def test_what_is_given_back_while_a_graph_is_captured_is_no_part_of_it(fake_gpu, library):
    with fake_gpu.stream_at(9) as current_stream:
        lent = [device.borrow("call", "x", library(7)(fake_gpu.array(np.ones((2, 2), np.float32))))]
        current_stream.work()
    events = fake_gpu.events
    gpu.capture(lambda: lent.clear() if fake_gpu.capturing else None)
    assert not lent
    # the other is the capture's, whose stream waits for the current one
    assert fake_gpu.events == events + 2
    assert fake_gpu.stream_at(7).seen[9] == current_stream.seen[9]
