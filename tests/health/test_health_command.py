"""python -m fastgrad health: its experiment, its sweep, its pictures and its errors."""

import sys

import pytest

from fastgrad.cli import health as sweep

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]


def command(*arguments):
    from fastgrad.__main__ import main

    return main(["health", *arguments])


def test_the_command_prints_and_draws_an_experiment(cpu, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    options = "--depth 4 --activation sigmoid --init normal:0.01 --steps 3 --width 16 --plot".split()
    assert command(*options, str(path)) == 0
    out = capsys.readouterr().out
    assert "layers.4" in out
    assert "vanishing" in out
    assert "loss" in out
    assert path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init", "glorot"], "init must be one of zeros, constant, normal"),
        (["--init", "normal:a"], "numbers after colons"),
        (["--init", "xavier_normal:1"], "init 'xavier_normal' takes no option"),
        (["--init", "he_normal:1"], "the mode of init 'he_normal' must be one of fan_in, fan_out"),
        (["--init", "constant:1:2"], "takes at most 1 numbers"),
        (["--activation", "step"], "activation must be one of identity, relu"),
        (["--depth", "0"], "depth must be an integer of at least 1, got 0"),
        (["--steps", "0"], "steps must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_options_are_one_line(cpu, capsys, arguments, message):
    assert command(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_scikit_learn_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert command() == 1
    assert "pip install" in capsys.readouterr().err


def test_the_sweep_draws_a_heat_map(cpu, monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sweep, "SWEPT_DEPTHS", (2, 3))
    monkeypatch.setattr(sweep, "SWEPT_INITS", ("normal:0.01", "he_normal"))
    assert command("--sweep", "--width", "8", "--plot", str(tmp_path / "map.png")) == 0
    assert (tmp_path / "map.png").exists()
    assert "48/48" in capsys.readouterr().err
