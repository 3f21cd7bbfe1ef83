"""Sixteen float32 lanes as a Numba value, so that kernels vectorise because they say so.

Left to itself LLVM's loop vectoriser gives up on masked loops with many reductions, or vectorises them with a scalar
remainder that runs most of the time. A value of type `f32x16` is one LLVM vector: a zmm register with AVX-512, two
ymm registers with AVX2, four with SSE or NEON. Arrays are 1-D, C-contiguous, float32.

Caution when changing this file: Numba's cache looks at the file of the kernel only, so touch that one as well.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16
_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_VEC = ir.VectorType(_F32, LANES)
_INT = ir.VectorType(_I32, LANES)
_BIT = ir.VectorType(ir.IntType(1), LANES)


class _VectorType(types.Type):
    def __init__(self, name: str, llvm: ir.Type):
        super().__init__(name=name)
        self.llvm = llvm


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, numba_type.llvm)


f32x16 = _VectorType("f32x16", _VEC)
mask16 = _VectorType("mask16", _BIT)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VEC, [value] * LANES)


def _llvm(builder, name: str, result, *args):
    """Call the LLVM intrinsic `name` on `args`."""
    signature = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def _pointer(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VEC.as_pointer())


@intrinsic
def load(typing, array, index):
    """The 16 numbers from `array[index]` on; no bounds are checked."""

    def generate(context, builder, signature, args):
        return builder.load(_pointer(context, builder, signature.args[0], *args), align=4)

    return f32x16(array, types.intp), generate


@intrinsic
def store(typing, array, index, value):
    """Write 16 numbers to `array[index]` and on; no bounds are checked."""

    def generate(context, builder, signature, args):
        builder.store(args[2], _pointer(context, builder, signature.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x16), generate


@intrinsic
def splat(typing, number):
    """The same number in every lane."""

    def generate(context, builder, signature, args):
        undefined = ir.Constant(_VEC, ir.Undefined)
        first = builder.insert_element(undefined, args[0], ir.Constant(_I32, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(_INT, None))

    return f32x16(types.float32), generate


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, rounded once."""

    def generate(context, builder, signature, args):
        return _llvm(builder, "llvm.fma.v16f32", _VEC, *args)

    return f32x16(f32x16, f32x16, f32x16), generate


@intrinsic
def absolute(typing, a):
    """|a|."""

    def generate(context, builder, signature, args):
        return _llvm(builder, "llvm.fabs.v16f32", _VEC, *args)

    return f32x16(f32x16), generate


@intrinsic
def sqrt(typing, a):
    """Square root; NaN below zero."""

    def generate(context, builder, signature, args):
        return _llvm(builder, "llvm.sqrt.v16f32", _VEC, *args)

    return f32x16(f32x16), generate


@intrinsic
def ceil(typing, a):
    """The next whole number up."""

    def generate(context, builder, signature, args):
        return _llvm(builder, "llvm.ceil.v16f32", _VEC, *args)

    return f32x16(f32x16), generate


@intrinsic
def floor(typing, a):
    """The next whole number down."""

    def generate(context, builder, signature, args):
        return _llvm(builder, "llvm.floor.v16f32", _VEC, *args)

    return f32x16(f32x16), generate


@intrinsic
def minimum(typing, a, b):
    """The smaller of the two; b where a is NaN."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return f32x16(f32x16, f32x16), generate


@intrinsic
def maximum(typing, a, b):
    """The larger of the two; b where a is NaN."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return f32x16(f32x16, f32x16), generate


@intrinsic
def select(typing, mask, a, b):
    """a where the mask is set, else b."""

    def generate(context, builder, signature, args):
        return builder.select(*args)

    return f32x16(mask16, f32x16, f32x16), generate


@intrinsic
def any_lane(typing, mask):
    """Whether a lane of the mask is set."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(16))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(16), 0))

    return types.boolean(mask16), generate


@intrinsic
def total(typing, a):
    """The sum over the lanes, pairwise."""

    def generate(context, builder, signature, args):
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    value, value, ir.Constant(ir.VectorType(_I32, width), [start + i for i in range(width)])
                )
                for start in (0, width)
            ]
            value = builder.fadd(*halves)
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return types.float32(f32x16), generate


# 2^f on [-1/2, 1/2], highest power first: least squares of the relative error, reweighted until equal-ripple (7e-8).
_EXP2 = (1.32764556e-3, 9.67554121e-3, 5.55071332e-2, 2.40221197e-1, 6.93146967e-1, 1.00000007)


@intrinsic
def exp2(typing, a):
    """2^a for -126 <= a <= 127, else nonsense; relative error below 3e-7."""

    def generate(context, builder, signature, args):
        whole = _llvm(builder, "llvm.rint.v16f32", _VEC, args[0])
        fraction = builder.fsub(args[0], whole)
        value = _constant(_EXP2[0])
        for coefficient in _EXP2[1:]:
            value = _llvm(builder, "llvm.fma.v16f32", _VEC, value, fraction, _constant(coefficient))
        # a power of two goes straight into the exponent bits
        exponent = builder.shl(builder.fptosi(whole, _INT), ir.Constant(_INT, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(value, _INT), exponent), _VEC)

    return f32x16(f32x16), generate


@intrinsic
def log2(typing, a):
    """log2 of normal positive numbers, else nonsense; absolute error below 2e-7 next to one.

    The mantissa m in [0.707, 1.414) goes through log(m) = 2 artanh((m - 1) / (m + 1)), whose series ends early.
    """

    def generate(context, builder, signature, args):
        def every(value):
            return ir.Constant(_INT, [value] * LANES)

        bits = builder.bitcast(args[0], _INT)
        exponent = builder.ashr(builder.sub(bits, every(0x3F3504F3)), every(23))
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, every(23))), _VEC)
        s = builder.fdiv(builder.fsub(mantissa, _constant(1.0)), builder.fadd(mantissa, _constant(1.0)))
        square = builder.fmul(s, s)
        series = _constant(2 / 9 / 0.6931471805599453)
        for odd in (7, 5, 3, 1):
            series = _llvm(builder, "llvm.fma.v16f32", _VEC, series, square, _constant(2 / odd / 0.6931471805599453))
        return _llvm(builder, "llvm.fma.v16f32", _VEC, series, s, builder.sitofp(exponent, _VEC))

    return f32x16(f32x16), generate


def _operator(symbol, operands, result, instruction) -> None:
    """Give `symbol` a meaning for two `operands`, typed and lowered directly: an overload takes longer to compile."""

    @type_callable(symbol)
    def of_type(context):
        def typer(a, b):
            return result if a is operands and b is operands else None

        return typer

    @lower_builtin(symbol, operands, operands)
    def lower(context, builder, signature, args):
        return instruction(builder, *args)


for _symbol, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, f32x16, f32x16, lambda builder, a, b, name=_name: getattr(builder, name)(a, b))
for _symbol, _sign in ((operator.gt, ">"), (operator.ge, ">="), (operator.lt, "<"), (operator.le, "<=")):
    _operator(_symbol, f32x16, mask16, lambda builder, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b))
_operator(operator.and_, mask16, mask16, lambda builder, a, b: builder.and_(a, b))


@intrinsic
def take_number(typing, counter):
    """`counter[0]`, incremented atomically: how threads share out work."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate
