"""Files of trainers and models: what is damaged or another's changes nothing, and what is written is written as a whole."""

import errno
import json
import os
import stat
import struct

import numpy as np
import pytest
import safetensors.numpy
from arrays import bits
from safetensors import safe_open

import fastgrad as fg
from fastgrad.nn import BatchNorm, Dense, Dropout, Sequential


def trainer(seed=0, **options):
    model = Sequential(Dense(4, 6, "relu"), BatchNorm(6), Dropout(0.5), Dense(6, 3), seed=seed)
    return fg.Trainer(model, seed=seed, **options)


def used(seed=0):
    """A trainer of which nothing is as it began."""
    rng, found = np.random.default_rng(seed), trainer(seed)
    x, y = rng.standard_normal((20, 4), np.float32), rng.integers(0, 3, 20)
    found.fit(x, y, 2, 8, validation=(x, y))
    fg.prune(found.model, 0.5)
    return found


def everything(found):
    """All that a file holds, and so all that a failed load must leave alone."""
    model = found.model
    arrays = {**model.parameters(), **model.statistics(), **model.masks(), "state": found.state}
    generators = [g.bit_generator.state for g in (found.rng, *model._generators())]
    return {n: bits(a) for n, a in arrays.items()}, generators, found.step_count, found.val_losses


def parts_of(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def metadata(**changed):
    return lambda arrays, found: (arrays, {**found, **{name.replace("_0", ".0"): v for name, v in changed.items()}})


def array(name, value):
    return lambda arrays, found: ({**arrays, name: value}, found)


def without(name):
    return lambda *parts: tuple({key: value for key, value in part.items() if key != name} for part in parts)


PCG64 = np.random.PCG64(3).state
DAMAGED = {
    "a step count below 0": (array("optimizer.step", np.array([-5])), "optimizer.step must be at least 0 and below 2"),
    "a huge step count": (array("optimizer.step", np.array([2**62])), "optimizer.step must be at least 0 and below 2"),
    "two step counts": (array("optimizer.step", np.array([1, 2])), r"optimizer.step must be \(1,\), got \(2,\)"),
    "a step count of float": (array("optimizer.step", np.array([1.0])), "optimizer.step must be int64, got float64"),
    "a state of another shape": (array("optimizer.state", np.zeros((2, 5), "f4")), r"optimizer.state must be \(2, "),
    "a mask of bytes": (array("mask.0.w", np.ones((4, 6), np.uint8)), "mask.0.w must be bool, got U8"),
    "a mask that is no bool": (array("mask.0.w", np.full((4, 6), 7, np.uint8).view(bool)), "neither 0 nor 1"),
    "weights of integers": (array("0.w", np.zeros((4, 6), np.int64)), "0.w must be float32, got int64"),
    "a value that float32 does not hold": (
        array("0.w", np.full((4, 6), 1e300)),
        "0.w has a value that is infinite in float32",
    ),
    "a state that float32 does not hold": (
        lambda arrays, about: ({**arrays, "optimizer.state": np.full(arrays["optimizer.state"].shape, 1e300)}, about),
        "optimizer.state has a value that is infinite in float32",
    ),
    "no state": (without("optimizer.state"), "the file has no optimizer.state"),
    "no losses": (without("val_losses"), "the file has no metadata val_losses"),
    "no generator": (without("rng"), "the file has no metadata rng"),
    "losses that are no JSON": (metadata(val_losses="[oops"), "metadata val_losses must be JSON"),
    "losses that nest": (metadata(val_losses="[" * 100_000), "metadata val_losses must be JSON"),
    "losses that are no list": (metadata(val_losses='{"a": 1}'), "metadata val_losses must be a list of floats"),
    "losses that are no numbers": (metadata(val_losses='["1", true]'), "metadata val_losses must be a list of floats"),
    "a loss that no float holds": (metadata(val_losses=f"[{10**400}]"), "metadata val_losses must be a list of floats"),
    "a generator that is no JSON": (metadata(rng="{"), "metadata rng must be JSON"),
    "a generator that is null": (metadata(rng_0="null"), "metadata rng.0 must be the state of a PCG64 generator"),
}
for what, change in {
    "of another kind": {"bit_generator": "MT19937"},
    "below 0": {"state": {"state": -1, "inc": 3}},
    "of NaN": {"state": {"state": float("nan"), "inc": 3}},
    "of half a number": {"state": {"state": 1.5, "inc": 3}},
    "that is too large": {"state": {"state": 2**200, "inc": 3}},
    "of an even increment": {"state": {"state": 1, "inc": 4}},
    "without its state": {"state": {}},
    "with more": {"more": 1},
}.items():
    text = json.dumps({**PCG64, **change})
    DAMAGED[f"a generator {what}"] = metadata(rng_0=text), "metadata rng.0 must be the state of a PCG64 generator"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "trainer"
    fg.save(path, used(1))
    return path


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_trainer_is_as_before_where_a_part_of_the_file_is_wrong(tmp_path, good, damage):
    change, message = DAMAGED[damage]
    path, found = tmp_path / "file", used()
    arrays, about = change(*parts_of(good))
    safetensors.numpy.save_file(arrays, path, about)
    before = everything(found)
    with pytest.raises((ValueError, TypeError), match=message) as error:
        fg.load(path, found)
    assert str(error.value).startswith(f"load: {path}: ")
    assert everything(found) == before


def raw(header, data=b""):
    return lambda path: path.write_bytes(struct.pack("<Q", len(header)) + header + data)


FILES = {
    "missing": (lambda path: None, FileNotFoundError),
    "folder": (lambda path: path.mkdir(), IsADirectoryError),
    "pipe": (os.mkfifo, OSError),
    "loop of links": (lambda path: path.symlink_to(path), OSError),
    "empty": (lambda path: path.write_bytes(b""), ValueError),
    "text": (lambda path: path.write_text("weights"), ValueError),
    "pickle": (lambda path: path.write_bytes(b"\x80\x04" + bytes(100)), ValueError),
    "header that is no JSON": (raw(b"{oops"), ValueError),
    "shape below 0": (raw(b'{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', bytes(8)), ValueError),
    "bfloat16": (raw(b'{"w":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}', bytes(8)), ValueError),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("whole", [True, False], ids=["trainer", "model"])
def test_what_is_no_file_of_ours_is_an_error_with_its_path(tmp_path, kind, whole):
    make, error = FILES[kind]
    path, found = tmp_path / "file", used()
    make(path)
    before = everything(found)
    with pytest.raises(error) as raised:
        fg.load(path, found if whole else found.model)
    assert str(raised.value).startswith(f"load: {path}: ")
    assert everything(found) == before


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_cut_file_changes_nothing(tmp_path, good, share):
    path, found = tmp_path / "file", used()
    content = good.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    before = everything(found)
    with pytest.raises(ValueError, match=f"load: {path}: not a whole safetensors file"):
        fg.load(path, found)
    assert everything(found) == before


@pytest.mark.parametrize("path", [None, 3, "a\0b"])
@pytest.mark.parametrize("call", [fg.save, fg.load])
def test_a_path_is_a_path(call, path):
    with pytest.raises((TypeError, ValueError), match=rf"^{call.__name__}: .*(path must be|no null character)"):
        call(path, Dense(2, 2))


def test_losses_that_are_not_finite_come_back(tmp_path):
    first, second = trainer(), trainer(1)
    first.val_losses = [1.5, float("inf"), float("nan")]
    fg.save(tmp_path / "file", first)
    fg.load(tmp_path / "file", second)
    np.testing.assert_array_equal(second.val_losses, first.val_losses)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_saving_keeps_the_mode_of_a_file_and_the_links_to_it(tmp_path, mode):
    target, link, old = tmp_path / "folder" / "file", tmp_path / "link", used()
    target.parent.mkdir()
    link.symlink_to(target)
    # behind a link that leads nowhere the file is made
    fg.save(link, old)
    target.chmod(mode)
    new = used(2)
    fg.save(link, new)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == mode
    fg.load(link, old)
    assert everything(old) == everything(new)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder", "link"]


def test_a_new_file_has_the_mode_of_new_files(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    fg.save(tmp_path / "file", used())
    fg.save(tmp_path / ("n" * 255), Dense(2, 2))
    for file in tmp_path.iterdir():
        assert file.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call, error):
    path = tmp_path / "file"
    fg.save(path, used())
    before = path.read_bytes()

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(type(error)) as raised:
        fg.save(path, used(1))
    if isinstance(error, OSError):
        assert str(raised.value) == f"save: {path}: No space left on device"
        assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_it_takes_the_place_of_the_old_file(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        run = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, run=run: (calls.append(name), run(*a))[1])
    fg.save(tmp_path / "file", Dense(2, 2))
    # the file, its new name, and the folder that has the name
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(
    ("kind", "error"), [("folder", IsADirectoryError), ("pipe", OSError), ("nowhere/file", OSError)]
)
def test_what_is_no_file_is_not_replaced(tmp_path, kind, error):
    path = tmp_path / kind
    if kind in FILES:
        FILES[kind][0](path)
    with pytest.raises(error, match=f"^save: {path}: "):
        fg.save(path, Dense(2, 2))
    assert not path.is_file()
