"""bench.nets, on a small net in the place of torchvision's: its table, its chart, and what it refuses."""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from bench_machine import MACHINE
from matplotlib import image

from bench import nets
from bench.harness.workers import Contender, WorkerError
from bench.peers import FASTGRAD


class LocalWorkers:
    """Contenders in this process."""

    def __init__(self):
        self.contenders = {}

    def get(self, name):
        contender = self.contenders.setdefault(name, Contender(name, 1))
        return SimpleNamespace(ask=lambda request, *arguments: getattr(contender, request)(*arguments))


@pytest.fixture
def small_nets(torch, monkeypatch):
    """A small net as torchvision's resnet18; the list of nets is that one."""
    nn = torch.nn

    def resnet18(weights):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000)
        )  # fmt: skip

    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=SimpleNamespace(resnet18=resnet18)))
    monkeypatch.setattr(nets, "OUTSIDE", [net for net in nets.OUTSIDE if net.name == "outside-resnet18-32"])
    monkeypatch.setattr(nets, "TURN", 1e-3)
    monkeypatch.setattr(nets, "machine", lambda workers: MACHINE)
    monkeypatch.setattr(nets, "Workers", lambda: nullcontext(LocalWorkers()))


def test_nets_are_measured_and_drawn(small_nets, tmp_path, capsys):
    nets.main(["--nets", "resnet18", "--rounds", "2", "--output", str(tmp_path)])
    ((title, seconds),) = json.loads((tmp_path / "nets.json").read_text())["seconds"].items()
    assert title == "resnet18, 32x32, N=32"
    assert min(seconds.values()) > 0
    assert f"| {title} |" in (tmp_path / "nets.md").read_text()
    assert image.imread(tmp_path / "nets.png").shape[1] > 900
    assert "1 nets: geometric mean" in capsys.readouterr().out


@pytest.mark.parametrize("ratio", [1e-4, 0.5, 0.9999, 1, 1 + 1e-9, 3, 1e4])
def test_the_chart_of_any_ratio(small_nets, ratio):
    (net,) = nets.OUTSIDE
    figure = nets.picture({net: {nets.PEER: ratio, FASTGRAD: 1.0}})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert low < min(ratio, 1) <= max(ratio, 1) < high
    label = axes.texts[0].get_window_extent()
    assert figure.bbox.x0 <= label.x0 < label.x1 <= figure.bbox.x1


def test_a_net_with_other_losses_is_left_out(small_nets, monkeypatch):
    workers = LocalWorkers()
    load = Contender.load
    monkeypatch.setattr(
        Contender,
        "load",
        lambda self, name: [value * (1.1 if self.name == FASTGRAD else 1) for value in load(self, name)],
    )
    (net,) = nets.OUTSIDE
    with pytest.raises(WorkerError, match="the losses differ"):
        nets.compare(workers, net, 1, SimpleNamespace(set_postfix_str=lambda text: None))
    assert nets.measure(workers, nets.OUTSIDE, 1) == {}


def test_the_summary_of_no_net():
    assert nets.summary({}) == "no net was measured"
