"""Locks that are fresh in a forked child: the thread that has one in the parent is not there."""

import os
import threading
import weakref
from typing import Any

_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def give_lock(owner: Any) -> None:
    """Give the owner a `lock`, which a signal's handler may take while its thread has it; a child's is new, and nobody is `_running`."""
    owner.lock, owner._running = threading.RLock(), False
    _owners.add(owner)


def _after_in_child() -> None:
    for owner in list(_owners):
        give_lock(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
