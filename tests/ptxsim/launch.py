"""From NumPy arrays to a launch and back."""

import numpy as np

from .formats import PTXError
from .machine import Machine
from .memory import Memory
from .parse import Module

SPARE = 1 << 16


class Statistics:
    """What a launch did: basic blocks, instructions, and bytes read and written by argument."""

    def __init__(self, machine, buffers):
        self.steps, self.instructions = machine.steps, machine.instructions
        self.traffic = buffers


def launch(module, grid, block, arguments, *, shared=0, pointers=False, **options):
    """Run the module's only kernel; arrays are written in place. grid and block: a number or up to three.

    An array is a pointer to its values, or as numba-cuda passes it: meminfo, parent, size, itemsize, data, shape, strides. Views of one
    array share its memory. options are Machine's.
    """
    module = module if isinstance(module, Module) else Module(module)
    arrays = {id(root): root for root in (_root(a) for a in arguments if isinstance(a, np.ndarray))}
    size = sum(a.nbytes + 1024 for a in arrays.values()) + sum(v.size + 1024 for v in module.variables.values())
    memory = Memory(size + SPARE)
    addresses = {key: memory.put(a, f"{a.dtype}{list(a.shape)}") for key, a in arrays.items()}
    flat, buffers = [], []
    for argument in arguments:
        if not isinstance(argument, np.ndarray):
            flat.append(argument)
            buffers.append(None)
            continue
        root = _root(argument)
        address = addresses[id(root)] + argument.ctypes.data - root.ctypes.data
        flat += (
            [address]
            if pointers
            else [0, 0, argument.size, argument.itemsize, address, *argument.shape, *argument.strides]
        )
        buffers.append(memory.traffic[list(addresses).index(id(root))])
    machine = Machine(module.kernel, memory, _three(grid), _three(block), shared, **options)
    machine.run(_packed(module.kernel, flat))
    for key, root in arrays.items():
        if root.flags.writeable:
            memory.get(addresses[key], root)
    return Statistics(machine, buffers)


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
