"""A clock under a test's control for fgt.accelerate's choices between ways of units, and a model of each kind of unit."""

from torch import nn
from torch_models import Block, Recurrent, dense, images, row_norms

from fastgrad.torch import choice, timing
from fastgrad.torch.accelerated_recurrent import AcceleratedRecurrent
from fastgrad.torch.replacement import BlockReplacement, LayerReplacement
from fastgrad.torch.runs import Run

UNITS = Run, BlockReplacement, LayerReplacement, AcceleratedRecurrent


class Alone(nn.Module):
    """A convolution and a norm that the forward calls by themselves."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.double()

    def forward(self, x):
        y = self.norm(self.conv(x)).relu()
        return y.view(len(y), -1)


class Whole(nn.Module):
    """One of each kind, with dropout."""

    def __init__(self):
        super().__init__()
        self.alone, self.block, self.features = nn.Conv2d(3, 3, 3, padding=1), Block(3, 4, 2), images()
        self.features[0] = nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.lstm = nn.LayerNorm(4), nn.LSTM(4, 5, 2, batch_first=True, dropout=0.5)
        self.head = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3), nn.Tanh())
        self.double()

    def forward(self, x):
        y = self.features(nn.functional.interpolate(self.block(self.alone(x)), 8))
        return self.head(self.lstm(self.norm(y.flatten(2).transpose(1, 2)))[0][:, -1])


MODELS = [dense, images, row_norms, Block, Recurrent, Alone, Whole]


class Clock:
    """Time that goes on when units run: fused by `fused` seconds, as PyTorch's by `original`. ways: those that ran."""

    def __init__(self, monkeypatch):
        self.now, self.fused, self.original, self.ways, self.timed = 0.0, 1.0, 1.0, [], 0
        self.growth = 1.0
        monkeypatch.setattr(timing, "clock", lambda: self.now)
        monkeypatch.setattr(choice, "speed_ratio", self.ratio)
        for kind in UNITS:
            for way in ("fused", "original"):
                monkeypatch.setattr(kind, way, self.counted(getattr(kind, way), way))

    def counted(self, method, way):
        def run(unit, *args):
            result = method(unit, *args)
            self.now += getattr(self, way)
            setattr(self, way, getattr(self, way) * self.growth)
            self.ways.append(way)
            return result

        return run

    def ratio(self, unit, args, times):
        self.timed += 1
        return timing.speed_ratio(unit, args, times)


def entries(report):
    return [entry for ways in report.to_dict().values() for entry in ways.values()]
