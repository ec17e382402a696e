"""The store of compiled kernels: what is loaded is what was written, by a user who may, for this function, signature and setting."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastgrad.kernels.cpu", reason="the backend cannot run here")

import numba

from fastgrad.kernels import disk_cache
from fastgrad.kernels.cpu.engine import cache, compile, intrinsics

on_posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no owners of files")
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two folders, the second of which is used where the first cannot be."""
    found = [tmp_path / "first" / "version", tmp_path / "second" / "version"]
    monkeypatch.setattr(disk_cache, "_candidates", lambda version: found)
    return found


def address(array):
    return intrinsics.address(array)


# functions of the kernels alone are kept
address.__module__ = intrinsics.__name__


def is_loaded(dtype="f4"):
    """Whether a driver comes out of the store, as in a new process; it works in any case."""
    driver = compile.driver(address)
    x = np.ones(3, dtype)
    assert driver(x) == x.ctypes.data
    return sum(driver._cache_hits.values()) == 1


def files(folder):
    return sorted(folder.iterdir()) if folder.exists() else []


@on_posix
def test_what_was_compiled_is_loaded_from_a_file_of_the_users_own(places):
    assert not is_loaded()
    assert is_loaded()
    (file,) = files(places[0])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, places[0], places[0].parent)] == [0o600, 0o700, 0o700]
    assert not files(places[1])


def flipped(at):
    def damage(content):
        found = bytearray(content)
        found[int(at * (len(found) - 1))] ^= 0x10
        return bytes(found)

    return damage


DAMAGES = {
    "empty": lambda content: b"",
    "garbage": lambda content: b"\x00garbage" * 99,
    "half": lambda content: content[: len(content) // 2],
    "digest alone": lambda content: content[:32],
    "without the last byte": lambda content: content[:-1],
    "longer": lambda content: content + b"\x00",
    **{f"flipped at {at}": flipped(at) for at in (0, 0.01, 0.3, 0.6, 1)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_again_and_replaced(places, damage):
    is_loaded()
    (file,) = files(places[0])
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    assert not is_loaded()
    assert is_loaded()
    assert files(places[0]) == [file]


def test_a_payload_that_does_not_load_is_compiled_again(places, monkeypatch):
    """A right digest over what Numba can make nothing of."""
    with monkeypatch.context() as changed:
        changed.setattr(cache, "dumps", lambda reduced: b"no pickle")
        assert not is_loaded()
    assert files(places[0])[0].read_bytes().endswith(b"no pickle")
    assert not is_loaded()
    assert is_loaded()


def test_a_file_under_another_key_is_not_loaded(places):
    is_loaded("f4"), is_loaded("f8")
    first, second = files(places[0])
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other), second.write_bytes(one)
    assert not is_loaded("f4")
    assert not is_loaded("f8")
    assert is_loaded("f4")
    assert is_loaded("f8")


def test_a_folder_in_the_place_of_a_file_costs_the_compilation_alone(places):
    is_loaded()
    (file,) = files(places[0])
    file.unlink()
    file.mkdir()
    assert not is_loaded()
    assert not is_loaded()
    assert files(places[0]) == [file]


def owned_by_another(path):
    os.chown(path, 4321, -1, follow_symlinks=False)


def linked_by_another(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))
    owned_by_another(folder)


ATTACKS = {
    "others may write": lambda folder: folder.chmod(0o702),
    "the group may write": lambda folder: folder.chmod(0o770),
    "others may write to the file": lambda folder: files(folder)[0].chmod(0o602),
    "another's": pytest.param(owned_by_another, marks=as_root),
    "another's file": pytest.param(lambda folder: owned_by_another(files(folder)[0]), marks=as_root),
    "another's link": pytest.param(linked_by_another, marks=as_root),
}


@on_posix
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_others_can_write_is_not_loaded(places, attack):
    is_loaded()
    attack(places[0])
    assert not is_loaded()
    assert is_loaded()


@on_posix
def test_a_link_of_the_users_own_is_followed(places):
    is_loaded()
    places[0].rename(places[0].with_name("elsewhere"))
    places[0].symlink_to(places[0].with_name("elsewhere"))
    assert is_loaded()


def test_a_folder_that_can_be_read_only_is_read_and_the_next_one_written(places, monkeypatch):
    is_loaded("f4")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == places[1])
    assert is_loaded("f4")
    assert not is_loaded("f8")
    assert is_loaded("f8")
    assert len(files(places[0])) == len(files(places[1])) == 1


def test_a_disk_that_is_full_costs_the_compilation_alone(places, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    assert not is_loaded()
    assert not is_loaded()
    assert files(places[0]) == []


def test_without_any_folder_kernels_are_compiled(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(disk_cache, "_candidates", lambda version: [tmp_path / "file" / "version"])
    assert cache.folders() == []
    assert not is_loaded()
    assert not is_loaded()


@pytest.fixture
def fresh(monkeypatch):
    """The environment is read anew, in the test and after it."""
    disk_cache._candidates.cache_clear()
    for name in ("HOME", "XDG_CACHE_HOME", "FASTGRAD_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    disk_cache._candidates.cache_clear()


@on_posix
@pytest.mark.parametrize("named", [None, "~nobody-of-this-name/cache"])
def test_a_user_without_a_home_has_a_folder_for_temporary_files(fresh, tmp_path, named):
    import pwd

    def nobody(uid):
        raise KeyError(uid)

    fresh.setattr(pwd, "getpwuid", nobody)
    fresh.setattr(tempfile, "tempdir", str(tmp_path))
    if named:
        fresh.setenv("FASTGRAD_CACHE_DIR", named)
    (folder,) = cache.folders()
    assert folder.parent == tmp_path / f"fastgrad-{os.geteuid()}"
    assert not is_loaded()
    assert is_loaded()


def test_a_relative_folder_stays_where_it_was(fresh, tmp_path):
    fresh.chdir(tmp_path)
    fresh.setenv("FASTGRAD_CACHE_DIR", "relative")
    before = cache.folders()
    fresh.chdir("/")
    assert cache.folders() == before == [tmp_path / "relative" / cache._version()]


def test_another_source_name_or_compiler_is_another_version(tmp_path):
    source, versions = tmp_path / "op.py", []
    for name, text, compiler in (("op", "a", 1), ("op", "b", 1), ("other", "b", 1), ("other", "b", 2)):
        source = source.rename(tmp_path / f"{name}.py") if source.exists() else source
        source.write_text(text)
        versions.append(disk_cache.version(tmp_path, [source], compiler))
    assert len({*versions}) == 4
    assert disk_cache.version(tmp_path, [source], 2) == versions[-1]


SETTINGS = {
    "OPT": 0,
    "LOOP_VECTORIZE": 0,
    "SLP_VECTORIZE": 1,
    "BOUNDSCHECK": 1,
    "DEBUGINFO_DEFAULT": 1,
    "LLVM_REFPRUNE_FLAGS": "per_bb",
    "CPU_NAME": "generic",
    "ENABLE_AVX": False,
    "EXTEND_VARIABLE_LIFETIMES": 1,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_code_of_other_settings_of_numba_is_not_loaded(places, monkeypatch, name):
    is_loaded()
    with monkeypatch.context() as changed:
        changed.setattr(numba.config, name, SETTINGS[name])
        assert not is_loaded()
        assert is_loaded()
    assert is_loaded()
    assert len(files(places[0])) == 2


def test_code_does_not_depend_on_the_number_of_threads_or_on_cuda(places, monkeypatch):
    is_loaded()
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 7)
    monkeypatch.setattr(numba.config, "CUDA_LOG_LEVEL", "debug", raising=False)
    assert is_loaded()


def test_functions_of_elsewhere_are_not_stored(places):
    """The folder's name says nothing of their source."""

    def address(array):
        return len(array)

    for _ in range(2):
        driver = compile.driver(address)
        assert driver(np.ones(3)) == 3
        assert not driver._cache_hits
    assert not any(files(folder) for folder in places)


def test_kernels_and_drivers_of_all_ops_are_stored():
    from fastgrad.kernels import cpu

    modules = [module for name, module in sys.modules.items() if name.startswith(f"{cpu.__name__}.")]
    members = [member for module in modules for member in vars(module).values()]
    drivers = [m for m in members if isinstance(getattr(m, "_cache", None), cache.Cache)]
    assert len(drivers) > 20
    assert [d.py_func.__qualname__ for d in drivers if not d._cache.stored] == []
    assert [k.function.__qualname__ for k in compile.KERNELS if not cache.Cache(k.function, ()).stored] == []


OP = """
import numpy as np, fastgrad as fg
a = np.linspace(-1, 1, 9).astype("f4")
fg.clip_grad_value(a, 0.5)
assert abs(a).max() == 0.5 and a[3] == np.float32(-0.25), a
"""


def start(code, **variables):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True
    )


def test_processes_that_write_at_once_leave_what_the_next_one_loads(tmp_path):
    folder = str(tmp_path / "cache \u00fcn\u00ef")
    writers = [start(OP, FASTGRAD_CACHE_DIR=folder) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in writers] == [("", 0)] * 2
    forbids = """
from fastgrad.kernels.cpu.engine.cache import Cache

def compiled(cache, *rest):
    raise AssertionError(f"{cache.function.__name__} was compiled")

Cache.save_overload = compiled
"""
    reader = start(forbids + OP, FASTGRAD_CACHE_DIR=folder)
    assert (reader.communicate()[1], reader.returncode) == ("", 0)
    assert not list(Path(folder).rglob("*.part"))


def test_without_numbas_compiler_the_backend_says_so():
    process = start(OP, NUMBA_DISABLE_JIT="1")
    message = process.communicate()[1].splitlines()[-1]
    assert 'the backend "cpu" cannot run here: NUMBA_DISABLE_JIT is set' in message
