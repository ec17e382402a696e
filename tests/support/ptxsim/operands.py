"""What an instruction reads: each operand is decoded once and gives its values in the active threads (None: in all of them)."""

import re

import numpy as np

from ptxsim.formats import PREDICATE, TYPES, UNSIGNED, PTXError, reinterpret

CLOCKS = ("%clock", "%clock64", "%globaltimer")


class Register:
    def __init__(self, name):
        self.name = name

    def value(self, machine, dtype, active):
        values = machine.registers[self.name]
        return reinterpret(values if active is None else values[active], dtype)


class Special:
    """%tid.x and its like, which are 32 bits wide."""

    def __init__(self, name):
        self.name = name

    def value(self, machine, dtype, active):
        if self.name in CLOCKS:
            return np.array(machine.instructions, dtype)
        values = machine.special[self.name]
        values = values if active is None else values[active]
        return values.astype(UNSIGNED[dtype.itemsize]).view(dtype)


class Immediate:
    """A number, which is of the type of whatever reads it."""

    def __init__(self, text):
        self.text = text
        self._values = {}

    def value(self, machine, dtype, active):
        found = self._values.get(dtype)
        if found is None:
            found = self._values[dtype] = self._as(dtype)
        return found

    def _as(self, dtype):
        if self.text[:2] in ("0f", "0F"):
            return np.array(int(self.text[2:], 16), np.uint32).view(np.float32).astype(dtype)
        if self.text[:2] in ("0d", "0D"):
            return np.array(int(self.text[2:], 16), np.uint64).view(np.float64).view(dtype)
        number = int(self.text.rstrip("U"), 0)
        if dtype == PREDICATE:
            return np.array(bool(number))
        if dtype.kind == "f" and number:
            raise PTXError(f"the integer {self.text} where {dtype} is read")
        unsigned = UNSIGNED[dtype.itemsize]
        return np.array(number & (1 << 8 * dtype.itemsize) - 1, unsigned).view(dtype)


class Symbol:
    """The address of a variable."""

    def __init__(self, name):
        self.name = name

    def value(self, machine, dtype, active):
        return np.array(machine.symbol(self.name), np.uint64).astype(UNSIGNED[dtype.itemsize]).view(dtype)


class Negated:
    """!p."""

    def __init__(self, operand):
        self.operand = operand

    def value(self, machine, dtype, active):
        return ~self.operand.value(machine, PREDICATE, active)


class Vector:
    """{a, b, ...}."""

    def __init__(self, parts):
        self.parts = parts


class Address:
    """[base + offset]."""

    def __init__(self, name, base, offset):
        self.name, self.base, self.offset = name, base, offset

    def value(self, machine, active):
        """int64, one for each active thread."""
        values = self.base.value(machine, TYPES["u64"], active).view(np.int64) + self.offset
        n = machine.count(active)
        return values if values.shape == (n,) else np.broadcast_to(values, n)


_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]")


def decode(text, registers):
    """The operand that this text is."""
    if text in registers:
        return Register(text)
    if text[0] == "{":
        return Vector([decode(part.strip(), registers) for part in text[1:-1].split(",")])
    if text[0] == "[":
        name, offset = _ADDRESS.match(text).groups()
        return Address(name, decode(name, registers), int(offset or 0))
    if text[0] == "!":
        return Negated(decode(text[1:], registers))
    if text[0] == "%":
        return Special(text)
    if text == "WARP_SZ":
        return Immediate("32")
    if text[0] == "-" or text[0].isdigit():
        return Immediate(text)
    return Symbol(text)
