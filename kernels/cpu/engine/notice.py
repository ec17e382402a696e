"""The line on stderr that says that kernels are compiled, once a process, after a second of compiling. FASTGRAD_QUIET silences it.

Compilations tell when they begin and end, and on their way: there is no timer and no thread of its own.
"""

import os
import sys
import time

from . import cache

# seconds of compilation, in all, before anything is said
PATIENCE = 1.0
# names that are told
MOST_NAMES = 3


class Notice:
    """Counts the time of compilations, and writes the line when they have taken a second.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock=time.monotonic):
        self.clock, self.spent, self.said = clock, 0.0, False
        # of compilations that have begun and not ended: names, seconds, when
        self._open = []

    def begin(self, names, seconds):
        """A compilation begins of kernels of these names; seconds: how long it takes, about."""
        self._open.append((names, seconds, self.clock()))

    def end(self):
        self.update()
        _, _, start = self._open.pop()
        if not self._open:
            self.spent += self.clock() - start

    def update(self):
        """Write the line if it is time."""
        if self.said or not self._open:
            return
        names, seconds, start = self._open[0]
        if self.spent + self.clock() - start >= PATIENCE:
            self.said = True
            if os.environ.get("FASTGRAD_QUIET", "0") in ("", "0") and sys.stderr is not None:
                print(line(names, seconds), file=sys.stderr, flush=True)


def line(names, seconds):
    """What is written."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    # a short one may be the first of many
    takes = f"about {round(seconds)} s, once" if seconds >= 2 * PATIENCE else "some seconds, once"
    folders = cache.folders()[-1:]
    kept = f"they are kept in {folders[0].parent}" if folders else "there is no folder to keep them in"
    return f"fastgrad compiles its kernels for this machine ({', '.join(names[:MOST_NAMES])}{more}): {takes}; {kept}"


_notice = Notice()


def begin(names, seconds):
    _notice.begin(names, seconds)


def end():
    _notice.end()


def update():
    _notice.update()
