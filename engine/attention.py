"""Multi-head attention behind one function: torch's SDPA everywhere, flash-attn where installed.

Shapes: B sequences, T tokens (Q of them ask), H heads, D features a head.
"""

import functools
import importlib.util

import torch
import torch.nn.functional as F

FLASH_DTYPES = (torch.float16, torch.bfloat16)


@functools.cache
def flash_attn_installed():
    """Return whether the optional flash-attn package can be imported."""
    return importlib.util.find_spec("flash_attn") is not None


def choose_backend(requested, query, mask):
    """Return "flash" or "sdpa" for these inputs.

    flash-attn needs a CUDA device, half precision and no padding mask. "flash" where the package is
    missing raises ValueError; where these inputs rule it out (float32, a mask), SDPA serves.
    """
    if requested == "flash" and not flash_attn_installed():
        raise ValueError(
            "model.attention: flash needs the package flash-attn; install it or use auto"
        )
    fits = query.is_cuda and query.dtype in FLASH_DTYPES and mask is None
    wanted = requested == "flash" or (requested == "auto" and flash_attn_installed())
    return "flash" if wanted and fits else "sdpa"


def attention(query, key, value, *, mask=None, dropout=0.0, backend="auto"):
    """Scaled dot-product attention.

    query (B, Q, H, D), key and value (B, T, H, D); mask (B, T) bool, True = a token to attend to;
    dropout: probability for attention weights, 0 outside training. Returns (B, Q, H, D).
    """
    if choose_backend(backend, query, mask) == "flash":
        from flash_attn import flash_attn_func

        return flash_attn_func(query, key, value, dropout_p=dropout)
    mask = None if mask is None else mask[:, None, None, :]
    result = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
    )
    return result.transpose(1, 2)
