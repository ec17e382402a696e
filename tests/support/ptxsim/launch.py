"""From NumPy arrays to a launch and back."""

import numpy as np

from ptxsim.formats import PTXError
from ptxsim.machine import Machine
from ptxsim.memory import Memory
from ptxsim.parse import Module

SPARE = 1 << 16


class Statistics:
    """What a launch did: basic blocks, instructions, and (bytes read, bytes written) of each argument: of all together for a list."""

    def __init__(self, machine, traffic):
        self.steps, self.instructions, self.traffic = machine.steps, machine.instructions, traffic


class Buffers:
    """Arrays in a memory of their own. Views of one array share its place."""

    def __init__(self, arrays, spare):
        roots = {id(root): root for root in map(_root, arrays)}
        self.memory = Memory(sum(a.nbytes + 1024 for a in roots.values()) + spare)
        self._places = {}
        for key, root in roots.items():
            name = f"{root.dtype}{list(root.shape)}"
            self._places[key] = root, self.memory.put(root, name), self.memory.traffic[-1]

    def address(self, array):
        root, address, _ = self._places[id(_root(array))]
        return address + array.ctypes.data - root.ctypes.data

    def traffic(self, arrays):
        found = [self._places[id(_root(a))][2] for a in arrays]
        return sum(t.read for t in found), sum(t.written for t in found)

    def fetch(self):
        """Copy back to what may be written."""
        for root, address, _ in self._places.values():
            if root.flags.writeable:
                self.memory.get(address, root)


def launch(module, grid, block, arguments, *, shared=0, pointers=False, **options):
    """Run the module's only kernel; arrays are written in place. grid and block: a number or up to three.

    An array is a pointer to its values, or as numba-cuda passes it: meminfo, parent, size, itemsize, data, shape, strides. A list of arrays
    is a pointer to their pointers. options are Machine's.
    """
    module = module if isinstance(module, Module) else Module(module)
    lists = [a if isinstance(a, list) else [a] if isinstance(a, np.ndarray) else [] for a in arguments]
    spare = (
        sum(v.size + 1024 for v in module.variables.values()) + sum(8 * len(arrays) + 1024 for arrays in lists) + SPARE
    )
    buffers = Buffers([a for arrays in lists for a in arrays], spare)
    flat = []
    for argument in arguments:
        if isinstance(argument, list):
            addresses = np.array([buffers.address(a) for a in argument], np.uint64)
            flat.append(buffers.memory.put(addresses, f"pointers to {len(addresses)} arrays"))
        elif isinstance(argument, np.ndarray):
            address = buffers.address(argument)
            sizes = [0, 0, argument.size, argument.itemsize, address, *argument.shape, *argument.strides]
            flat += [address] if pointers else sizes
        else:
            flat.append(argument)
    machine = Machine(module.kernel, buffers.memory, _three(grid), _three(block), shared, **options)
    machine.run(_packed(module.kernel, flat))
    buffers.fetch()
    return Statistics(machine, [buffers.traffic(arrays) if arrays else None for arrays in lists])


def _three(sizes):
    sizes = (sizes,) if np.isscalar(sizes) else tuple(sizes)
    return sizes + (1,) * (3 - len(sizes))


def _root(array):
    """The array whose memory this is a view of."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return root if root.flags.c_contiguous else array


def _packed(kernel, values):
    """Bytes of the parameters; a float in an unsigned place gives its bits."""
    if len(values) != len(kernel.parameters):
        raise PTXError(f"{len(values)} values for {len(kernel.parameters)} parameters")
    packed = np.zeros(kernel.parameter_size, np.uint8)
    for value, parameter in zip(values, kernel.parameters.values(), strict=True):
        kind = parameter.dtype
        if kind.kind == "u" and isinstance(value, float | np.floating):
            kind = np.dtype(f"f{kind.itemsize}")
        packed[parameter.offset : parameter.offset + parameter.size] = np.array([value]).astype(kind).view(np.uint8)
    return packed.tobytes()
