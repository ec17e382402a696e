"""What models, trainers and their settings print: a table of layers, or one line."""

import math

import numpy as np
import pytest

import fastgrad as fg
from fastgrad.nn import (
    LSTM,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    DenseChain,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    LayerNorm,
    MaxPool2d,
    Model,
    Residual,
    ResNet,
    Sequential,
)

pytestmark = pytest.mark.usefixtures("numpy_backend")

LINES = {
    "Dense(784, 64, 'relu')": lambda: Dense(784, 64, "relu"),
    "Dense(4, 3, ('leaky_relu', 0.2), dtype='float64', bias=False)": lambda: Dense(
        4, 3, ("leaky_relu", 0.2), bias=False, dtype=np.float64, init="zeros", seed=3
    ),
    "DenseChain([4, 8, 3], 'tanh', output='softmax')": lambda: DenseChain([4, 8, 3], "tanh", "softmax"),
    "DenseChain([4, 8, 8, 3], ['tanh', 'relu', 'identity'])": lambda: DenseChain(
        (4, 8, 8, 3), ["tanh", "relu", "identity"]
    ),
    "DenseChain([4, 3])": lambda: DenseChain([4, 3]),
    "Conv2d(3, 8, 3, padding='same', activation='relu')": lambda: Conv2d(3, 8, 3, padding="same", activation="relu"),
    "Conv2d(4, 8, (3, 5), stride=(2, 1), groups=2, bias=False)": lambda: Conv2d(
        4, 8, (3, 5), stride=(2, 1), groups=2, bias=False
    ),
    "LayerNorm(8, 'relu', eps=0.001)": lambda: LayerNorm(8, "relu", 1e-3),
    "BatchNorm(8, 'relu', momentum=0.01, unbiased=False)": lambda: BatchNorm(8, "relu", 0.01, unbiased=False),
    "Dropout(0.2)": lambda: Dropout(0.2, seed=1),
    "MaxPool2d((2, 3))": lambda: MaxPool2d((2, 3)),
    "AvgPool2d(3, stride=2, padding=1, include_pad=False)": lambda: AvgPool2d(
        3, stride=2, padding=1, include_pad=False
    ),
    "GlobalAvgPool2d()": GlobalAvgPool2d,
    "Flatten(48)": lambda: Flatten(48),
    "LSTM(3, 4, num_layers=2, bidirectional=True, dropout=0.1, pool='last')": lambda: LSTM(
        3, 4, 2, True, 0.1, pool="last"
    ),
    "LSTM(3, 4, reverse=True)": lambda: LSTM(3, 4, reverse=True),
    "LSTM(3, 4, layer_norm=True, zoneout=(0.1, 0.1))": lambda: LSTM(3, 4, layer_norm=True, zoneout=(0.1, 0.1)),
}


@pytest.mark.parametrize("line", LINES)
def test_a_layer_is_the_call_that_makes_it(line):
    layer = LINES[line]()
    assert repr(layer) == line
    if not isinstance(layer, DenseChain) or isinstance(layer, Dense):
        assert str(layer) == line
    again = eval(line, vars(fg.nn))
    assert repr(again) == line
    assert again.params.shape == layer.params.shape


def test_a_model_is_a_table_of_its_layers():
    body = Sequential(Conv2d(4, 4, 3, padding="same", bias=False), BatchNorm(4))
    model = Sequential(
        Conv2d(3, 4, 3),
        MaxPool2d(2),
        Residual(body, Conv2d(4, 4, 1), "relu"),
        Flatten(),
        Sequential(Dense(36, 1000, "relu"), Dropout(0.2)),
        DenseChain([1000, 2, 9], "tanh", "softmax"),
    )
    expected = """\
layer       kind                         output        parameters
0           Conv2d(3, 4, 3)              (N, ?, ?, 4)         112
1           MaxPool2d(2)                 (N, ?, ?, 4)           0
2           Residual(activation='relu')  (N, ?, ?, 4)           0"""
    lines = str(model).splitlines()
    assert repr(model) == str(model)
    assert [line.split()[0] for line in lines] == [
        "layer", "0", "1", "2", "2.body.0", "2.body.1", "2.shortcut", "3", "4.0", "4.1", "5.0", "5.1", "total:",
    ]  # fmt: skip
    assert [line.split() for line in lines[:4]] == [line.split() for line in expected.splitlines()]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[7].split() == ["3", "Flatten()", "(N,", "?)", "0"]
    assert lines[8].endswith("37,000")
    assert lines[10].split() == ["5.0", "Dense(1000,", "2,", "'tanh')", "(N,", "2)", "2,002"]
    sizes = [int(line.split()[-1].replace(",", "")) for line in lines[1:-1]]
    assert sum(sizes) == model.params.size
    assert lines[-1] == f"total: {model.params.size:,} parameters, {4 * model.params.size:,} bytes of float32"
    # a row's name is that of its parameters
    names = {name.rpartition(".")[0] for name in model.parameters()}
    assert names <= {line.split()[0] for line in lines}


def test_a_chain_prints_its_layers_and_what_is_pruned():
    chain = DenseChain([4, 8, 3], "tanh", dtype="float64", bias=False)
    fg.prune(chain, amount=10)
    assert str(chain) == (
        "layer  kind                                              output  parameters\n"
        "0      Dense(4, 8, 'tanh', dtype='float64', bias=False)  (N, 8)          32\n"
        "1      Dense(8, 3, dtype='float64', bias=False)          (N, 3)          24\n"
        "total: 56 parameters, 448 bytes of float64, 20 pruned"
    )


def test_sequences_have_steps_until_they_are_pooled():
    model = Sequential(BatchNorm(3), LSTM(3, 4, bidirectional=True), Dense(8, 5), LSTM(5, 4, pool="mean"), Dense(4, 1))
    shapes = [line[line.index("(N, ") :].split(")")[0] for line in str(model).splitlines()[1:-1]]
    assert shapes == ["(N, T, 3", "(N, T, 8", "(N, T, 5", "(N, 4", "(N, 1"]


@pytest.mark.parametrize("version", [1, 2])
def test_a_net_of_many_layers_has_all_its_parameters_in_its_rows(version):
    model = ResNet(3, 10, [1, 1], 8, version=version)
    rows = str(model).splitlines()[1:-1]
    assert sum(int(row.split()[-1].replace(",", "")) for row in rows) == model.params.size
    assert rows[-1].split()[1:] == ["Dense(16,", "10)", "(N,", "10)", "170"]


def test_layers_of_a_users_own_print_what_is_known():
    class Scale(Model):
        def __init__(self, n, factors=None, hidden=3):
            self.n_in = self.n_out = n
            self.factors = np.ones(3) if factors is None else factors
            super().__init__({"scale": (n,)}, "float32", None)

    assert repr(Scale(4)) == "Scale(4, factors=array([1., 1., 1.]))"
    assert repr(Dropout()) == "Dropout()"
    assert "Dropout()" in str(Sequential(Dropout()))


def test_trainers_and_settings_print_in_one_line():
    model = Sequential(Dense(4, 8, "relu"), Dense(8, 3), seed=0)
    adam = fg.optim.Adam(0.01)
    trainer = fg.Trainer(model, optimizer=adam)
    assert repr(trainer) == f"Trainer(Sequential of 2 layers, 'cross_entropy', {adam!r}, step_count=0)"
    limit = fg.optim.MaxValue(1.0)
    trainer = fg.Trainer(Dense(4, 3), "mse", adam, 1.5, constraint=limit)
    trainer.step(np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32))
    assert str(trainer) == f"Trainer(Dense(4, 3), 'mse', {adam!r}, clip_norm=1.5, constraint={limit!r}, step_count=1)"
    updater = fg.Updater([np.zeros(4), np.zeros((500, 3))], fg.optim.SGD(fg.schedule.Steps(0.1, 10)))
    assert repr(updater) == f"Updater(1,504 values in 2 arrays, {updater.optimizer!r}, step_count=0)"
    assert repr(fg.schedule.Rates([0.1] * 1000)) == f"Rates(({'0.1, ' * 6}...))"
    assert repr(fg.optim.SGD(0.5)).startswith("SGD(lr=0.5, momentum=0.0")


def test_a_history_prints_its_ends_and_a_report_its_table():
    trainer = fg.Trainer(DenseChain([4, 3], seed=0), health=True)
    x, y = np.ones((8, 4), np.float32), np.zeros(8, np.int64)
    history = trainer.fit(x, y, epochs=3, validation=(x, y))
    text = repr(history)
    assert text.startswith(f"History of 3 epochs: loss {history.loss[0]:.4g} to {history.loss[-1]:.4g}, accuracy ")
    assert ", val_loss " in text
    assert text.endswith(" seconds")
    assert "\n" not in text
    assert repr(trainer.fit(x, y)).startswith("History of 1 epoch: loss ")
    assert repr(fg.training.history.History()) == "History of 0 epochs: 0 seconds"
    report = trainer.health()
    assert repr(report) == str(report)
    assert not math.isnan(report.values[0, 0])
