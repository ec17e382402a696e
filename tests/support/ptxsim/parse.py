"""PTX text to kernels: their parameters, variables and decoded instructions, cut into basic blocks."""

import re
from itertools import pairwise

import numpy as np

from ptxsim import operands
from ptxsim.formats import PREDICATE, TYPES, UNSIGNED, PTXError
from ptxsim.operations import OPERATIONS

# what the scheduler does itself, and what begins a basic block of its own, since lanes meet there
CONTROL = ("bra", "ret", "exit", "trap", "bar", "barrier")
MEETINGS = ("bar", "barrier", "shfl", "vote", "activemask")

_LABEL = re.compile(r"^([$A-Za-z_][\w$]*):\s*(.*)$")
_VARIABLE = re.compile(
    r"\.(shared|global|const)\b(?:.*?\.align\s+(\d+))?\s+\.(\w+)\s+([\w$]+)(\[(\d*)\])?\s*(?:=\s*\{(.*)\})?", re.S
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)(?:\s+\.ptr\s*(?:\.\w+\s*)*(?:\.align\s+\d+)?)?\s+([\w$]+)(?:\[(\d+)\])?"
)
_BRACKET, _BRACE = re.compile(r"[\[\](){}]"), re.compile(r"[{}]")
_LOCAL = re.compile(r"\.local\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\[(\d+)\]")


class Variable:
    """A variable of the module: its space, bytes (0: as many as the launch gives), alignment and first values or None."""

    def __init__(self, space, size, align, values):
        self.space, self.size, self.align, self.values = space, size, align, values


class Parameter:
    def __init__(self, name, offset, size, dtype):
        self.name, self.offset, self.size, self.dtype = name, offset, size, dtype


class Instruction:
    """One line: @predicate op.modifiers operands."""

    def __init__(self, text, line):
        self.text, self.line, self.predicate, self.negated, self.target = text, line, None, False, None
        if text[0] == "@":
            sign, self.predicate, text = re.match(r"@(!?)(\S+)\s+(.*)", text).groups()
            self.negated = bool(sign)
        opcode, _, rest = text.partition(" ")
        self.opcode = opcode
        self.op, *modifiers = opcode.split(".")
        self.modifiers = tuple(modifiers)
        self.types = [TYPES[m] for m in modifiers if m in TYPES]
        self.dtype = self.types[-1] if self.types else None
        self.texts = split(rest)
        self.operands = []
        # what executes it; None where the scheduler does
        self.run = None
        self._options = {}

    def decode(self, registers, labels):
        if self.op == "bra":
            self.target = labels[self.texts[0]]
        elif self.op not in CONTROL or self.op in ("bar", "barrier"):
            if self.op not in CONTROL and self.op not in OPERATIONS:
                raise PTXError(f"unknown instruction: {self.text}")
            if self.op in OPERATIONS:
                self.run = OPERATIONS[self.op]
            # a call names its function and its arguments in brackets, which no operation reads
            texts = [] if self.op == "call" else self.texts
            self.operands = [operands.decode(t, registers) for text in texts for t in text.split("|")]

    def option(self, *names):
        """The one of these modifiers that it has, or None."""
        if names not in self._options:
            self._options[names] = next((m for m in self.modifiers if m in names), None)
        return self._options[names]


class Module:
    """Compiled PTX: its kernels by name, its variables, and how often each opcode is in it."""

    def __init__(self, ptx):
        ptx = re.sub(r"/\*.*?\*/|//[^\n]*", "", ptx, flags=re.S)
        self.variables, self.kernels, self.opcodes = {}, {}, {}
        end = 0
        for found in re.finditer(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", ptx, re.S):
            self.declare(ptx[end : found.start()])
            start = found.end()
            end = _closing(ptx, start)
            self.kernels[found[1]] = Kernel(self, found[1], found[2], ptx[start : end - 1])
        self.declare(ptx[end:])

    @property
    def kernel(self):
        """The only kernel."""
        (kernel,) = self.kernels.values()
        return kernel

    def declare(self, text):
        for statement in text.split(";"):
            found = _VARIABLE.search(statement)
            if found is None:
                continue
            space, align, kind, name, brackets, count, values = found.groups()
            dtype = TYPES[kind]
            n = int(count) if count else (0 if brackets else 1)
            first = np.array([int(v, 0) for v in values.split(",")]).astype(dtype) if values else None
            self.variables[name] = Variable(space, n * dtype.itemsize, int(align or dtype.itemsize), first)


class Kernel:
    """One entry: `code` and where its basic blocks end, registers by name, local variables and parameters."""

    def __init__(self, module, name, parameters, body):
        self.module, self.name = module, name
        self.parameters, self.parameter_size = _parameters(parameters)
        self.registers, self.local, self.local_size = {}, {}, 0
        self.code, self.labels = [], {}
        for statement in re.split(r";|(?<=:)\s*\n|\n\s*(?=[{}])|(?<=[{}])\s*\n", body):
            self._statement(" ".join(statement.split()))
        for instruction in self.code:
            instruction.decode(self.registers, self.labels)
            module.opcodes[instruction.opcode] = module.opcodes.get(instruction.opcode, 0) + 1
        self.block_end = self._basic_blocks()

    def _statement(self, text):
        text = text.lstrip("{} ")
        label = _LABEL.match(text)
        if label:
            self.labels[label[1]] = len(self.code)
            text = label[2]
        if not text or text.startswith((".param", ".loc ", ".file", ".pragma", ".maxn", ".minn", ".req")):
            return
        if text.startswith(".reg"):
            self._declare_registers(text)
        elif text.startswith(".local"):
            self._declare_local(text)
        elif text.startswith(".shared"):
            self.module.declare(text)
        else:
            self.code.append(Instruction(text, len(self.code)))

    def _declare_registers(self, text):
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text).groups()
        dtype = TYPES[kind]
        for name in names.split(","):
            many = re.match(r"(%?[\w$]+)<(\d+)>", name.strip())
            for each in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]:
                self.registers[each] = PREDICATE if dtype == PREDICATE else UNSIGNED[dtype.itemsize]

    def _declare_local(self, text):
        align, kind, name, count = _LOCAL.match(text).groups()
        width = TYPES[kind].itemsize
        self.local[name] = _rounded(self.local_size, int(align or width))
        self.local_size = self.local[name] + width * int(count)

    def _basic_blocks(self):
        leaders = {0, len(self.code), *self.labels.values()}
        for i, instruction in enumerate(self.code):
            if instruction.op in (*CONTROL, *MEETINGS, "call"):
                leaders.add(i + 1)
            if instruction.op in MEETINGS:
                leaders.add(i)
        ordered = sorted(leaders)
        return dict(pairwise(ordered))


def split(text):
    """Operands, at the commas outside brackets."""
    if not _BRACKET.search(text):
        parts = [part.strip() for part in text.split(",")]
        return parts if parts[-1] else parts[:-1]
    parts, depth, part = [], 0, ""
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    return [*parts, part.strip()] if part.strip() else parts


def _parameters(text):
    """(parameters by name, bytes of all)."""
    found, offset = {}, 0
    for declaration in split(text):
        align, kind, name, count = _PARAMETER.search(declaration).groups()
        dtype = TYPES[kind]
        size = dtype.itemsize * int(count or 1)
        offset = _rounded(offset, int(align or dtype.itemsize))
        found[name] = Parameter(name, offset, size, dtype)
        offset += size
    return found, offset


def _rounded(offset, align):
    return -(-offset // align) * align


def _closing(text, start):
    """The place after the brace that closes the one before start."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise PTXError("a brace is not closed")
