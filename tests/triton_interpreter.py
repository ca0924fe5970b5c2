"""Triton's interpreter made to round like a GPU: bf16 to nearest even, exp2 flushed to zero.

Unmended it cuts the low bits off when it stores bf16 and keeps subnormal exponentials that a GPU's
ex2.approx.ftz turns into zeros, so it would pass kernels that a GPU breaks. `mend()` is called once
by conftest.py where there is no GPU; it switches the interpreter on, before Triton is imported.
"""

import os

import numpy as np


def to_bfloat16(values):
    """Return the bits, uint16, of float32 values rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> 16) & 1
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def flushed(values):
    """Return values with subnormal float32 numbers replaced by zero."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


def mend():
    """Switch Triton's interpreter on and correct its rounding; Triton must not be imported yet."""
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast = builder.cast_impl

    def cast_impl(self, source, target):
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.float32, tl.bfloat16):
            return handle(to_bfloat16(source.data), tl.bfloat16)
        # of bf16 nothing else is right but loads, stores and this
        assert tl.bfloat16 not in kinds or kinds == (tl.bfloat16, tl.float32)
        return cast(self, source, target)

    def create_exp2(self, argument):
        with np.errstate(over="ignore"):
            return handle(flushed(np.exp2(argument.data)), argument.dtype.scalar)

    def create_log2(self, argument):
        with np.errstate(divide="ignore"):
            return handle(np.log2(argument.data), argument.dtype.scalar)

    builder.cast_impl = cast_impl
    builder.create_log2 = create_log2
    builder.create_exp2 = create_exp2
