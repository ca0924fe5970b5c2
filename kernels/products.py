"""Matrix products of half precision operands with a result in fp32, written where it is wanted.

cuBLAS adds up in fp32 and torch has overloads that keep it so (with an fp32 summand since 2.9). A
CPU has none for these types: there the operands are widened, which the interpreter's tests need and
nothing else.
"""

import torch

_mm = torch.ops.aten.mm.dtype_out
_addmm = torch.ops.aten.addmm.dtype_out


def write_product(result, left, right):
    """Write left @ right into `result`, fp32; left (M, C) and right (C, N) fp16 or bf16."""
    if result.is_cuda:
        _mm(left, right, torch.float32, out=result)
    else:
        torch.mm(left.float(), right.float(), out=result)


def add_product(result, left, right):
    """Add left @ right to `result`, fp32, in place; left (M, C) and right (C, N) fp16 or bf16."""
    if result.is_cuda:
        _addmm(result, left, right, torch.float32, out=result)
    else:
        result.addmm_(left.float(), right.float())
