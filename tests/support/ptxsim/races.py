"""Data races: two threads on one word, not both reading and not both atomic, that nothing orders.

Threads of a block are ordered by its barriers (their `epoch`), lanes of a warp by warp barriers, shuffles and votes (`warp_epoch`),
blocks by a barrier of the grid. Per word and kind of access the last one is kept: who, in which warp and block, at which epochs.
Threads, warps and blocks are numbered from 1 here.
Accesses of less than a word are recorded and not judged.
"""

import numpy as np

KINDS = {"R": "read", "W": "write", "A": "atomic"}
# of a record: nobody yet; several threads, warps or blocks
NOBODY, SEVERAL = 0, -1


class Threads:
    """Who is at an access: an int32 for each of its threads."""

    def __init__(self, thread, warp, block, epoch, warp_epoch):
        self.thread, self.warp, self.block, self.epoch, self.warp_epoch = thread, warp, block, epoch, warp_epoch


class Records:
    """The last accesses of one kind, by word. Zeros of large arrays cost nothing until they are written to."""

    def __init__(self, words):
        self.thread, self.warp, self.block, self.epoch, self.warp_epoch = np.zeros((5, words), np.int32)


class Races:
    def __init__(self, size):
        self._words = size // 4 + 2
        # of the kinds that there were
        self._records = {}
        self.found = {}

    def note(self, kind, offsets, size, threads, grid_epoch, instruction):
        """An access of each thread to `size` bytes at its offset."""
        for at in range(0, max(size, 4), 4):
            words = offsets + at >> 2
            repeated = not (np.diff(words) > 0).all()
            if size >= 4 and instruction.line not in self.found:
                bad = self._conflicts(kind, words, threads, grid_epoch)
                if repeated and kind == "W":
                    _, place, counts = np.unique(words, return_inverse=True, return_counts=True)
                    bad |= (counts > 1)[place]
                if bad.any():
                    self._report(kind, bad, threads, instruction)
            self._record(kind, words, threads, grid_epoch, repeated)

    def _conflicts(self, kind, words, threads, grid_epoch):
        bad = np.zeros(words.size, bool)
        for other, last in self._records.items():
            if kind == other and kind in "RA":
                continue
            block = last.block[words]
            unordered = (last.epoch[words] == threads.epoch) & (last.thread[words] != threads.thread)
            unordered &= (last.warp[words] != threads.warp) | (last.warp_epoch[words] >= threads.warp_epoch)
            bad |= np.where(block == threads.block, unordered, (block != NOBODY) & (last.epoch[words] >= grid_epoch))
        return bad

    def _report(self, kind, bad, threads, instruction):
        i = int(np.flatnonzero(bad)[0])
        self.found[instruction.line] = (
            f"{KINDS[kind]} hazard: '{instruction.text}' block {threads.block[i] - 1} thread {threads.thread[i] - 1} "
            f"({int(bad.sum())} threads)"
        )

    def _record(self, kind, words, threads, grid_epoch, repeated):
        last = self._records.get(kind)
        if last is None:
            last = self._records[kind] = Records(self._words)
        who = threads.thread, threads.warp, threads.block
        epoch, warp_epoch = threads.epoch, threads.warp_epoch
        if repeated:
            words, first, place = np.unique(words, return_index=True, return_inverse=True)
            who = [_joined(values, place, words.size) for values in who]
            epoch, warp_epoch = epoch[first], warp_epoch[first]
        block = last.block[words]
        # a record of the same epoch stays beside this one
        live = np.where(
            block == who[2], last.epoch[words] == epoch, (block != NOBODY) & (last.epoch[words] >= grid_epoch)
        )
        for table, new in zip((last.thread, last.warp, last.block), who, strict=True):
            table[words] = np.where(live & (table[words] != new), SEVERAL, new)
        last.epoch[words], last.warp_epoch[words] = epoch, warp_epoch


def _joined(values, place, count):
    """The one value of each group, or SEVERAL."""
    low, high = np.full(count, np.iinfo(np.int32).max, np.int32), np.zeros(count, np.int32)
    np.minimum.at(low, place, values)
    np.maximum.at(high, place, values)
    return np.where(low == high, low, SEVERAL)
