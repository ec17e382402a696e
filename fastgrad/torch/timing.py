"""`speed_ratio`: how much faster a unit of a model is fused than as PyTorch's own, timed on twins of its modules.

Twins share the memory of the parameters and have buffers and inputs of their own. So nothing of it can be seen: no gradient is
left, no statistic moves, no hook is called, and the random generator is put back.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from fastgrad.torch.twin import detached, tensors_of

Tensor = torch.Tensor
# tests put their own in its place
clock = time.perf_counter
# rounds, in which both ways take turns: at least; at most; and where a ratio beyond CLEAR, or below its inverse, is enough
LEAST_ROUNDS, MOST_ROUNDS, CLEAR_ROUNDS, CLEAR = 4, 40, 2, 1.5
# the seconds after which there are no more rounds than least
SECONDS = 0.1
# the two shortest times of a way are so near if nothing else disturbed them
SETTLED = 1.1


def speed_ratio(unit: Any, args: tuple[Any, ...], times: list[list[float]]) -> float:
    """The time of a unit's original way over that of its fused one: forward, and backward if gradients are recorded.

    times: those of both ways, of earlier calls too; new ones are appended.
    """
    twin, inputs = unit.twin(), [detached(value) for value in args]
    leaves = [*tensors_of(inputs), *twin.parameters()] if torch.is_grad_enabled() else []
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    state = torch.get_rng_state()
    ways = twin.original, twin.fused
    new: list[list[float]] = [[], []]
    try:
        with torch._C.DisableTorchFunction():
            # the first call compiles
            for way in ways:
                _seconds(way, inputs, leaves)
            while not are_enough(new):
                for way, own in zip(ways, new, strict=True):
                    own.append(_seconds(way, inputs, leaves))
    finally:
        torch.set_rng_state(state)
    for own, before in zip(new, times, strict=True):
        before += own
    return ratio_of(times)


def are_settled(times: list[list[float]]) -> bool:
    """Whether the shortest time of each way was met twice: on a machine that does other work too it may not be."""
    return all(sorted(own)[1] <= SETTLED * min(own) for own in times if len(own) > 1)


def ratio_of(times: list[list[float]]) -> float:
    """The shortest time of the original way over that of the fused one."""
    original, fused = map(min, times)
    return original / max(fused, 1e-9)


def are_enough(times: list[list[float]]) -> bool:
    """Whether the times of both ways tell which is shorter."""
    rounds, spent = min(map(len, times)), sum(map(sum, times))
    if rounds < CLEAR_ROUNDS or rounds >= MOST_ROUNDS:
        return rounds >= MOST_ROUNDS
    is_clear = are_settled(times) and not 1 / CLEAR < ratio_of(times) < CLEAR
    return is_clear or (rounds >= LEAST_ROUNDS and spent > SECONDS)


def _seconds(way: Any, inputs: Sequence[Any], leaves: Sequence[Tensor]) -> float:
    """The time of one call, and of its way back to the leaves if there are any."""
    start = clock()
    results = way(*inputs)
    seconds = clock() - start
    outputs = [y for y in tensors_of(results) if y.requires_grad] if leaves else []
    if outputs:
        upstream = [torch.ones_like(y) for y in outputs]
        start = clock()
        torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)
        seconds += clock() - start
    return seconds
