"""Numba intrinsics for kernels: addresses and pointers, calls of kernels by address, arrays on the stack; and Emitter, which writes LLVM
vector instructions.
"""

import os
import platform
from functools import lru_cache

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import device_function

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


@lru_cache
def vector_bits() -> int:
    """Width of the vectors in use: FASTGRAD_VECTOR_BITS, or what the processor has."""
    forced = os.environ.get("FASTGRAD_VECTOR_BITS")
    if forced:
        if forced not in ("128", "256", "512"):
            raise ValueError(f"FASTGRAD_VECTOR_BITS must be 128, 256 or 512, got {forced!r}")
        return int(forced)
    features = llvmlite.binding.get_host_cpu_features()
    return 512 if features.get("avx512f") else 256 if features.get("avx2") else 128


def many_registers() -> bool:
    return vector_bits() == 512 or platform.machine() in ("aarch64", "arm64")


def _lanes(dtype) -> int:
    return vector_bits() // dtype.bitwidth


def _vector(context, dtype):
    return ir.VectorType(context.get_value_type(dtype), _lanes(dtype))


@intrinsic
def lanes(typingctx, pointer):
    """Values in one vector, a constant."""

    def codegen(context, builder, signature, args):
        return ir.Constant(_I64, _lanes(signature.args[0].dtype))

    return types.int64(pointer), codegen


@intrinsic
def pointer(typingctx, address, like):
    """An address as a pointer of `like`'s kind."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return like(types.int64, like), codegen


@intrinsic
def address(typingctx, array):
    """Address of an array's first value."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(context.make_array(signature.args[0])(context, builder, args[0]).data, _I64)

    return types.int64(array), codegen


@device_function
def address_or_null(array):
    """Address of an array, null for an empty one, as which None comes to drivers: see or_empty of compile.py."""
    return address(array) if array.size else 0


@intrinsic
def address_at(typingctx, pointer):
    """A pointer as an address."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], _I64)

    return types.int64(pointer), codegen


@intrinsic
def data(typingctx, array):
    """Pointer to an array's first value."""

    def codegen(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def advance(typingctx, pointer, count):
    """pointer + count values."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.int64), codegen


@intrinsic
def copy(typingctx, count, source, target):
    """Copy values; a constant count becomes vector moves, another one a call of memcpy."""

    def codegen(context, builder, signature, args):
        count, source, target = args
        cgutils.raw_memcpy(builder, target, source, count, signature.args[1].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, source, source), codegen


@intrinsic
def hide_alias(typingctx, pointer):
    """The same pointer, hidden from LLVM's alias analysis.

    For a loop in place that changes only some values LLVM would emit masked stores, which take AMD's cores 14 cycles.
    """

    def codegen(context, builder, signature, args):
        return hide_value(builder, args[0])

    return pointer(pointer), codegen


@intrinsic
def prefetch(typingctx, pointer):
    """Prefetch the cache line at a pointer."""

    def codegen(context, builder, signature, args):
        place = builder.bitcast(args[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [place, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(pointer), codegen


@intrinsic
def is_null(typingctx, pointer):
    def codegen(context, builder, signature, args):
        return builder.icmp_unsigned("==", builder.ptrtoint(args[0], _I64), ir.Constant(_I64, 0))

    return types.boolean(pointer), codegen


@intrinsic
def real(typingctx, value, like):
    """A number in the dtype of the scalar `like`, so that a float32 formula stays float32."""

    def codegen(context, builder, signature, args):
        return context.cast(builder, args[0], signature.args[0], signature.return_type)

    return like(value, like), codegen


@intrinsic
def magnitude(typingctx, value):
    """The bits of |value| as an integer: of values that are no NaN they have the order."""

    def codegen(context, builder, signature, args):
        width = signature.args[0].bitwidth
        bits = builder.bitcast(args[0], ir.IntType(width))
        bits = builder.and_(bits, ir.Constant(bits.type, (1 << (width - 1)) - 1))
        return bits if width == 64 else builder.zext(bits, _I64)

    return types.int64(value), codegen


@intrinsic
def void_pointer(typingctx, address):
    """An address as numba.carray takes it."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@intrinsic
def carray(typingctx, pointer, shape, dtype=None):
    """The C-contiguous array of this shape at a pointer: n, or (n, m); dtype: of a void pointer's values.

    As numba.carray, which costs a compilation of its own for each kind of arguments: a third of all that a kernel's compilation takes.
    """
    sizes = shape.types if isinstance(shape, types.BaseTuple) else (shape,)
    kind = pointer.dtype if dtype is None else dtype.dtype
    result = types.Array(kind, len(sizes), "C")

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[1]) if isinstance(shape, types.BaseTuple) else [args[1]]
        values = [context.cast(builder, value, size, types.intp) for value, size in zip(values, sizes, strict=True)]
        data_type = context.get_data_type(kind)
        size = _I64(context.get_abi_sizeof(data_type))
        strides = [size]
        for value in values[:0:-1]:
            strides.insert(0, builder.mul(strides[0], value))
        array = context.make_array(result)(context, builder)
        place = builder.bitcast(args[0], data_type.as_pointer())
        context.populate_array(array, data=place, shape=values, strides=strides, itemsize=size, meminfo=None)
        return array._getvalue()

    return result(pointer, shape, types.Omitted(None) if dtype is None else dtype), codegen


@intrinsic
def call(typingctx, function, a, b, record):
    """Call the C function at an address with two integers and a record: an array of one, or its address.

    A kernel takes its fourth argument, a null, for its type only. A driver launches with run_kernel instead.
    """

    def codegen(context, builder, signature, args):
        _emit_call(context, builder, signature.args[3], *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, record), codegen


@intrinsic
def run_kernel(typingctx, launcher, function, parts, record, keep):
    """Run the kernel at `function` over its parts by the launcher. keep: a tuple of the arrays whose addresses the record has.

    Numba frees an array after its last use, and a use of its address does not count. So each array that a driver allocates, and that a
    kernel reads or writes, is an argument of the launch. The caller keeps the driver's own arguments alive.
    """

    def codegen(context, builder, signature, args):
        launcher, function, parts, record, _ = args
        _emit_call(context, builder, signature.args[3], launcher, function, parts, record)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, record, keep), codegen


def _emit_call(context, builder, record_type, function, a, b, record):
    if isinstance(record_type, types.Array):
        record = builder.ptrtoint(context.make_array(record_type)(context, builder, record).data, _I64)
    kind = ir.FunctionType(ir.VoidType(), [_I64] * 4)
    builder.call(builder.inttoptr(function, kind.as_pointer()), [a, b, record, ir.Constant(_I64, 0)])


def _stack_array(n, kind, zeroed):
    result = types.Array(kind.dtype, 1, "C")

    def codegen(context, builder, signature, args):
        data_type = context.get_data_type(result.dtype)
        size = context.get_abi_sizeof(data_type)
        words = (n.literal_value * size + 7) // 8
        # in the entry block: in a loop each turn would take more of the stack
        with builder.goto_entry_block():
            place = builder.alloca(ir.ArrayType(_I64, words))
        if zeroed:
            cgutils.memset(builder, builder.bitcast(place, ir.IntType(8).as_pointer()), _I64(8 * words), 0)
        array = context.make_array(result)(context, builder)
        place = builder.bitcast(place, data_type.as_pointer())
        sizes = {"shape": [_I64(n.literal_value)], "strides": [_I64(size)], "itemsize": _I64(size)}
        context.populate_array(array, data=place, meminfo=None, **sizes)
        return array._getvalue()

    return result(n, kind), codegen


@intrinsic(prefer_literal=True)
def local(typingctx, n, kind):
    """An array of n values, a small literal number, of a dtype or of a pointer's; uninitialised.

    It lies on the stack: it lives until the compiled function that asks for it returns, whatever is done with its address, and there
    is nothing that could fail to be allocated, which a kernel could tell nobody.
    """
    return _stack_array(n, kind, False)


@intrinsic(prefer_literal=True)
def local_zeros(typingctx, n, kind):
    """The same, of zeros."""
    return _stack_array(n, kind, True)


def hide_value(builder, value):
    """The same value, hidden from LLVM's optimiser."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], side_effect=False)


class Emitter:
    """Short names for LLVM's vector instructions: load, store, masked load, fma, splat."""

    def __init__(self, context, builder, dtype):
        self.builder, self.width = builder, _lanes(dtype)
        self.scalar, self.vector = context.get_value_type(dtype), _vector(context, dtype)
        self.suffix = f"v{self.width}f{dtype.bitwidth}"
        self.bytes = dtype.bitwidth // 8

    def call(self, name, result, *args):
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def at(self, pointer, offset):
        return self.builder.gep(pointer, [offset if isinstance(offset, ir.Value) else ir.Constant(_I64, offset)])

    def load(self, pointer, mask=None):
        where = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            value = self.builder.load(where)
            value.align = self.bytes
            return value
        zero = ir.Constant(self.vector, [0.0] * self.width)
        name = f"llvm.masked.load.{self.suffix}.p0"
        return self.call(name, self.vector, where, ir.Constant(_I32, self.bytes), mask, zero)

    def store(self, value, pointer):
        where = self.builder.bitcast(pointer, value.type.as_pointer())
        self.builder.store(value, where).align = self.bytes

    def store_first(self, count, values, pointers):
        """The first `count` lanes of each vector, a half, a quarter and so on at a time: a masked store takes AMD's cores 14 cycles."""
        builder, undefined = self.builder, ir.Constant(self.vector, ir.Undefined)
        piece = self.width
        while piece:
            before, store, after = (
                builder.block,
                builder.append_basic_block("store"),
                builder.append_basic_block("stored"),
            )
            builder.cbranch(builder.trunc(builder.lshr(count, _I64(piece.bit_length() - 1)), _I1), store, after)
            builder.position_at_end(store)
            # the piece's own lanes, and those that move into their place
            lanes = list(range(piece)), [min(lane + piece, self.width - 1) for lane in range(self.width)]
            low, rest = (ir.Constant(ir.VectorType(_I32, len(of)), of) for of in lanes)
            moved = []
            for value, pointer in zip(values, pointers, strict=True):
                self.store(builder.shuffle_vector(value, undefined, low), pointer)
                moved.append((builder.shuffle_vector(value, undefined, rest), self.at(pointer, piece)))
            builder.branch(after)
            builder.position_at_end(after)
            merged = []
            for old, new in zip([*values, *pointers], [*(v for v, _ in moved), *(p for _, p in moved)], strict=True):
                merged.append(builder.phi(old.type))
                merged[-1].add_incoming(old, before)
                merged[-1].add_incoming(new, store)
            values, pointers = merged[: len(values)], merged[len(values) :]
            piece //= 2

    def splat(self, value):
        one = ir.VectorType(value.type, self.width)
        lane0 = self.builder.insert_element(ir.Constant(one, ir.Undefined), value, ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(lane0, ir.Constant(one, ir.Undefined), zeros)

    def first(self, count):
        """Mask of the first `count` lanes."""
        index = ir.Constant(ir.VectorType(_I32, self.width), list(range(self.width)))
        return self.builder.icmp_signed("<", index, self.splat(self.builder.trunc(count, _I32)))

    def fma(self, a, b, c):
        return self.call(f"llvm.fma.{self.suffix}", self.vector, a, b, c)
