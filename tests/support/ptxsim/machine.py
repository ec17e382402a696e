"""One launch: registers, memory and the schedule.

A register is a vector over all threads of the launch, and each thread has its own program counter. A step runs the basic block of
the lowest counter among the threads that may run, which brings threads that parted back together. That is one schedule of many:
what another would change is found by the race check.
"""

import numpy as np

from ptxsim.formats import PREDICATE, PTXError, stored
from ptxsim.memory import GLOBAL_BASE
from ptxsim.races import Races, Threads
from ptxsim.warps import WARP


class Registers(dict):
    """Values by register, 0 at first; most of those that a kernel declares are not in what runs."""

    def __init__(self, dtypes, size):
        super().__init__()
        self._dtypes, self._size = dtypes, size

    def __missing__(self, name):
        values = self[name] = np.zeros(self._size, self._dtypes[name])
        return values

    def write(self, name, values, active):
        """Set it in the active threads (None: in all of them)."""
        values = stored(np.asarray(values), self._dtypes[name])
        if active is not None:
            self[name][active] = values
        elif values.shape == (self._size,):
            self[name] = values.copy()
        else:
            self[name][:] = values


class Machine:
    """A kernel over a grid of blocks, (x, y, z) each. shared: bytes of dynamic shared memory."""

    def __init__(self, kernel, memory, grid, block, shared=0, approximate=False, check_races=True, max_steps=2_000_000):
        self.kernel, self.memory, self.approximate, self.max_steps = kernel, memory, approximate, max_steps
        self.block_size, self.blocks = int(np.prod(block)), int(np.prod(grid))
        self.size = self.block_size * self.blocks
        self.thread = np.arange(self.size)
        self.block, self.place = np.divmod(self.thread, self.block_size)
        self.lane = self.place % WARP
        self.warp = self.block * -(-self.block_size // WARP) + self.place // WARP
        self.special = self._special_registers(grid, block, shared)
        self.registers = Registers(kernel.registers, self.size)
        self._lay_out(shared)
        self.races = {}
        if check_races:
            self.races = {"global": Races(memory.top), "shared": Races(self.shared.size)}
        self.epoch, self.warp_epoch, self.grid_epoch = np.zeros(self.size, np.int32), np.zeros(self.size, np.int32), 0
        # as races.py numbers them
        self._who = [(numbers + 1).astype(np.int32) for numbers in (self.thread, self.warp, self.block)]
        self.carry = np.zeros(self.size, bool)
        self.returned = 0
        self.steps = self.instructions = 0

    def _special_registers(self, grid, block, shared):
        lane = self.lane.astype(np.uint64)
        found = {
            "%laneid": self.lane,
            "%warpid": self.place // WARP,
            "%lanemask_lt": (np.uint64(1) << lane) - np.uint64(1),
            "%dynamic_smem_size": shared,
            "%nwarpid": -(-self.block_size // WARP),
            "%smid": 0,
            "%nsmid": 1,
        }
        for name, sizes, index in (("tid", block, self.place), ("ctaid", grid, self.block)):
            for axis, size in zip("xyz", sizes, strict=True):
                index, found[f"%{name}.{axis}"] = index // size, index % size
                found[f"%n{name}.{axis}"] = size
        return {
            name: np.broadcast_to(np.asarray(values).astype(np.uint32), self.size) for name, values in found.items()
        }

    def _lay_out(self, dynamic):
        """Addresses of variables. Those without a size share the dynamic shared memory, which comes last."""
        self._symbols, used = {}, 0
        variables = self.kernel.module.variables
        for name, variable in variables.items():
            if variable.space == "shared":
                used = -(-used // variable.align) * variable.align
                self._symbols[name] = used
                used += variable.size
            else:
                self._symbols[name] = self._global(name, variable)
        for name, variable in variables.items():
            if variable.space == "shared" and variable.size == 0:
                self._symbols[name] = used = -(-used // variable.align) * variable.align
        self.shared_used = used + dynamic
        self.shared_stride = max(-(-self.shared_used // 8) * 8, 8)
        self.shared = np.zeros(self.blocks * self.shared_stride, np.uint8)
        self.shared_start = self.block * self.shared_stride
        self.local_stride = max(-(-self.kernel.local_size // 8) * 8, 8)
        self.local = np.zeros(self.size * self.local_stride if self.kernel.local_size else 8, np.uint8)

    def _global(self, name, variable):
        address = self.memory.allocate(max(variable.size, 8), name)
        if variable.values is not None:
            start = address - GLOBAL_BASE
            self.memory.raw[start : start + variable.values.nbytes] = variable.values.view(np.uint8)
        return address

    def symbol(self, name):
        if name in self.kernel.local:
            return self.kernel.local[name]
        if name not in self._symbols:
            raise PTXError(f"unknown symbol {name}")
        return self._symbols[name]

    def count(self, active):
        return self.size if active is None else active.size

    def threads(self, active):
        every = *self._who, self.epoch, self.warp_epoch
        return Threads(*(every if active is None else (values[active] for values in every)))

    def write(self, operand, values, active):
        """Set a register of the active threads."""
        name = getattr(operand, "name", "_")
        if name != "_":
            self.registers.write(name, values, active)

    def run(self, arguments):
        """Run to the end with these bytes of parameters; raises PTXError for what a GPU does not allow."""
        self.arguments = np.frombuffer(arguments, np.uint8)
        self.end = len(self.kernel.code)
        # where the threads are: those at a barrier at the end, and in `resume` where they go on
        self.counter, self.resume = np.zeros((2, self.size), np.int64)
        self.waiting, self.at_grid_barrier = np.zeros((2, self.size), bool)
        # where all threads are, if they are known to be together, and then their counters are not kept; and whether some have come to a
        # barrier or to the end
        self._together, self._stopped = 0, False
        self._vote = None
        with np.errstate(all="ignore"):
            while self._step():
                pass
        races = [text for found in self.races.values() for text in found.found.values()]
        if races:
            raise PTXError(f"{len(races)} data race(s): " + "; ".join(races))

    def _step(self):
        """Run one basic block, or let a grid barrier go; False at the end."""
        at, active = self._together, None
        if at is None or at == self.end:
            self._part()
            at = int(self.counter.min())
            if at == self.end:
                return self._nobody_is_ready()
            active = np.flatnonzero(self.counter == at)
            active = None if active.size == self.size else active
        self.steps += 1
        if self.steps > self.max_steps:
            raise PTXError(f"not done after {self.max_steps} basic blocks")
        end = self.kernel.block_end[at]
        # where the threads go on, unless the last instruction says another place
        self._together = end if active is None else None
        if active is not None:
            self.counter[active] = end
        for instruction in self.kernel.code[at:end]:
            self._execute(instruction, active)
        if self._stopped:
            self._stopped = False
            self._release()
        return True

    def _execute(self, instruction, active):
        if instruction.predicate is not None:
            predicate = self.registers[instruction.predicate]
            predicate = predicate if active is None else predicate[active]
            taken = ~predicate if instruction.negated else predicate
            if not taken.all():
                active = np.flatnonzero(taken) if active is None else active[taken]
            if active is not None and active.size == 0:
                return
        self.instructions += 1
        if instruction.run is None:
            self._control(instruction, active)
        else:
            instruction.run(self, instruction, active)

    def _control(self, instruction, active):
        chosen = slice(None) if active is None else active
        match instruction.op:
            case "bra" if active is None:
                self._together = instruction.target
            case "bra":
                self._part()
                self.counter[chosen] = instruction.target
            case "ret" | "exit":
                self._part()
                self.counter[chosen] = self.end
                self._stopped = True
            case "trap":
                raise PTXError("trap executed")
            case "bar" | "barrier" if instruction.modifiers[0] == "warp":
                self.warp_epoch[chosen] += 1
            case "bar" | "barrier" if active is None and "red" not in instruction.modifiers:
                # all are here
                self.epoch += 1
            case "bar" | "barrier":
                self._wait(self.waiting, chosen)
                self._stopped = True
                if "red" in instruction.modifiers:
                    self._contribute(instruction, active)

    def _wait(self, flags, chosen):
        self._part()
        flags[chosen] = True
        self.resume[chosen] = self.counter[chosen]
        self.counter[chosen] = self.end

    def _part(self):
        """From here on threads have counters of their own."""
        if self._together is not None:
            self.counter[:] = self._together
            self._together = None

    def _nobody_is_ready(self):
        if self.at_grid_barrier.all():
            self.at_grid_barrier[:] = False
            self.counter[:] = self.resume
            self.grid_epoch = int(self.epoch.max()) + 1
            self.epoch[:] = self.grid_epoch
            return True
        if self.at_grid_barrier.any():
            raise PTXError("deadlock: a barrier of the grid is not reached by every thread")
        if self.waiting.any():
            where = sorted({self.kernel.code[int(at) - 1].text for at in self.resume[self.waiting]})
            raise PTXError(f"deadlock: some threads wait at {where} which others of the block never reach")
        return False

    def _release(self):
        """Let blocks go on all of whose threads wait, at one barrier."""
        alive = (self.counter < self.end) | self.waiting | self.at_grid_barrier
        waiting = np.bincount(self.block, weights=self.waiting, minlength=self.blocks)
        complete = (waiting == np.bincount(self.block, weights=alive, minlength=self.blocks)) & (waiting > 0)
        if not complete.any():
            return
        freed = complete[self.block] & self.waiting
        low, high = np.full(self.blocks, self.end + 1), np.full(self.blocks, -1)
        np.minimum.at(low, self.block[freed], self.resume[freed])
        np.maximum.at(high, self.block[freed], self.resume[freed])
        if (complete & (low != high)).any():
            raise PTXError("divergent barrier: threads of one block wait at different barriers")
        if (complete & (waiting != self.block_size)).any():
            raise PTXError("divergent barrier: reached by only part of a block (the rest has exited)")
        if self._vote is not None:
            self._deliver(np.flatnonzero(freed))
        self.counter[freed] = self.resume[freed]
        self.waiting &= ~freed
        self.epoch[complete[self.block]] += 1

    def wait_for_grid(self, active):
        """Stop these threads at a barrier of the grid."""
        self._wait(self.at_grid_barrier, slice(None) if active is None else active)

    def _contribute(self, instruction, active):
        """bar.red: each thread's predicate on arrival; its result on release."""
        if self._vote is None:
            self._vote = instruction, np.zeros(self.size, bool)
        predicate = instruction.operands[-1].value(self, PREDICATE, active)
        self._vote[1][slice(None) if active is None else active] = predicate

    def _deliver(self, threads):
        instruction, predicates = self._vote
        block = self.block[threads]
        chosen = np.bincount(block, weights=predicates[threads], minlength=self.blocks)[block]
        how = instruction.option("popc", "and", "or")
        found = {"popc": chosen.astype(np.uint32), "and": chosen == self.block_size, "or": chosen > 0}[how]
        self.write(instruction.operands[0], found, threads)
        predicates[threads] = False
        if not self.waiting[np.isin(self.block, block, invert=True)].any():
            self._vote = None
