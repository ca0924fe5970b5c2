"""The public tripartite loss: checks its arguments and chooses a backend.

Levels are `left`, `right` and `patient` in RET-CLIP (arXiv:2405.14137), always in this order; any
number of levels works, one level is CLIP's loss. The definition is in reference.py; chunked.py
computes the same in bounded memory, fused.py with Triton kernels (docs/loss.md).

Shapes: K levels, B patients in the local batch, W ranks, D features.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist

from kernels.backend import resolve_backend
from kernels.chunked import chunked_levels
from kernels.distributed import Ranks, gather_with_gradient
from kernels.reference import reference_levels

SAME_REPORT = ("negative", "ignore", "positive")
FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALE_DTYPES = (torch.float32, torch.float64)


class TripartiteLoss(NamedTuple):
    """`total`, a scalar, is the sum of `levels`, (K,): float32, or float64 for such features."""

    total: torch.Tensor
    levels: torch.Tensor


def tripartite_loss(
    image,
    text,
    logit_scale,
    *,
    present=None,
    report_id=None,
    same_report="negative",
    group=None,
    backend="auto",
    workspace_bytes=None,
):
    """Return the symmetric contrastive loss of every level and their sum.

    Each level is the mean over present patients of (cross-entropy over rows + cross-entropy over
    columns) / 2; a level that nobody has is 0 and sends no gradient. Gradients flow to `image`,
    `text` and `logit_scale`.

    - `image`, `text`: (K, B, D) float32, bfloat16, float16 or float64, rows L2-normalised; D a
      multiple of 16 up to 1024.
    - `logit_scale`: (K,) float32 or float64, already exponentiated, in (0, 100].
    - `present`: (K, B) bool; False takes a patient out of a level, image row and text column alike,
      whatever they hold.
    - `report_id`: (B,) int64; equal ids are the same report. `same_report` says what such pairs
      are: "negative" like any other (the paper), "ignore" left out of the denominators, "positive"
      sharing the target evenly.
    - `group`: a torch.distributed process group. Rows are this rank's, columns every rank's; B, the
      levels and which of the optional arguments are given must be equal on all ranks, and each must
      call backward with the same upstream gradient. Every rank gets the loss of the global batch.
      Feature gradients are W times that loss's (the gradient of `logit_scale` is complete on each
      rank), so that parameter gradients averaged over ranks are exactly its gradient.
    - `backend`: "auto", "triton" (NVIDIA GPUs; fp16 products with fp32 sums, errors near 1e-3 of a
      gradient), "torch" (any device) or "reference" (the definition, O(B^2) memory). The first two
      need bounded memory and have no second derivatives: they raise RuntimeError. "auto" is
      "triton" for features on a GPU that runs it, unless they are float64, and else "torch".
    - `workspace_bytes`: bound on temporary tiles; None is 32 MiB on a CPU and 512 MiB elsewhere.
      Beyond it stand the O(B) statistics and, of one level ("triton": or of all that fit at once),
      float32 sums of gradients in half precision, gathered text with `group`, and for "triton" fp16
      copies of the features. "reference" takes what it needs.

    Returns TripartiteLoss(total, levels). Raises ValueError for a wrong shape, dtype, device or
    option, naming it. `torch.compile(fullgraph=True)` takes "triton" without `group`.
    """
    _check_features(image, text, logit_scale)
    backend = resolve_backend(backend, image)
    _check_masks(image, present, report_id, same_report)
    _check_workspace(workspace_bytes)
    ranks = _ranks(group)
    masks = _global_masks(present, report_id, same_report, ranks)
    if backend == "reference":
        image, text = (_gathered_features(part, ranks) for part in (image, text))
        levels = reference_levels(image, text, logit_scale, **masks)
    else:
        levels = _bounded(backend)(
            image, text, logit_scale, ranks=ranks, workspace_bytes=workspace_bytes, **masks
        )
    return TripartiteLoss(total=levels.sum(), levels=levels)


def _bounded(backend):
    """The function of a backend that needs bounded memory."""
    if backend == "torch":
        return chunked_levels
    # triton is imported where it is used: a machine without it has the other backends
    from kernels.contrastive import fused_levels

    return fused_levels


def _ranks(group):
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ValueError(
            f"group is {group!r}; expected a torch.distributed process group that holds this rank"
        )
    return Ranks(group)


def _global_masks(present, report_id, same_report, ranks):
    """`present` (K, W * B) and `report_id` (W * B,) of all ranks; None plays no part."""
    if present is not None:
        present = ranks.gather(present.T).T
    report_id = None if same_report == "negative" else ranks.gather(report_id)
    return {"present": present, "report_id": report_id, "same_report": same_report}


def _gathered_features(part, ranks):
    """(K, W * B, D) with gradient; widened first, so that gradients are summed in float32."""
    if ranks.size == 1:
        return part
    wide = part if part.dtype == torch.float64 else part.float()
    return gather_with_gradient(wide.transpose(0, 1), ranks).transpose(0, 1)


def _describe(value):
    if not isinstance(value, torch.Tensor):
        return repr(value)
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"


def _check_tensor(name, value, shape, dtypes, device):
    """Raise ValueError unless `value` is a tensor of that shape, dtype and device."""
    fits = isinstance(value, torch.Tensor) and value.dtype in dtypes and value.device == device
    if not fits or tuple(value.shape) != tuple(shape):
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"{name} is {_describe(value)}; expected {tuple(shape)} {names} on {device}"
        )


def _check_features(image, text, logit_scale):
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FEATURE_DTYPES)
    if not isinstance(image, torch.Tensor) or image.dtype not in FEATURE_DTYPES:
        raise ValueError(
            f"image is {_describe(image)}; expected (levels, patients, features) of {names}"
        )
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(
            f"image is {_describe(image)}; expected (levels, patients, features), none 0"
        )
    features = image.shape[2]
    if features % 16 or features > 1024:
        raise ValueError(f"image has {features} features; expected a multiple of 16 up to 1024")
    _check_tensor("text", text, image.shape, (image.dtype,), image.device)
    _check_tensor("logit_scale", logit_scale, image.shape[:1], SCALE_DTYPES, image.device)


def _check_masks(image, present, report_id, same_report):
    if present is not None:
        _check_tensor("present", present, image.shape[:2], (torch.bool,), image.device)
    if report_id is not None:
        _check_tensor("report_id", report_id, image.shape[1:2], (torch.int64,), image.device)
    if same_report not in SAME_REPORT:
        raise ValueError(
            f"same_report is {same_report!r}; expected one of {', '.join(SAME_REPORT)}"
        )
    if same_report != "negative" and report_id is None:
        raise ValueError(f'same_report="{same_report}" needs report_id, ({image.shape[1]},) int64')


def _check_workspace(workspace_bytes):
    if workspace_bytes is None:
        return
    if not isinstance(workspace_bytes, int) or workspace_bytes <= 0:
        raise ValueError(
            f"workspace_bytes is {workspace_bytes!r}; expected a number of bytes above 0, or None"
        )
