"""Reductions for health.py and layer_norm.py, as LLVM vector code: largest magnitude and number of zeros, sums about the first value,
weighted sums, squares of a change, statistics of a layer's output.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .intrinsics import vector_bits

_I32, _I64, _DOUBLE = ir.IntType(32), ir.IntType(64), ir.DoubleType()
# vectors that go side by side in a flat loop, whose sums and counts would wait for each other
SIDE_BY_SIDE = 4


class Lanes:
    """Loops over some of the machine's vectors at once; the last ones are masked."""

    def __init__(self, context, builder, dtype, vectors=SIDE_BY_SIDE):
        self.builder, self.bits, self.count = builder, dtype.bitwidth, vectors * vector_bits() // dtype.bitwidth
        self.scalar = context.get_value_type(dtype)
        self.vector, self.wide = ir.VectorType(self.scalar, self.count), ir.VectorType(_DOUBLE, self.count)
        self.integer = ir.IntType(dtype.bitwidth)
        self.integers = ir.VectorType(self.integer, self.count)

    def call(self, name, result, *args):
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def splat(self, value):
        one = ir.VectorType(value.type, self.count)
        first = self.builder.insert_element(ir.Constant(one, ir.Undefined), value, _I32(0))
        return self.builder.shuffle_vector(
            first, ir.Constant(one, ir.Undefined), ir.Constant(ir.VectorType(_I32, self.count), [0] * self.count)
        )

    def loop(self, count, sources, state, body):
        """state after body(values of each source, their addresses, mask, state) for all vectors. mask is None for whole vectors."""
        builder = self.builder
        whole = builder.and_(count, _I64(-self.count))
        before, loop, last = builder.block, builder.append_basic_block("whole"), builder.append_basic_block("last")
        builder.cbranch(builder.icmp_signed("<", _I64(0), whole), loop, last)
        builder.position_at_end(loop)
        at, phis = builder.phi(_I64), [builder.phi(value.type) for value in state]
        places = [self.at(source, at) for source in sources]
        again = body([self.load(place) for place in places], places, None, phis)
        following, end = builder.add(at, _I64(self.count)), builder.block
        builder.cbranch(builder.icmp_signed("<", following, whole), loop, last)
        for phi, first, value in zip([at, *phis], [_I64(0), *state], [following, *again], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, end)

        builder.position_at_end(last)
        joined = [builder.phi(value.type) for value in state]
        for phi, first, value in zip(joined, state, again, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, end)
        left = builder.trunc(builder.sub(count, whole), _I32)
        index = ir.Constant(ir.VectorType(_I32, self.count), list(range(self.count)))
        mask = builder.icmp_signed("<", index, self.splat(left))
        places = [self.at(source, whole) for source in sources]
        return body([self.load(place, mask) for place in places], places, mask, joined)

    def at(self, source, offset):
        place = self.builder.gep(source, [offset])
        return self.builder.bitcast(place, ir.VectorType(place.type.pointee, self.count).as_pointer())

    def load(self, place, mask=None):
        vector = place.type.pointee
        if mask is None:
            value = self.builder.load(place)
            value.align = self.bits // 8
            return value
        letter = "i" if isinstance(vector.element, ir.IntType) else "f"
        zero = ir.Constant(vector, None)
        return self.call(
            f"llvm.masked.load.v{self.count}{letter}{self.bits}.p0", vector, place, _I32(self.bits // 8), mask, zero
        )

    def total(self, value):
        """The sum of a vector's values, as float64."""
        lanes = [self.builder.extract_element(value, _I32(i)) for i in range(self.count)]
        while len(lanes) > 1:
            lanes = [self.builder.fadd(a, b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
        return lanes[0] if lanes[0].type == _DOUBLE else self.builder.fpext(lanes[0], _DOUBLE)

    def reduce(self, name, value):
        """An int64 of a vector of integers."""
        reduced = self.call(f"llvm.vector.reduce.{name}.v{self.count}i{self.bits}", self.integer, value)
        return reduced if self.bits == 64 else self.builder.zext(reduced, _I64)

    def sums(self, wide, count, sources, factors):
        """Sums over all values of two products: factors(values, mask) gives the pairs that are multiplied. As float64."""
        kind, suffix = (self.wide, f"v{self.count}f64") if wide else (self.vector, f"v{self.count}f{self.bits}")

        def body(values, places, mask, totals):
            pairs = factors(values, mask)
            if wide and self.scalar != _DOUBLE:
                pairs = [[self.builder.fpext(value, self.wide) for value in pair] for pair in pairs]
            return [
                self.call(f"llvm.fma.{suffix}", kind, *pair, total) for pair, total in zip(pairs, totals, strict=True)
            ]

        zero = ir.Constant(kind, [0.0] * self.count)
        return [self.total(value) for value in self.loop(count, sources, [zero, zero], body)]


@intrinsic
def max_and_zero_count(typingctx, source, count):
    """Of `count` values: the bits of the largest magnitude, as an integer (NaN is the largest), and how many values are 0."""

    def codegen(context, builder, signature, args):
        source, count = args
        lanes = Lanes(context, builder, signature.args[0].dtype)
        zero = ir.Constant(lanes.integers, [0] * lanes.count)
        most = ir.Constant(lanes.integers, [(1 << lanes.bits - 1) - 1] * lanes.count)
        source = builder.bitcast(source, lanes.integer.as_pointer())

        def body(values, places, mask, state):
            magnitude, (largest, zeros) = builder.and_(values[0], most), state
            is_zero = builder.icmp_unsigned("==", magnitude, zero)
            if mask is not None:
                is_zero = builder.and_(is_zero, mask)
            larger = builder.icmp_unsigned(">", magnitude, largest)
            return [
                builder.select(larger, magnitude, largest),
                builder.sub(zeros, builder.sext(is_zero, lanes.integers)),
            ]

        found = lanes.loop(count, [source], [zero, zero], body)
        results = [lanes.reduce(name, value) for name, value in zip(("umax", "add"), found, strict=True)]
        return context.make_tuple(builder, signature.return_type, results)

    return types.UniTuple(types.int64, 2)(source, types.int64), codegen


@intrinsic
def value_of(typingctx, bits, like):
    """The number with these bits, as float64."""

    def codegen(context, builder, signature, args):
        dtype = signature.args[1].dtype
        value = args[0] if dtype.bitwidth == 64 else builder.trunc(args[0], _I32)
        value = builder.bitcast(value, context.get_value_type(dtype))
        return value if dtype.bitwidth == 64 else builder.fpext(value, _DOUBLE)

    return types.float64(types.int64, like), codegen


@intrinsic
def about_first(typingctx, source, count):
    """Sums in float64 of x - x[0] and of their squares, over `count` values, at least one."""

    def codegen(context, builder, signature, args):
        lanes = Lanes(context, builder, signature.args[0].dtype)
        first, one = lanes.splat(builder.load(args[0])), ir.Constant(lanes.vector, [1.0] * lanes.count)

        def factors(values, mask):
            value = builder.fsub(values[0] if mask is None else builder.select(mask, values[0], first), first)
            return [(value, one), (value, value)]

        return context.make_tuple(builder, signature.return_type, lanes.sums(True, args[1], args[:1], factors))

    return types.UniTuple(types.float64, 2)(source, types.int64), codegen


@intrinsic
def weighted_sums(typingctx, values, weights, x, start, count):
    """Sums in float64 of values[i] weights[i], and of values[i] weights[i] (x[i] - start), over `count` values."""

    def codegen(context, builder, signature, args):
        lanes = Lanes(context, builder, signature.args[0].dtype)
        start, one = lanes.splat(args[3]), ir.Constant(lanes.vector, [1.0] * lanes.count)

        def factors(values, mask):
            value = builder.fmul(values[0], values[1])
            return [(value, one), (value, builder.fsub(values[2], start))]

        return context.make_tuple(builder, signature.return_type, lanes.sums(True, args[4], args[:3], factors))

    return types.UniTuple(types.float64, 2)(values, weights, x, values.dtype, types.int64), codegen


def _change(before, after, wide):
    def codegen(context, builder, signature, args):
        lanes = Lanes(context, builder, signature.args[0].dtype)

        def factors(values, mask):
            change = builder.fsub(values[1], values[0])
            return [(change, change), (values[0], values[0])]

        return context.make_tuple(builder, signature.return_type, lanes.sums(wide, args[2], args[:2], factors))

    return types.UniTuple(types.float64, 2)(before, after, types.int64), codegen


@intrinsic
def change(typingctx, before, after, count):
    """Sums of the squares of after - before, and of before."""
    return _change(before, after, False)


@intrinsic
def change_wide(typingctx, before, after, count):
    """The same in float64."""
    return _change(before, after, True)


@intrinsic
def output_statistics(typingctx, source, rows, columns, alive, low, high, flat_low, flat_high):
    """Of values (rows, columns), at least one: sums of x - x[0] and of their squares; and how many are at low, at high or past them.

    alive: a flag of as many bits as a value for every column, up to whole vectors. All its bits are set where one value of the column is
    neither 0 nor flat.
    """

    def codegen(context, builder, signature, args):
        source, rows, columns, alive, *limits = args
        lanes = Lanes(context, builder, signature.args[0].dtype, 1)
        first = lanes.splat(builder.load(source))
        low, high, flat_low, flat_high = (lanes.splat(limit) for limit in limits)
        zero, none = ir.Constant(lanes.vector, [0.0] * lanes.count), ir.Constant(lanes.integers, [0] * lanes.count)
        alive = builder.bitcast(alive, lanes.integer.as_pointer())

        def rows_down(top, mask, flags, state, after):
            """A vector of columns, row after row; flags None: all are alive, and nobody looks for more."""
            before, row = builder.block, builder.append_basic_block("row")
            builder.branch(row)
            builder.position_at_end(row)
            starts = [_I64(0), *state, *([] if flags is None else [flags])]
            i, total, square, outside, *living = phis = [builder.phi(start.type) for start in starts]
            value = lanes.load(lanes.at(top, builder.mul(i, columns)), mask)
            past = builder.or_(builder.fcmp_ordered("<=", value, low), builder.fcmp_ordered(">=", value, high))
            if flags is not None:
                # NaN is alive
                above = builder.fcmp_unordered(">", value, flat_low)
                steep = builder.and_(above, builder.fcmp_unordered("<", value, flat_high))
                lives = builder.and_(steep, builder.fcmp_unordered("!=", value, zero))
                living = [builder.or_(living[0], builder.sext(lives, lanes.integers))]
            if mask is not None:
                past, value = builder.and_(past, mask), builder.select(mask, value, first)
            value = builder.fsub(value, first)
            again = [
                builder.add(i, _I64(1)),
                builder.fadd(total, value),
                lanes.call(f"llvm.fma.v{lanes.count}f{lanes.bits}", lanes.vector, value, value, square),
                builder.sub(outside, builder.sext(past, lanes.integers)),
                *living,
            ]
            builder.cbranch(builder.icmp_signed("<", again[0], rows), row, after)
            for phi, start, new in zip(phis, starts, again, strict=True):
                phi.add_incoming(start, before)
                phi.add_incoming(new, row)
            return row, again[1:]

        def down(_, places, mask, state):
            flags = builder.load(places[1])
            flags.align = lanes.bits // 8
            every = lanes.reduce("and", flags)
            top = builder.bitcast(places[0], lanes.scalar.as_pointer())
            some, none_left = builder.append_basic_block("some"), builder.append_basic_block("none")
            found, after = builder.append_basic_block("found"), builder.append_basic_block("after")
            all_alive = builder.icmp_unsigned("==", every, _I64(-1 if lanes.bits == 64 else (1 << lanes.bits) - 1))
            builder.cbranch(all_alive, none_left, some)
            builder.position_at_end(none_left)
            ways = [rows_down(top, mask, None, state, after)]
            builder.position_at_end(some)
            _, looked = rows_down(top, mask, flags, state, found)
            builder.position_at_end(found)
            builder.store(looked.pop(), places[1]).align = lanes.bits // 8
            builder.branch(after)
            ways.append((found, looked))
            builder.position_at_end(after)
            phis = [builder.phi(value.type) for value in state]
            for block, values in ways:
                for phi, value in zip(phis, values, strict=True):
                    phi.add_incoming(value, block)
            return phis

        total, square, outside = lanes.loop(columns, [source, alive], [zero, zero, none], down)
        results = [lanes.total(total), lanes.total(square), builder.sitofp(lanes.reduce("add", outside), _DOUBLE)]
        return context.make_tuple(builder, signature.return_type, results)

    arguments = source, types.int64, types.int64, source, low, low, low, low
    return types.UniTuple(types.float64, 3)(*arguments), codegen
