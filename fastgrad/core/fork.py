"""Locks that survive a fork: the child gets new ones, since the thread that holds a lock in the parent does not exist in the child."""

import os
import threading
import weakref
from typing import Any

_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def give_lock(owner: Any) -> None:
    """Set owner.lock, a reentrant lock, and owner._running = False; a forked child sets both anew.

    The lock is reentrant since a signal handler runs in the thread that may hold it.
    """
    owner.lock, owner._running = threading.RLock(), False
    _owners.add(owner)


def _after_in_child() -> None:
    for owner in list(_owners):
        give_lock(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
