"""Loads, stores and atomics: bounds, alignment, races and traffic, in global, shared and local memory and in parameters."""

import numpy as np

from ptxsim.formats import UNSIGNED, PTXError
from ptxsim.memory import GLOBAL_BASE
from ptxsim.operands import Vector

# where generic addresses of these spaces begin
SHARED_WINDOW, LOCAL_WINDOW, WINDOW = 0x0001000000000000, 0x0002000000000000, 0x0001000000000000
SPACES = ("global", "shared", "local", "const", "param")


class Place:
    """The bytes that an instruction touches: a buffer, an offset for each active thread, and the space."""

    def __init__(self, buffer, offsets, space):
        self.buffer, self.offsets, self.space = buffer, offsets, space


def _width(i):
    return 2 if "v2" in i.modifiers else 4 if "v4" in i.modifiers else 1


def _parts(operand):
    return operand.parts if isinstance(operand, Vector) else [operand]


def _place(machine, i, operand, active, size, kind):
    """Where the operand points, checked and noted as an access of this kind."""
    addresses = operand.value(machine, active)
    space = i.option(*SPACES) or _space_of(int(addresses[0]))
    # a power of two
    if int(np.bitwise_or.reduce(addresses)) & size - 1:
        raise PTXError(f"{i.text}: misaligned address")
    if space in ("global", "const"):
        offsets = addresses - GLOBAL_BASE
        machine.memory.count(machine.memory.check(offsets, size, i.text), offsets.size, size, kind)
        place = Place(machine.memory.raw, offsets, "global")
    elif space == "shared":
        place = _shared(machine, i, addresses, active, size)
    else:
        place = _local(machine, i, addresses, active, size)
    races = machine.races.get(place.space)
    if races is not None and "volatile" not in i.modifiers:
        races.note(kind, place.offsets, size, machine.threads(active), machine.grid_epoch, i)
    return place


def _space_of(address):
    for space, window in (("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW)):
        if window <= address < window + WINDOW:
            return space
    return "global"


def _offsets(addresses, window):
    """Offsets in a space from its own addresses or generic ones."""
    inside = addresses >= window
    return np.where(inside, addresses - window, addresses) if inside.any() else addresses


def _shared(machine, i, addresses, active, size):
    addresses = _offsets(addresses, SHARED_WINDOW)
    if addresses.min() < 0 or addresses.max() + size > machine.shared_used:
        raise PTXError(f"{i.text}: shared access out of bounds")
    start = machine.shared_start if active is None else machine.shared_start[active]
    return Place(machine.shared, start + addresses, "shared")


def _local(machine, i, addresses, active, size):
    addresses = _offsets(addresses, LOCAL_WINDOW)
    if addresses.min() < 0 or addresses.max() + size > machine.kernel.local_size:
        raise PTXError(f"{i.text}: local access out of bounds")
    thread = machine.thread if active is None else active
    return Place(machine.local, thread * machine.local_stride + addresses, "local")


def load(machine, i, active):
    size, results = i.dtype.itemsize, _parts(i.operands[0])
    if "param" in i.modifiers:
        _load_parameter(machine, i, results, active)
        return
    if machine.count(active) == 0:
        return
    place = _place(machine, i, i.operands[1], active, size * _width(i), "R")
    values = place.buffer.view(i.dtype)
    for part, result in enumerate(results):
        machine.write(result, values[place.offsets // size + part], active)


def _load_parameter(machine, i, results, active):
    address, size = i.operands[1], i.dtype.itemsize
    parameter = machine.kernel.parameters.get(address.name)
    for part, result in enumerate(results):
        if parameter is None:
            # what a call returned
            value = np.array(machine.returned, UNSIGNED[size])
        else:
            start = parameter.offset + address.offset + part * size
            value = machine.arguments[start : start + size].view(i.dtype)[0]
        machine.write(result, value, active)


def store(machine, i, active):
    # arguments of a call go to parameters, and no call reads any
    if "param" in i.modifiers or machine.count(active) == 0:
        return
    size = i.dtype.itemsize
    place = _place(machine, i, i.operands[0], active, size * _width(i), "W")
    values = place.buffer.view(i.dtype)
    for part, operand in enumerate(_parts(i.operands[1])):
        values[place.offsets // size + part] = operand.value(machine, i.dtype, active)


_ATOMICS = {
    "add": lambda old, value: old + value,
    "min": min,
    "max": max,
    "exch": lambda old, value: value,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "xor": lambda old, value: old ^ value,
    "inc": lambda old, value: type(old)(0) if old >= value else old + type(old)(1),
}


def atomic(machine, i, active):
    """atom d, [a], b[, c], thread after thread."""
    _atomic(machine, i, active, i.operands[0], *i.operands[1:])


def reduction(machine, i, active):
    """red [a], b: an atomic whose old value nobody asks for."""
    _atomic(machine, i, active, None, *i.operands)


def _atomic(machine, i, active, result, address, *operands):
    if machine.count(active) == 0:
        return
    n = machine.count(active)
    place = _place(machine, i, address, active, i.dtype.itemsize, "A")
    memory, at = place.buffer.view(i.dtype), place.offsets // i.dtype.itemsize
    values = [np.broadcast_to(operand.value(machine, i.dtype, active), n) for operand in operands]
    old = np.empty(n, i.dtype)
    name = i.option("cas", *_ATOMICS)
    for j in range(n):
        old[j] = memory[at[j]]
        if name != "cas":
            memory[at[j]] = _ATOMICS[name](old[j], values[0][j])
        elif old[j] == values[0][j]:
            memory[at[j]] = values[1][j]
    if result is not None:
        machine.write(result, old, active)


def to_address_space(machine, i, active):
    """cvta: a generic address from one of a space, or with .to the other way."""
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(i.option(*SPACES), 0)
    values = i.operands[1].value(machine, i.dtype, active)
    machine.write(
        i.operands[0], values - np.uint64(window) if "to" in i.modifiers else values + np.uint64(window), active
    )


def nothing(machine, i, active):
    """Fences and hints: this executor's memory is ordered, and the race check does not count on fences."""


def call(machine, i, active):
    """The two functions of cooperative groups, whose handle is a number of ours."""
    text = " ".join(i.texts)
    if "cudaCGGetIntrinsicHandle" in text:
        machine.returned = 1
    elif "cudaCGSynchronize" in text:
        machine.returned = 0
        machine.wait_for_grid(active)
    else:
        raise PTXError(f"call of an external function: {i.text}")


OPERATIONS = {
    "ld": load,
    "st": store,
    "atom": atomic,
    "red": reduction,
    "cvta": to_address_space,
    "membar": nothing,
    "fence": nothing,
    "nanosleep": nothing,
    "prefetch": nothing,
    "call": call,
}
