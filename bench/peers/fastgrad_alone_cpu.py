"""fastgrad in one process, on all rows of a batch that several processes share."""

from bench.peers.fastgrad_cpu import setup
from bench.peers.fastgrad_torch_cpu import TorchStep as TorchShared

__all__ = ["TorchShared", "setup"]
