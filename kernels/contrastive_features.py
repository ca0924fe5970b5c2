"""Between features and tiles: fp16 operands and exact own pairs going in, gradients coming out.

Operands are padded with zero rows and zero features, so that tiles and matrix products need no
masks; absent patients become zero rows, whatever they held. All arithmetic is fp32. These kernels
move O(B D) bytes, next to the O(B^2 D) work of the tiles.

Shapes: K levels, B patients, D features, padded to R rows and DEPTH features.
"""

import torch
import triton
import triton.language as tl

# rows of operands are a multiple of the tallest and widest tile, features of the deepest step
ROW_PADDING = 256
DEPTH_PADDING = 64
_BLOCK_ELEMENTS = 8192


def padded(count, multiple):
    """Round up to a multiple."""
    return -(-count // multiple) * multiple


@triton.jit
def _row_present(present_ptr, level, patients, rows, HAS_PRESENT: tl.constexpr):
    here = rows < patients
    if HAS_PRESENT:
        here &= tl.load(present_ptr + level * patients + rows, mask=here, other=0) != 0
    return here


@triton.jit
def _load_rows(x_ptr, strides, level, rows, features, mask):
    """Rows of a feature tensor of any strides and dtype, as fp32; zero where masked."""
    stride_level, stride_row, stride_feature = strides
    place = level * stride_level + rows[:, None].to(tl.int64) * stride_row
    values = tl.load(x_ptr + place + features[None, :] * stride_feature, mask=mask, other=0.0)
    return values.to(tl.float32)


@triton.jit
def operand_kernel(
    x_ptr,
    present_ptr,
    operand_ptr,
    stride_level,
    stride_row,
    stride_feature,
    patients,
    padded_rows,
    width,
    HAS_PRESENT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Write the fp16 operand (levels, padded_rows, DEPTH) of features (levels, patients, width)."""
    level = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    features = tl.arange(0, BLOCK_DEPTH)
    here = _row_present(present_ptr, level, patients, rows, HAS_PRESENT)
    mask = here[:, None] & (features[None, :] < width)
    strides = (stride_level, stride_row, stride_feature)
    values = _load_rows(x_ptr, strides, level, rows, features, mask)
    place = (level * padded_rows + rows[:, None]) * DEPTH + features[None, :]
    inside = (rows[:, None] < padded_rows) & (features[None, :] < DEPTH)
    tl.store(operand_ptr + place, values.to(tl.float16), mask=inside)


@triton.jit
def own_cosine_kernel(
    image_ptr,
    text_ptr,
    present_ptr,
    cosine_ptr,
    image_level,
    image_row,
    image_feature,
    text_level,
    text_row,
    text_feature,
    patients,
    width,
    HAS_PRESENT: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Write (levels, patients) fp32 products of each patient's own image and text row."""
    level = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    features = tl.arange(0, BLOCK_DEPTH)
    here = _row_present(present_ptr, level, patients, rows, HAS_PRESENT)
    mask = here[:, None] & (features[None, :] < width)
    image_strides = (image_level, image_row, image_feature)
    image = _load_rows(image_ptr, image_strides, level, rows, features, mask)
    text_strides = (text_level, text_row, text_feature)
    text = _load_rows(text_ptr, text_strides, level, rows, features, mask)
    tl.store(cosine_ptr + level * patients + rows, tl.sum(image * text, 1), mask=rows < patients)


@triton.jit
def gradient_kernel(
    sums_ptr,
    own_ptr,
    other_ptr,
    weight_ptr,
    factor_ptr,
    present_ptr,
    gradient_ptr,
    product_ptr,
    own_level,
    own_row,
    own_feature,
    other_level,
    other_row,
    other_feature,
    patients,
    padded_rows,
    width,
    descale,
    HAS_PRESENT: tl.constexpr,
    HAS_GRADIENT: tl.constexpr,
    HAS_PRODUCT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Add the own pair to a row's sum: G_i = descale sums_i + weight_i other_i, zero if absent.

    gradient = factor G in its own dtype, (levels, patients, width); product = <own_i, G_i> fp32,
    where other_i is rounded as it was in the sums.
    """
    level = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    features = tl.arange(0, BLOCK_DEPTH)
    exists = (rows[:, None] < patients) & (features[None, :] < width)
    here = _row_present(present_ptr, level, patients, rows, HAS_PRESENT)
    mask = exists & here[:, None]
    other_strides = (other_level, other_row, other_feature)
    other = _load_rows(other_ptr, other_strides, level, rows, features, mask)
    place = (level * padded_rows + rows[:, None]) * DEPTH + features[None, :]
    sums = tl.load(sums_ptr + place, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + level * patients + rows, mask=here, other=0.0)
    total = sums * descale + weight[:, None] * other
    if HAS_PRODUCT:
        own_strides = (own_level, own_row, own_feature)
        own = _load_rows(own_ptr, own_strides, level, rows, features, mask)
        # rounded like all others of the sum: what they have in common then cancels, as in a cluster
        rounded = other.to(tl.float16).to(tl.float32)
        inner = tl.sum(own * (sums * descale + weight[:, None] * rounded), 1)
        tl.store(product_ptr + level * patients + rows, inner, mask=rows < patients)
    if HAS_GRADIENT:
        target = (level * patients + rows[:, None]) * width + features[None, :]
        value = total * tl.load(factor_ptr + level)
        tl.store(gradient_ptr + target, value.to(gradient_ptr.dtype.element_ty), mask=exists)


def _blocks(width):
    """All of a row's features, and as many rows as make a block of moderate size."""
    depth = triton.next_power_of_2(width)
    return {"BLOCK_DEPTH": depth, "BLOCK_ROWS": min(_BLOCK_ELEMENTS // depth, 64)}


def _grid(rows, levels, blocks):
    return triton.cdiv(rows, blocks["BLOCK_ROWS"]), levels


def operand(features_KBD, present_KB, *, rows=None):
    """Return the fp16 operand (K, R, DEPTH) of features (K, B, D) fp32, bf16 or fp16, any strides.

    present_KB: (K, B) uint8 or None; rows: R, by default B rounded up to ROW_PADDING.
    """
    levels, patients, width = features_KBD.shape
    rows = padded(patients, ROW_PADDING) if rows is None else rows
    depth = padded(width, DEPTH_PADDING)
    blocks = _blocks(depth)
    made = features_KBD.new_empty((levels, rows, depth), dtype=torch.float16)
    operand_kernel[_grid(rows, levels, blocks)](
        features_KBD,
        present_KB,
        made,
        *features_KBD.stride(),
        patients,
        rows,
        width,
        HAS_PRESENT=present_KB is not None,
        DEPTH=depth,
        **blocks,
    )
    return made


def own_cosines(image_KBD, text_KBD, present_KB):
    """Return (K, B) fp32 cosines of every patient's own pair, 0 for an absent one."""
    levels, patients, width = image_KBD.shape
    blocks = _blocks(width)
    cosines = image_KBD.new_empty((levels, patients), dtype=torch.float32)
    own_cosine_kernel[_grid(patients, levels, blocks)](
        image_KBD,
        text_KBD,
        present_KB,
        cosines,
        *image_KBD.stride(),
        *text_KBD.stride(),
        patients,
        width,
        HAS_PRESENT=present_KB is not None,
        **blocks,
    )
    return cosines


def finish_gradient(
    sums, own_KBD, other_KBD, weight_KB, factor_K, present_KB, *, descale, gradient, product
):
    """Write `gradient` (K, B, D) and `product` (K, B), either of which may be None; see the kernel.

    sums: (K, R, DEPTH) fp32 sums of weighted rows of the other side, times 1 / descale.
    """
    levels, patients, width = own_KBD.shape
    blocks = _blocks(width)
    gradient_kernel[_grid(patients, levels, blocks)](
        sums,
        own_KBD,
        other_KBD,
        weight_KB,
        factor_K,
        present_KB,
        gradient,
        product,
        *own_KBD.stride(),
        *other_KBD.stride(),
        patients,
        sums.shape[1],
        width,
        descale,
        HAS_PRESENT=present_KB is not None,
        HAS_GRADIENT=gradient is not None,
        HAS_PRODUCT=product is not None,
        DEPTH=sums.shape[2],
        **blocks,
    )
