"""fastgrad with the health of every step."""

from bench.peers import fastgrad
from bench.peers.fastgrad import setup

__all__ = ["Step", "setup"]


class Step(fastgrad.Step):
    health = True
