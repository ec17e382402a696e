"""fgt.accelerate's choice between fastgrad's way and PyTorch's: it follows the clock, and nothing else of a call shows that it was made.

Here of units that are in no graph; test_torch_choice_calls.py has calls that are not timed, test_torch_graph_choice.py graphs.
"""

import copy
import gc
import json
import pickle
import weakref

import pytest

torch = pytest.importorskip("torch")

from choice_clock import MODELS, UNITS, Alone, Clock, Whole, entries  # noqa: E402
from torch import nn  # noqa: E402
from torch_models import Block, dense, images, input_of  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402
from fastgrad.torch import acceleration, choice, fusion, timing  # noqa: E402
from fastgrad.torch.runs import Run  # noqa: E402

# whose fixture holds it to one thread: on more than a busy machine has, small operators take a hundred times as long
pytestmark = pytest.mark.usefixtures("torch")


@pytest.fixture(autouse=True)
def no_graphs(monkeypatch):
    """As if no forward could be recorded."""
    monkeypatch.setattr(acceleration, "graphs_of", lambda module: {})


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize("way", ["fused", "original"])
@pytest.mark.parametrize("make", MODELS)
def test_the_faster_way_is_taken_and_the_numbers_are_pytorchs(make, way, clock):
    torch.manual_seed(0)
    theirs, x = make(), input_of(make)
    ours = copy.deepcopy(theirs)
    report = fgt.accelerate(ours)
    setattr(clock, way, 0.5)
    for training in (True, False):
        for call in range(2):
            results = []
            for model in (theirs, ours):
                torch.manual_seed(call)
                model.train(training).zero_grad()
                clock.ways.clear()
                inputs = x.clone().requires_grad_()
                y = model(inputs)
                y.square().sum().backward()
                results.append([y, inputs.grad, *(p.grad for p in model.parameters()), *model.buffers()])
            torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
        # the second call went one way alone; a Sequential all of whose runs are PyTorch's asks them no more
        assert set(clock.ways) <= {way}
        assert clock.ways or way == "original"
    assert entries(report)
    for entry in entries(report):
        assert entry["way"] == ("fastgrad" if way == "fused" else "PyTorch")
        assert entry["ratio"] == pytest.approx(2 if way == "fused" else 0.5)


def test_a_way_that_is_hardly_faster_is_not_taken(clock):
    net, x = dense(), input_of(dense)
    report = fgt.accelerate(net)
    clock.fused = 1 / 1.01
    net(x)
    assert [entry["way"] for entry in entries(report)] == ["PyTorch"]
    assert "PyTorch's is as fast: 1.01x on 5 x 4" in str(report)


def test_times_that_were_disturbed_are_taken_again_at_the_next_calls(clock):
    net, x = dense(), input_of(dense)
    report = fgt.accelerate(net)
    # each time is longer than the one before, until the machine is quiet again
    clock.growth = 1.2
    clock.fused = 0.9
    net(x)
    net(x)
    assert clock.timed == 2
    assert not entries(report)
    assert "is chosen at the first call" in str(report)
    clock.growth, clock.fused, clock.original = 1.0, 0.5, 0.8
    net(x)
    net(x)
    assert clock.timed == 3
    assert entries(report) == [{"way": "fastgrad", "ratio": pytest.approx(1.6)}]
    net, clock.growth = dense(), 1.2
    report = fgt.accelerate(net)
    for _ in range(choice.MOST_CALLS + 1):
        net(x)
    assert len(entries(report)) == 1
    assert clock.timed == 3 + choice.MOST_CALLS


@pytest.mark.parametrize("fused", [0.5, 2.0])
def test_nothing_but_the_time_shows_that_a_choice_was_made(fused, clock):
    torch.manual_seed(0)
    theirs, x = Whole(), input_of(Block)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    clock.fused = fused
    seen, results = {id(theirs): [], id(ours): []}, []
    for model in (theirs, ours):
        names = seen[id(model)]
        for name, p in model.named_parameters():
            p.register_hook(lambda grad, name=name, names=names: names.append(name))
            p.register_post_accumulate_grad_hook(lambda p, name=name, names=names: names.append(f"{name} whole"))
        for name in ("block", "features", "lstm", "head", "alone"):
            layer = getattr(model, name)
            # the convolution alone would be left with a hook: it gets none
            if name != "alone":
                layer.register_forward_hook(lambda m, a, y, name=name, names=names: names.append(f"{name} forward"))
                layer.register_full_backward_hook(lambda m, a, b, name=name, names=names: names.append(name))
        inputs = x.clone().requires_grad_()
        inputs.register_hook(lambda grad, names=names: names.append("x"))
        torch.manual_seed(3)
        y = model(inputs)
        assert all(p.grad is None for p in (*model.parameters(), inputs))
        assert inputs._version == 0
        buffers = [b.clone() for b in model.buffers()]
        state = torch.get_rng_state()
        y.square().sum().backward()
        results.append([y, inputs.grad, *(p.grad for p in model.parameters()), *buffers, state])
        assert torch.equal(inputs, x)
    assert clock.timed == 7
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    assert sorted(seen[id(ours)]) == sorted(seen[id(theirs)])


def test_each_kind_of_call_is_chosen_once(clock):
    net, x = images(), input_of(images)
    report = fgt.accelerate(net)

    def evaluated():
        with torch.no_grad():
            net.eval()(x)

    def channels_last():
        net.train()(x.to(memory_format=torch.channels_last))

    def with_threads():
        torch.set_num_threads(2)
        net.train()(x)
        torch.set_num_threads(1)

    def frozen():
        for p in net.requires_grad_(False).parameters():
            assert not p.requires_grad
        net.train()(x)
        net.requires_grad_(True)

    calls = [
        lambda: net.train()(x),
        lambda: net.train()(x.requires_grad_()),
        lambda: net.train()(x.requires_grad_(False)[:1]),
        lambda: net.train()(x[..., :7]),
        lambda: net.eval()(x),
        evaluated,
        channels_last,
        with_threads,
        frozen,
    ]
    for count, call in enumerate(calls, 1):
        for _ in range(2):
            call()
        assert clock.timed == count
    texts = list(next(iter(report.to_dict().values())))
    assert len(texts) == len(calls)
    end = "1 thread"
    assert texts[0] == f"2 x 3 x 8 x 8, float64, training, no gradient of the input, {end}"
    assert texts[1] == f"2 x 3 x 8 x 8, float64, training, {end}"
    assert texts[3] == f"2 x 3 x 8 x 7, float64, strided, training, no gradient of the input, {end}"
    assert texts[5] == f"2 x 3 x 8 x 8, float64, evaluation, {end}"


def test_of_many_shapes_a_few_are_timed_and_others_go_as_the_nearest(clock):
    net = dense()
    report = fgt.accelerate(net)
    for n in range(1, choice.MOST_SHAPES + 1):
        # the fused way is faster on large inputs
        clock.fused = 0.5 if n > 4 else 2.0
        net(torch.ones(n, 4, dtype=torch.float64))
    for n, expected in ((100, "fastgrad"), (0, "PyTorch")):
        net(torch.ones(n, 4, dtype=torch.float64))
        text = next(text for text in report.to_dict()["0 to 5"] if text.startswith(f"{n} x 4,"))
        assert report.to_dict()["0 to 5"][text] == {"way": expected, "ratio": None}
    assert clock.timed == choice.MOST_SHAPES
    assert "    2 more shapes: as the nearest of these" in str(report).splitlines()
    net.eval()(torch.ones(100, 4, dtype=torch.float64))
    assert clock.timed == choice.MOST_SHAPES + 1


@pytest.mark.parametrize("given", ["report", "dictionary", "path"])
def test_a_model_with_stored_choices_goes_their_ways_without_a_clock(given, clock, tmp_path):
    net, x = Whole(), input_of(Block)
    other = copy.deepcopy(net)
    report = fgt.accelerate(net)
    clock.fused = 0.5
    net(x)
    clock.fused = 2.0
    net.eval()(x)
    report.save(tmp_path / "ways.json")
    assert json.loads((tmp_path / "ways.json").read_text()) == report.to_dict()
    stored = {"report": report, "dictionary": report.to_dict(), "path": str(tmp_path / "ways.json")}[given]
    timed = clock.timed
    again = fgt.accelerate(other, choose=stored)
    other(x)
    other.eval()(x)
    assert clock.timed == timed
    assert again.to_dict() == report.to_dict()
    other(x[:1])
    assert clock.timed > timed


def test_choices_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(TypeError, match=r"choose must be True, False, a report, .*, got int"):
        fgt.accelerate(dense(), choose=3)
    form = r"must be a dictionary \{unit: "
    for wrong in (
        {"0 to 5": 1},
        {"0 to 5": {"5 x 4": {"way": "mine", "ratio": 1.0}}},
        {"0 to 5": {"5 x 4": {"way": "PyTorch"}, "4": 2}},
    ):
        with pytest.raises(ValueError, match=form):
            fgt.accelerate(dense(), choose=wrong)
    path = tmp_path / "ways.json"
    path.write_text("what")
    with pytest.raises(ValueError, match=rf"ways\.json {form}.*got no JSON"):
        fgt.accelerate(dense(), choose=path)
    net = dense()
    with pytest.raises(ValueError, match=r"choose: the model has no unit 'features'; it has 0 to 5"):
        fgt.accelerate(net, choose={"features": {}})
    assert vars(net).keys() == vars(dense()).keys()
    with pytest.raises(FileNotFoundError):
        fgt.accelerate(net, choose=tmp_path / "none.json")


def test_false_times_nothing_and_leaves_layers_alone(clock):
    net, x = Whole(), input_of(Block)
    report = fgt.accelerate(net, choose=False)
    net(x)
    assert clock.timed == 0
    assert report.to_dict() == {}
    assert "original" not in clock.ways
    assert "first call" not in str(report)
    assert ("alone", "has no neighbour in an nn.Sequential to be fused with") in report.left


@pytest.mark.parametrize("make", MODELS)
def test_twins_share_parameters_and_are_gone_before_the_call_itself(make, monkeypatch):
    net, x = make(), input_of(make)
    fgt.accelerate(net)
    addresses, twins = {p.data_ptr() for p in net.parameters()}, []
    monkeypatch.setattr(choice, "speed_ratio", timing.speed_ratio)
    for kind in UNITS:

        def twin(unit, own=kind.twin):
            other = own(unit)
            assert {p.data_ptr() for p in other.parameters()} <= addresses
            twins.extend(map(weakref.ref, other.parameters()))
            return other

        monkeypatch.setattr(kind, "twin", twin)
    live = []
    first = choice.Choice._first

    def checked(self, *args):
        way = first(self, *args)
        live.extend(ref() for ref in twins if ref() is not None)
        return way

    monkeypatch.setattr(choice.Choice, "_first", checked)
    gc.disable()
    try:
        net(x)
    finally:
        gc.enable()
    assert twins
    assert live == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("make", MODELS)
def test_copies_know_what_was_chosen_and_choose_for_themselves(make, copied, clock):
    net, x = make(), input_of(make)
    report = fgt.accelerate(net)
    net(x)
    timed, before = clock.timed, report.to_dict()
    other = copied(net)
    other(x)
    assert clock.timed == timed
    other.eval()(x)
    assert clock.timed == 2 * timed
    assert report.to_dict() == before
    again = fgt.accelerate(other)
    assert len(entries(again)) == 2 * len(entries(report))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layers_alone_keep_the_memory_format(memory_format, clock):
    net, x = Alone(), input_of(images).to(memory_format=memory_format)
    fgt.accelerate(net)
    clock.fused = 0.5
    for layer in (net.conv, net.norm):
        clock.ways.clear()
        x = layer(x)
        assert x.is_contiguous(memory_format=memory_format)
        layer(x[:, :3] if layer is net.conv else x)
    assert "fused" in clock.ways
    layer = net.conv
    torch.testing.assert_close(layer(x[0, :3]), layer(x[:1, :3])[0])


@pytest.mark.parametrize("make", [images, Block, Alone])
def test_the_gradient_of_an_input_has_its_memory_format(make, clock):
    """What comes before, PyTorch's, would be slow on another, and the time of the unit would not tell."""
    net, x, strides = make(), input_of(make), []
    fgt.accelerate(net)
    net = net.conv if make is Alone else net
    clock.fused = 0.5
    for memory_format in (torch.contiguous_format, torch.channels_last):
        inputs = (x + 0).to(memory_format=memory_format).requires_grad_()
        inputs.register_hook(lambda grad: strides.append(grad.stride()))
        net(inputs).square().sum().backward()
        assert strides[-1] == inputs.stride()


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer, "_conv_forward", lambda x, w, b: nn.functional.conv2d(x, w.round(), b, padding=1)),
        lambda layer: nn.utils.parametrizations.weight_norm(layer),
        lambda layer: layer._parameters.update(weight=nn.Parameter(layer.weight.to_sparse().to_dense() * 2)),
        lambda layer: layer.register_forward_hook(lambda m, a, y: y * 2),
    ],
)
def test_a_layer_alone_that_is_changed_runs_as_pytorchs(change, clock):
    theirs, x = Alone(), input_of(images)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    clock.fused = 0.5
    ours(x)
    theirs(x)
    for net in (theirs, ours):
        change(net.conv)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_sequential_of_pytorchs_ways_looks_no_further(clock, monkeypatch):
    net, x = dense(), input_of(dense)
    fgt.accelerate(net)
    clock.fused = 2.0
    net(x)
    monkeypatch.setattr(fusion, "known_class", None)
    clock.ways.clear()
    torch.testing.assert_close(net(x), nn.Sequential.forward(net, x))
    assert clock.ways == []


def test_a_unit_that_is_planned_again_is_not_timed_again(clock):
    net, x = dense(), input_of(dense)
    fgt.accelerate(net)
    for _ in range(3):
        clock.fused = 0.5
        net(x)
        handle = net[4].register_forward_hook(lambda m, a, y: None)
        net(x)
        handle.remove()
    assert clock.timed == 2


def test_the_report_says_what_will_be_chosen_what_was_and_that_it_is_undone(clock):
    net, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.GroupNorm(2, 6), nn.Linear(6, 3), nn.ReLU()), torch.ones(5, 4)
    report = fgt.accelerate(net)
    assert str(report) == (
        "replaced:\n"
        "  0 to 1: a dense layer with its activation\n    is chosen at the first call\n"
        "  3 to 4: a dense layer with its activation\n    is chosen at the first call\n"
        "left:\n  2: GroupNorm stays PyTorch's"
    )
    first, second = (step for step in net.forward.__self__.inner.plan.steps if isinstance(step, Run))
    end = "1 thread"
    first.choice.stored = {f"5 x 4, training, no gradient of the input, {end}": {"way": "fastgrad", "ratio": 1.424}}
    second.choice.stored = {f"5 x 6, training, {end}": {"way": "PyTorch", "ratio": 0.81}}
    net(x)
    expected = (
        "replaced:\n"
        f"  0 to 1: a dense layer with its activation\n    1.42x on 5 x 4, training, no gradient of the input, {end}\n"
        "left:\n  2: GroupNorm stays PyTorch's\n"
        f"  3 to 4: a dense layer with its activation\n    PyTorch's is faster: 0.81x on 5 x 6, training, {end}"
    )
    assert str(report) == expected
    assert clock.timed == 0
    report.undo()
    assert str(report) == f"undone: all is PyTorch's own again; it was\n{expected}"


@pytest.mark.parametrize("make", MODELS)
def test_times_by_the_machines_clock_are_ratios(make, monkeypatch):
    monkeypatch.setattr(choice, "speed_ratio", timing.speed_ratio)
    net, x = make(), input_of(make)
    report = fgt.accelerate(net)
    for _ in range(choice.MOST_CALLS):
        net(x).square().sum().backward()
    assert entries(report)
    assert all(0 < entry["ratio"] < float("inf") for entry in entries(report))
