"""fastgrad in one process, on all rows of what others share."""

from bench.peers.fastgrad import setup
from bench.peers.fastgrad_torch import TorchStep as TorchShared

__all__ = ["TorchShared", "setup"]
