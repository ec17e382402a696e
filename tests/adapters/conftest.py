"""In these tests accelerated models are fused wherever they can be, whatever a clock would say; tests of the choice set their own times."""

import sys

import pytest


@pytest.fixture(autouse=True)
def fused_ways(monkeypatch):
    choice = sys.modules.get("fastgrad.torch.choice")
    if choice is not None:
        monkeypatch.setattr(choice, "speed_ratio", lambda unit, args, times: 2.0)
