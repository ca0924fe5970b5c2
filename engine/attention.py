"""Multi-head attention behind two functions, and the kernels that may carry it out.

`attention` serves sequences of one length (photographs), `packed_attention` sequences laid end to
end (reports). Every kernel computes the same: which one does is the recipe's `model.attention`, or
engine/attention_choice.py's measurement on the device at hand.

Shapes: B sequences, T tokens of the longest (Q of them ask), N tokens of all, H heads, D features
a head.
"""

import functools
import importlib.util
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# kernels of torch's scaled_dot_product_attention by the recipe's names; sdpa lets torch choose
SDPA = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}
KERNELS = ("sdpa", *SDPA, "flash-attn")
# of these, the ones that take sequences end to end; for the others reports are padded
VARIABLE_LENGTH = ("flash", "flash-attn")


@functools.cache
def flash_attn_installed():
    """Return whether the optional flash-attn package can be imported."""
    return importlib.util.find_spec("flash_attn") is not None


def check_kernel(name, device, dtype):
    """Raise ValueError where the kernel `name` cannot serve this device and dtype.

    flash-attn needs its package, and with "flash" and "cudnn" a CUDA device and half precision.
    """
    if name == "flash-attn" and not flash_attn_installed():
        raise ValueError("model.attention: flash-attn is not installed; install it or use auto")
    if name in ("flash", "cudnn", "flash-attn"):
        half = dtype in (torch.float16, torch.bfloat16)
        if torch.device(device).type != "cuda" or not half:
            raise ValueError(
                f"model.attention: {name} needs a GPU and bf16 or fp16 precision; use auto or sdpa"
            )


def attention(query, key, value, *, dropout=0.0, kernel="sdpa"):
    """Scaled dot-product attention over sequences of one length.

    query (B, Q, H, D), key and value (B, T, H, D); dropout: probability for attention weights, 0
    outside training; kernel: one of KERNELS. Returns (B, Q, H, D).
    """
    if kernel == "flash-attn":
        from flash_attn import flash_attn_func

        return flash_attn_func(query, key, value, dropout_p=dropout)
    return _sdpa(query, key, value, None, dropout, kernel)


def _sdpa(query, key, value, mask, dropout, kernel):
    with sdpa_kernel(SDPA[kernel]) if kernel in SDPA else nullcontext():
        result = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            dropout_p=dropout,
        )
    return result.transpose(1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Where B sequences lie among N tokens end to end; made once for all blocks of an encoder.

    `offsets` (B + 1,) int32, `first` (B,) int64 the first token of each, `place` (N,) int64 within
    its sequence. For kernels that want one length, T: `padded` (N,) int64 is each token's place
    among B T, and `mask` (B, 1, 1, T) says where there is one; None where the kernel needs neither.
    """

    offsets: torch.Tensor
    first: torch.Tensor
    place: torch.Tensor
    longest: int
    padded: torch.Tensor | None
    mask: torch.Tensor | None

    @classmethod
    def of(cls, offsets, count, longest, kernel):
        """Describe B sequences with `count` tokens together, the longest of `longest`.

        offsets (B + 1,) int32 on the tokens' device; no number is asked back from it.
        """
        starts, lengths = offsets[:-1].long(), offsets.diff().long()
        row = torch.arange(len(starts), device=offsets.device)
        row = torch.repeat_interleave(row, lengths, output_size=count)
        place = torch.arange(count, device=offsets.device) - starts[row]
        padded = mask = None
        if kernel not in VARIABLE_LENGTH:
            padded = row * longest + place
            mask = torch.arange(longest, device=offsets.device) < lengths[:, None]
            mask = mask[:, None, None, :]
        return cls(
            offsets=offsets, first=starts, place=place, longest=longest, padded=padded, mask=mask
        )

    def pad(self, tokens):
        """Spread (N, H, D) over (B, T, H, D), zeros elsewhere."""
        count = len(self.first)
        spread = tokens.new_zeros(count * self.longest, *tokens.shape[1:])
        spread = spread.index_copy(0, self.padded, tokens)
        return spread.unflatten(0, (count, self.longest))

    def unpad(self, sequences):
        """Take (N, H, D) out of (B, T, H, D)."""
        return sequences.flatten(0, 1).index_select(0, self.padded)


def packed_attention(query, key, value, packing, *, dropout=0.0, kernel="sdpa"):
    """Scaled dot-product attention within each of B sequences that lie end to end.

    key and value (N, H, D); query the same, or (B, H, D) where the first token of each alone asks.
    Returns the query's shape.
    """
    first_only = len(query) != len(key)
    if kernel not in VARIABLE_LENGTH:
        asking = query[:, None] if first_only else packing.pad(query)
        padded = packing.pad(key), packing.pad(value)
        mixed = _sdpa(asking, *padded, packing.mask, dropout, kernel)
        return mixed[:, 0] if first_only else packing.unpad(mixed)
    asking, most = packing.offsets, packing.longest
    if first_only:
        most = 1
        asking = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
    ends, longest = (asking, packing.offsets), (most, packing.longest)
    if kernel == "flash-attn":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(query, key, value, *ends, *longest, dropout_p=dropout)
    # what torch's public function for variable lengths calls, which takes no dropout
    return torch.ops.aten._flash_attention_forward(
        query, key, value, *ends, *longest, dropout, False, False
    )[0]
