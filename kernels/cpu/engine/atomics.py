"""Atomic operations on 64-bit integers at an address, and ways to wait, as Numba intrinsics. The thread pool uses them in
place of locks.
"""

import os
import platform

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64 = ir.IntType(64)
# LLVM's name for what tells a core that it waits in a loop, and its arguments
_PAUSES = {"x86_64": ("llvm.x86.sse2.pause",), "aarch64": ("llvm.aarch64.hint", ir.Constant(ir.IntType(32), 1))}
_PAUSES |= {"AMD64": _PAUSES["x86_64"], "arm64": _PAUSES["aarch64"]}
_YIELD = "SwitchToThread" if os.name == "nt" else "sched_yield"


def _place(builder, address):
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def load(typingctx, address):
    """The value at an address (acquire): what its writer stored before it is visible too."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_place(builder, args[0]), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store(typingctx, address, value):
    """Store a value (release): a thread that loads it sees all earlier stores too."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], _place(builder, args[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add(typingctx, address, value):
    """Add to the value at an address."""

    def codegen(context, builder, signature, args):
        builder.atomic_rmw("add", _place(builder, args[0]), args[1], "acq_rel")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def replace(typingctx, address, old, new):
    """Replace the value at an address if it is `old`; whether it was."""

    def codegen(context, builder, signature, args):
        pair = builder.cmpxchg(_place(builder, args[0]), args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Wait for a moment, some ten nanoseconds."""

    def codegen(context, builder, signature, args):
        if platform.machine() in _PAUSES:
            name, *arguments = _PAUSES[platform.machine()]
            kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(typingctx):
    """Let another thread that waits for this core have it."""

    def codegen(context, builder, signature, args):
        if llvmlite.binding.address_of_symbol(_YIELD):
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, _YIELD), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic(prefer_literal=True)
def memory(typingctx, size):
    """Address of so many bytes, a literal, which the compiled function that asks for them keeps for the process: 0 at first, and on cache
    lines of their own.
    """
    size = size.literal_value

    def codegen(context, builder, signature, args):
        kind = ir.ArrayType(_I64, size // 8)
        found = ir.GlobalVariable(builder.module, kind, builder.module.get_unique_name("memory"))
        found.linkage, found.initializer, found.align = "internal", ir.Constant(kind, None), 64
        return builder.ptrtoint(found, _I64)

    return types.int64(types.IntegerLiteral(size)), codegen
