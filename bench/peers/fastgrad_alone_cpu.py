"""fastgrad in one process, on all rows of a batch, for comparison with the several processes of TorchShared."""

from bench.peers.fastgrad_cpu import setup
from bench.peers.fastgrad_torch_cpu import TorchStep as TorchShared

__all__ = ["TorchShared", "setup"]
