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
# of rounds, in which both ways take turns: at least; at most; and the seconds after which there are no more than least
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 3, 40, 0.05
# a ratio beyond this, or below its inverse, is clear after so many rounds
CLEAR, CLEAR_ROUNDS = 1.5, 2


def speed_ratio(unit: Any, args: tuple[Any, ...]) -> float:
    """The time of a unit's original way over that of its fused one: forward, and backward if gradients are recorded."""
    twin, inputs = unit.twin(), [detached(value) for value in args]
    leaves = [*tensors_of(inputs), *twin.parameters()] if torch.is_grad_enabled() else []
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    state = torch.get_rng_state()
    ways = twin.original, twin.fused
    try:
        # the first call compiles
        with torch._C.DisableTorchFunction():
            for way in ways:
                _seconds(way, inputs, leaves)
            best, spent, rounds = [float("inf")] * 2, 0.0, 0
            while True:
                times = [_seconds(way, inputs, leaves) for way in ways]
                best = list(map(min, best, times))
                rounds, spent = rounds + 1, spent + sum(times)
                ratio = best[0] / max(best[1], 1e-9)
                is_clear = rounds >= CLEAR_ROUNDS and not 1 / CLEAR < ratio < CLEAR
                if is_clear or rounds == MOST_ROUNDS or (rounds >= LEAST_ROUNDS and spent > SECONDS):
                    return ratio
    finally:
        torch.set_rng_state(state)


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
