"""Shuffles and votes. Every lane that the member mask names must be there."""

import numpy as np

from ptxsim.formats import PREDICATE, TYPES, PTXError

WARP = 32
BIT = np.uint64(1) << np.arange(WARP, dtype=np.uint64)
U32 = TYPES["u32"]


def _lanes(machine, active):
    """(threads, table): the place among the threads of each warp's lanes, or -1."""
    threads = machine.thread if active is None else active
    table = np.full((int(machine.warp[-1]) + 1, WARP), -1)
    table[machine.warp[threads], machine.lane[threads]] = np.arange(threads.size)
    return threads, table


def _ballot(chosen):
    """A number of 64 bits for each warp (warps, 32), of which lane's bits are set."""
    return (chosen * BIT).sum(axis=1).astype(np.uint64)


def _meet(machine, i, threads, table, mask):
    """The lanes of the mask meet here, which orders their accesses."""
    machine.warp_epoch[threads] += 1
    missing = mask.astype(np.uint64) & ~_ballot(table >= 0)[machine.warp[threads]]
    if missing.any():
        lanes = int(missing[np.flatnonzero(missing)[0]])
        raise PTXError(f"{i.text}: lanes {lanes:#x} of the member mask are not here (divergent or absent)")


def shuffle(machine, i, active):
    """shfl.sync.mode d[|p], a, b, c, mask (PTX ISA 9.7.9.6)."""
    *results, value, step, bounds, mask = i.operands
    threads, table = _lanes(machine, active)
    n = threads.size
    mask = np.broadcast_to(mask.value(machine, U32, active), n)
    _meet(machine, i, threads, table, mask)
    step = step.value(machine, U32, active).astype(np.int64) & 31
    bounds = bounds.value(machine, U32, active).astype(np.int64)
    segment, clamp = bounds >> 8 & 31, bounds & 31
    lane = machine.lane[threads]
    last, first = (lane & segment) | (clamp & ~segment), lane & segment
    match i.option("up", "down", "bfly", "idx"):
        case "up":
            source = lane - step
            inside = source >= last
        case "down":
            source = lane + step
            inside = source <= last
        case "bfly":
            source = lane ^ step
            inside = source <= last
        case _:
            source = first | (step & ~segment)
            inside = source <= last
    place = table[machine.warp[threads], np.where(inside, source, lane)]
    if (place < 0).any():
        raise PTXError(f"{i.text}: shuffle reads an inactive lane")
    values = np.broadcast_to(value.value(machine, U32, active), n)[place]
    for result, found in zip(results, (values, inside), strict=False):
        machine.write(result, found, active)


def vote(machine, i, active):
    result, predicate, mask = i.operands
    threads, table = _lanes(machine, active)
    mask = np.broadcast_to(mask.value(machine, U32, active), threads.size)
    _meet(machine, i, threads, table, mask)
    chosen = np.append(np.broadcast_to(predicate.value(machine, PREDICATE, active), threads.size), False)[table]
    bits = _ballot(chosen)[machine.warp[threads]] & mask
    match i.option("all", "any", "uni", "ballot"):
        case "ballot":
            found = bits.astype(np.uint32)
        case "any":
            found = bits != 0
        case "all":
            found = bits == mask
        case _:
            found = (bits == mask) | (bits == 0)
    machine.write(result, found, active)


def active_mask(machine, i, active):
    threads, table = _lanes(machine, active)
    machine.write(i.operands[0], _ballot(table >= 0)[machine.warp[threads]].astype(np.uint32), active)


OPERATIONS = {"shfl": shuffle, "vote": vote, "activemask": active_mask}
