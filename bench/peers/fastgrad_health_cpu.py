"""fastgrad with a health report of every step."""

from bench.peers import fastgrad_cpu
from bench.peers.fastgrad_cpu import setup

__all__ = ["Step", "setup"]


class Step(fastgrad_cpu.Step):
    health = True
