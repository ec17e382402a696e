"""Files of compiled kernels on disk, which processes share.

File: the SHA-256 of key and payload, then the payload. The file's name ends in the hash of the key, so processes share no index; if two
processes write the same file, either version is right. A file is written under a temporary name, then renamed. A file that cannot be read,
or whose hash is wrong, is a miss: the kernel is compiled again, and the file replaced.

Safety: loading a file runs what it holds. So a folder, and each file in it, is used only if the user or root owns it and nobody else can
write to it.

Folder: FASTGRAD_CACHE_DIR, or the user's cache folder. If that cannot be created or written, also one in the folder for temporary files.
If neither can be used, every process compiles its kernels.

Version: the name of the folder inside is a hash of the sources that the kernels are compiled from, and of the compiler's versions. So
after an edit or an upgrade no old code is loaded.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

DIGEST = hashlib.sha256().digest_size


def version(root: Path, sources: Iterable[Path], *compiler: object) -> str:
    """Name of the folder for these sources, which lie under `root`, and this compiler."""
    content = hashlib.sha256()
    for source in sorted(sources):
        content.update(f"{source.relative_to(root)}\n".encode() + source.read_bytes())
    content.update(repr(compiler).encode())
    return content.hexdigest()[:16]


def named(label: str, *what: object) -> tuple[str, bytes]:
    """(name, key) of the file for what a kernel is compiled from."""
    key = ascii(what).encode()
    return f"{label}.{hashlib.sha256(key).hexdigest()[:32]}", key


@lru_cache
def _candidates(version: str) -> list[Path]:
    """A version's folder in each place that is tried, best first."""
    places = []
    named = os.environ.get("FASTGRAD_CACHE_DIR")
    user = os.path.expanduser(named or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fastgrad"))
    # a "~" stays where the user has neither HOME nor an entry in the password database
    if not user.startswith("~"):
        places.append(lambda: os.path.abspath(user))
    owner = f"-{os.geteuid()}" if hasattr(os, "geteuid") else ""
    places.append(lambda: os.path.join(tempfile.gettempdir(), f"fastgrad{owner}"))
    folders = []
    for place in places:
        # the working directory may be gone, and no folder for temporary files be writable
        with contextlib.suppress(OSError):
            folders.append(Path(place(), version))
    return folders


def _is_safe(*results: os.stat_result) -> bool:
    """Whether only the user and root own this and can write to it."""
    if not hasattr(os, "geteuid"):
        return True
    owners = 0, os.geteuid()
    return all(
        found.st_uid in owners and (stat.S_ISLNK(found.st_mode) or not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
        for found in results
    )


def folders(version: str) -> list[Path]:
    """The folders to read from, in this order. Only the last one is writable. Missing folders are created."""
    usable = []
    for folder in _candidates(version):
        with contextlib.suppress(OSError):
            for path in folder.parent, folder:
                path.mkdir(0o700, parents=True, exist_ok=True)
            # the link too, where it is one: who owns it can point it elsewhere
            if not _is_safe(folder.lstat(), folder.stat()):
                continue
            usable.append(folder)
            if os.access(folder, os.W_OK):
                break
    return usable


def read(version: str, name: str, key: bytes) -> bytes | None:
    """The payload of this key; None if the file is missing, damaged, of another key or not safe to load."""
    for folder in folders(version):
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            if not _is_safe(os.fstat(file.fileno())):
                continue
            content = file.read()
            if content[:DIGEST] == hashlib.sha256(key + content[DIGEST:]).digest():
                return content[DIGEST:]
    return None


def write(version: str, name: str, key: bytes, payload: bytes) -> None:
    """Put a payload where read finds it, all of it or nothing. Raises OSError where that cannot be done."""
    for folder in folders(version)[-1:]:
        descriptor, beside = tempfile.mkstemp(prefix=name, suffix=".part", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(key + payload).digest() + payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
