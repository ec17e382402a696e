"""bench.threads: the times on several numbers of threads are measured and drawn."""

import json
from contextlib import nullcontext

import pytest
from bench_machine import MACHINE
from matplotlib import image

from bench import threads
from bench.harness import comparison
from bench.harness.report import Row
from bench.harness.workers import Workers
from bench.peers import FASTGRAD, REFERENCE
from bench.workloads.scaling import THREADS


@pytest.mark.full
def test_a_step_is_measured_on_one_thread_and_on_two(monkeypatch, tmp_path):
    for name, value in (("TURN", 1e-3), ("PAUSE", 0)):
        monkeypatch.setattr(comparison, name, value)
    monkeypatch.setattr(threads, "THREADS", THREADS[:1])
    monkeypatch.setattr(threads, "available_threads", lambda: 2)
    monkeypatch.setattr(threads, "machine", lambda workers: MACHINE)
    with Workers() as workers:
        monkeypatch.setattr(threads, "Workers", lambda: nullcontext(workers))
        monkeypatch.setattr(threads, "PEERS", [REFERENCE])
        threads.main(["--peers", REFERENCE, "--rounds", "1", "--output", str(tmp_path)])
    (curve,) = json.loads((tmp_path / "threads.json").read_text())["rows"].values()
    assert [*curve] == ["1", "2"]
    assert all(row["costs"].keys() == {FASTGRAD, REFERENCE} for row in curve.values())
    assert image.imread(tmp_path / "threads.png").shape[0] > 500


def test_speeds_are_held_against_one_thread_of_fastgrad():
    shown = threads.panels(4)
    curves = [{n: Row("step", "", {FASTGRAD: 1 / n, "PyTorch": 2 / n}) for n in sizes} for *_, sizes in shown]
    figure = threads.picture(shown, curves, MACHINE)
    assert len(figure.axes) == len(THREADS)
    for axis in figure.axes:
        own, pytorch, ideal = axis.lines
        assert [*own.get_xdata()] == [1, 2, 4]
        assert [*own.get_ydata()] == pytest.approx([1, 2, 4])
        assert [*pytorch.get_ydata()] == pytest.approx([0.5, 1, 2])
        assert [*ideal.get_ydata()] == [1, 2, 4]
