"""What is for a device runs on a fake one, in a process of its own, so that the first real one meets no slip."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

TESTS = Path(__file__).parent.parent
# of the tests of ops, which all run on a device, some: what they reach of the executor is the same in every case
OPS = [
    "kernels/test_activation.py::test_any_shape[float32-device-shape4]",
    "kernels/test_clip.py::test_zeros_are_left_without_a_division[float32-device]",
    "kernels/test_pruning.py::test_a_model_stays_pruned_in_steps_and_epochs[float32-device-chain]",
    "training/test_updater.py::test_a_list_is_updated_as_one_flat_array[float32-device-adamw]",
]
SANITIZER = """#!{python}
import sys
from pathlib import Path

options, command = {{}}, sys.argv[1:]
while command[0].startswith("--"):
    name, value, *command = command
    options[name] = value
tool = options.pop("--tool")
assert tool in ("memcheck", "racecheck", "synccheck", "initcheck")
assert options == {{"--error-exitcode": "99", "--report-api-errors": "no"}}
assert command[1:3] == ["-m", "pytest"]
tests = [word for word in command if word.endswith(".py")]
assert tests and all(Path(word).exists() for word in tests)
sys.exit(99 if tool == "racecheck" else 0)
"""


def on_a_fake_device(*arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_PLUGINS": "fakedevice", **variables}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)


@pytest.mark.full
def test_what_is_for_a_device_runs():
    tests = [str(TESTS / name) for name in ("gpu/test_cuda_device.py", *OPS)]
    # PyTorch has no fake GPU
    chosen = "-m", "device and not full", "-k", "not pytorch"
    done = on_a_fake_device(*chosen, *tests, FASTGRAD_DEVICE_POOL="0")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "failed" not in done.stdout


def test_the_sanitizer_is_run_and_asked(tmp_path):
    """It finds something with one of its tools."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(SANITIZER.format(python=sys.executable))
    sanitizer.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = on_a_fake_device("-m", "full", "-rf", str(TESTS / "gpu/test_cuda_device.py"), PATH=path)
    assert done.returncode == 1, done.stdout[-4000:]
    assert "1 failed, 3 passed" in done.stdout
    assert re.search(r"^FAILED .*\[racecheck\]", done.stdout, re.MULTILINE)
