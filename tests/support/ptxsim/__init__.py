"""PTX, as numba-cuda or NVRTC compile it for a GPU, executed on a CPU by NumPy, over all threads of a launch at once, with checks.

parse.py          text to kernels: decoded instructions in basic blocks
formats.py        PTX's types, and the error
operands.py       registers, numbers, addresses: what an instruction reads
arithmetic.py     what instructions do, in values,
access.py         in memory,
warps.py          and across the lanes of a warp
machine.py        a launch: registers, program counters, barriers
memory.py         global memory, its bounds and its traffic
races.py          accesses that nothing orders
launch.py         from arrays to a launch and back

Limits: no tensor cores, no calls that are not inlined, one schedule, bounds by base array.
"""

from ptxsim.formats import PTXError
from ptxsim.launch import launch
from ptxsim.parse import Module

__all__ = ["Module", "PTXError", "launch"]
