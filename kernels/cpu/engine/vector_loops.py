"""Elementwise loops over arrays, a sum of squares and a copy past the caches, as Numba intrinsics that LLVM vectorises.

map_values, map_values_times and map_arrays apply an inline function to each value. Metadata tells LLVM which arrays do not overlap, and
how many vectors to interleave.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import device_function, inline_function
from .intrinsics import address_or_null, advance, carray, hide_value

_I32, _I64 = ir.IntType(32), ir.IntType(64)
# bytes of a cache line; an output of at least so many bytes has left the cache before it is read
LINE, LARGE_OUTPUT = 64, 1 << 23


class _Distinct(ir.MDValue):
    """A node of metadata that starts with itself, and so equals no other."""

    __eq__, __hash__ = object.__eq__, object.__hash__

    def __init__(self, module, *operands):
        super().__init__(module, (), str(len(module.metadata)))
        self.operands = self, *operands


def _scopes(module, count):
    """Names for groups of arrays that are apart from each other."""
    domain = _Distinct(module)
    return [_Distinct(module, domain) for _ in range(count)]


def _marked(instruction, own, others):
    """A load or store of an array of its own group, apart from the others."""
    instruction.set_metadata("alias.scope", instruction.parent.module.add_metadata([own]))
    instruction.set_metadata("noalias", instruction.parent.module.add_metadata(others))
    return instruction


def _interleave(branch, module, count):
    """Have LLVM interleave so many vectors of the loop that this branch closes."""
    hint = module.add_metadata([ir.MetaDataString(module, "llvm.loop.interleave.count"), _I32(count)])
    branch.set_metadata("llvm.loop", _Distinct(module, hint))


def _map(typingctx, f, source, parameters, times):
    inner = typingctx.resolve_function_type(f, (source.dtype, *parameters), {})

    def codegen(context, builder, signature, args):
        _, count, source, target, parameters = args
        function = context.get_function(f, inner)
        for library in getattr(function, "libs", ()):
            context.active_code_library.add_linking_library(library)
        # when source and target are one array, LLVM turns a choice between f(x) and x into a masked store, which takes 14 cycles on AMD:
        # hide_value hides that they are one, and the alias scopes say that the loop may be vectorised all the same
        source = hide_value(builder, source)
        read, written = _scopes(builder.module, 2)
        entry, loop, done = builder.block, builder.append_basic_block("values"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", ir.Constant(_I64, 0), count), loop, done)
        builder.position_at_end(loop)
        i = builder.phi(_I64)
        value = _marked(builder.load(builder.gep(source, [i])), read, [written])
        result, place = function(builder, [value, *cgutils.unpack_tuple(builder, parameters)]), builder.gep(target, [i])
        if times:
            result = builder.fmul(_marked(builder.load(place), written, [read]), result)
        _marked(builder.store(result, place), written, [read])
        following = builder.add(i, ir.Constant(_I64, 1), flags=["nsw"])
        i.add_incoming(ir.Constant(_I64, 0), entry)
        i.add_incoming(following, builder.block)
        _interleave(builder.cbranch(builder.icmp_signed("<", following, count), loop, done), builder.module, 4)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(f, types.int64, source, source, parameters), codegen


@intrinsic
def map_values(typingctx, f, count, source, target, parameters):
    """target[i] = f(source[i], *parameters) for i < count; the two arrays are the same, or do not overlap.

    Four vectors are interleaved: f is one long chain of operations, each of which waits for the one before.
    """
    return _map(typingctx, f, source, parameters, times=False)


@intrinsic
def map_values_times(typingctx, f, count, source, target, parameters):
    """target[i] *= f(source[i], *parameters) for i < count; the two arrays do not overlap."""
    return _map(typingctx, f, source, parameters, times=True)


@intrinsic
def map_arrays(typingctx, f, count, sources, targets, parameters):
    """targets[k][i] = f(sources[0][i], sources[1][i], ..., *parameters)[k] for i < count.

    A target is one of the sources, or overlaps none of them. Metadata says so: LLVM would not check so many pointers itself.
    """
    return _map_arrays(typingctx, f, (), sources, targets, parameters)


@intrinsic
def map_masked(typingctx, f, count, mask, sources, targets, parameters):
    """map_arrays, with 0 where the mask, a pointer to a byte a value, has 0; mask may be None."""
    return _map_arrays(typingctx, f, (mask,), sources, targets, parameters)


def _map_arrays(typingctx, f, masks, sources, targets, parameters):
    """The signature and code of map_arrays, masks (), and of map_masked, which has the type of its mask in masks."""
    inner = typingctx.resolve_function_type(f, (*(source.dtype for source in sources), *parameters), {})

    def codegen(context, builder, signature, args):
        _, count, *mask_pointer, sources, targets, parameters = args
        parameters = cgutils.unpack_tuple(builder, parameters)
        sources, targets = (cgutils.unpack_tuple(builder, pointers) for pointers in (sources, targets))
        function, module = context.get_function(f, inner), builder.module
        for library in getattr(function, "libs", ()):
            context.active_code_library.add_linking_library(library)
        read, *written = _scopes(module, 1 + len(targets))
        entry, loop, done = builder.block, builder.append_basic_block("arrays"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", ir.Constant(_I64, 0), count), loop, done)
        builder.position_at_end(loop)
        i = builder.phi(_I64)
        loads = [_marked(builder.load(builder.gep(source, [i])), read, written) for source in sources]
        results = function(builder, [*loads, *parameters])
        is_kept = None
        if masks and masks[0] is not types.none:
            byte = _marked(builder.load(builder.gep(mask_pointer[0], [i])), read, written)
            is_kept = builder.icmp_unsigned("!=", byte, byte.type(0))
        for k, (value, target) in enumerate(zip(cgutils.unpack_tuple(builder, results), targets, strict=True)):
            if is_kept:
                value = builder.select(is_kept, value, value.type(0))
            others = [read, *(scope for j, scope in enumerate(written) if j != k)]
            _marked(builder.store(value, builder.gep(target, [i])), written[k], others)
        following = builder.add(i, ir.Constant(_I64, 1), flags=["nsw"])
        i.add_incoming(ir.Constant(_I64, 0), entry)
        i.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(f, types.int64, *masks, sources, targets, parameters), codegen


@intrinsic
def square_sum(typingctx, source, count):
    """The sum in float64 of the squares of `count` values, a multiple of 16, in 16 independent chains."""

    def codegen(context, builder, signature, args):
        source, count = args
        scalar, double = context.get_value_type(signature.args[0].dtype), ir.DoubleType()
        values, sums = ir.VectorType(scalar, 8), ir.VectorType(double, 8)
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(sums, [sums] * 3), "llvm.fma.v8f64")
        zero = ir.Constant(sums, [0.0] * 8)
        entry, loop, done = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", ir.Constant(_I64, 0), count), loop, done)

        builder.position_at_end(loop)
        at, chains = builder.phi(_I64), [builder.phi(sums), builder.phi(sums)]
        new = []
        for half, chain in enumerate(chains):
            place = builder.gep(source, [builder.add(at, ir.Constant(_I64, 8 * half))])
            value = builder.load(builder.bitcast(place, values.as_pointer()))
            value.align = signature.args[0].dtype.bitwidth // 8
            wide = value if scalar == double else builder.fpext(value, sums)
            new.append(builder.call(fma, [wide, wide, chain]))
        following = builder.add(at, ir.Constant(_I64, 16))
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
        for phi, first, again in zip([at, *chains], [ir.Constant(_I64, 0), zero, zero], [following, *new], strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(again, loop)

        builder.position_at_end(done)
        halves = []
        for value in new:
            half = builder.phi(sums)
            half.add_incoming(zero, entry)
            half.add_incoming(value, loop)
            halves.append(half)
        both = builder.fadd(*halves)
        lanes = [builder.extract_element(both, ir.Constant(_I32, i)) for i in range(8)]
        while len(lanes) > 1:
            lanes = [builder.fadd(a, b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
        return lanes[0]

    return types.float64(source, types.int64), codegen


@device_function
def squares(values, n):
    """The sum of n squares in float64."""
    whole = n - n % 16
    total = square_sum(values, whole)
    rest = carray(advance(values, whole), n - whole)
    for i in range(n - whole):
        total += np.float64(rest[i]) * np.float64(rest[i])
    return total


@intrinsic
def store_nontemporal(typingctx, count, source, target):
    """Copy `count` values, whole cache lines of them past the caches: a line that is only written need not come from memory first.

    target is at a line's beginning. Before others read it: fence.
    """

    def codegen(context, builder, signature, args):
        count, source, target = args
        scalar = signature.args[1].dtype
        whole = ir.VectorType(context.get_value_type(scalar), 8 * LINE // scalar.bitwidth)
        entry, loop, done = builder.block, builder.append_basic_block("lines"), builder.append_basic_block("done")
        n = ir.Constant(_I64, whole.count)
        lines = builder.sub(count, builder.and_(count, builder.sub(n, ir.Constant(_I64, 1))))
        builder.cbranch(builder.icmp_signed("<", ir.Constant(_I64, 0), lines), loop, done)
        builder.position_at_end(loop)
        i = builder.phi(_I64)
        value = builder.load(builder.bitcast(builder.gep(source, [i]), whole.as_pointer()))
        value.align = scalar.bitwidth // 8
        store = builder.store(value, builder.bitcast(builder.gep(target, [i]), whole.as_pointer()))
        store.align = LINE
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))
        following = builder.add(i, n)
        i.add_incoming(ir.Constant(_I64, 0), entry)
        i.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, lines), loop, done)
        builder.position_at_end(done)
        cgutils.raw_memcpy(
            builder,
            builder.gep(target, [lines]),
            builder.gep(source, [lines]),
            builder.sub(count, lines),
            scalar.bitwidth // 8,
        )
        return context.get_dummy_value()

    return types.void(types.int64, source, source), codegen


@intrinsic
def fence(typingctx):
    """Order nontemporal stores before all later ones."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@device_function
def is_stored_nontemporal(array, columns):
    """Whether an output is written past the caches: if it is large, and its rows of so many values are whole cache lines."""
    size = array.itemsize
    return array.size * size >= LARGE_OUTPUT and columns * size % LINE == 0 and address_or_null(array) % LINE == 0


@inline_function
def add(a, b):
    """For map_arrays, as are the next two."""
    return (a + b,)


@inline_function
def times(a, b):
    return (a * b,)


@inline_function
def add_times(a, b, c):
    return (a + b * c,)
