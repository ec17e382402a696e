"""The replacement of a file as a whole: its new content goes to a temporary file, which takes its place once it is on the disk."""

import contextlib
import errno
import os
import stat
import uuid
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: bytes) -> None:
    """Write this content to a file, which may exist: to a temporary file, which then replaces it."""
    old = path.stat() if os.path.lexists(path) else None
    mode = 0o666
    if old is not None:
        check_regular(old)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        mode = stat.S_IMODE(old.st_mode)
    temporary = path.with_name(f".fastgrad-{uuid.uuid4().hex}")
    try:
        # never with more permissions than the file that it replaces
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o777))
        temporary.write_bytes(content)
        _sync(temporary, os.O_RDWR)
        if old is not None:
            with contextlib.suppress(OSError, AttributeError):
                # the same owner, which only root may set
                os.chown(temporary, old.st_uid, old.st_gid)
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # the new name is on the disk once its folder is synced, which some systems cannot do
    with contextlib.suppress(OSError):
        _sync(path.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checked_path(op: str, path: Any) -> str:
    """The name of a file as a str."""
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"{op}: path must be a str or an os.PathLike, got {type(path).__name__}") from None
    if "\0" in name:
        raise ValueError(f"{op}: {name!r}: a path has no null character")
    return name


def check_folder(op: str, path: Any) -> None:
    """Raise before the work for a file that could not be written after it."""
    folder = os.path.dirname(os.path.realpath(checked_path(op, path)))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{op}: there is no folder {folder}")


def check_regular(status: os.stat_result) -> None:
    """Raise OSError unless this is a regular file: for a folder, a pipe or a device."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")


def os_error(op: str, path: Any, error: OSError) -> OSError:
    """The same error, worded like all errors of the operation."""
    copy = type(error)(f"{op}: {path}: {error.strerror or error}")
    copy.errno = error.errno
    return copy
