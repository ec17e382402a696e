"""fastgrad's LSTM without lengths: every sequence runs to the last step, and dy is zero past its end."""

from dataclasses import replace

from bench.peers import fastgrad_cpu
from bench.peers.fastgrad_cpu import setup

__all__ = ["Lstm", "setup"]


class Lstm(fastgrad_cpu.Lstm):
    def __init__(self, lstm):
        super().__init__(replace(lstm, shortest=None))
        self.mask = lstm.mask()
        self.dy = self.dy * self.mask
        self.outcome = lstm.outcome

    def fetch(self, result):
        y, dx = result
        return super().fetch((y * self.mask, dx))
