"""Every instruction that this executor knows, by name: function(machine, instruction, active threads)."""

from ptxsim import access, arithmetic, warps

OPERATIONS = {**arithmetic.OPERATIONS, **access.OPERATIONS, **warps.OPERATIONS}
