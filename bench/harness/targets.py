"""The targets of a workload: speed-ups, shares of a limit and extra times that its row has to meet."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Targets of a workload; those that are None are not checked."""

    target_ratio: float | None = None  # a peer's time over fastgrad's
    target_peer: str | None = None  # of which peer; the best one if None
    target_share: float | None = None  # of the machine's limit
    target_over_limit: float | None = None  # seconds
    target_padded: float | None = None  # of the time without lengths
    target_alone: float | None = None  # the time of one process over that of several
    target_more: tuple[tuple[str, float], ...] = ()  # seconds that a contender may take more
    target_health: float | None = None  # of the step, for the health of every step
