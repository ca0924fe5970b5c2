"""The fused loss as two operators of torch.library: autograd and torch.compile see them whole.

No mathematics: forward and backward are in fused.py. As registered operators they need no tracing,
so `torch.compile(fullgraph=True)` takes them as they are, and a second derivative, which nobody has
written, is an error instead of a wrong number.

Shapes: K levels, B patients in the local batch, N patients of all ranks, D features.
"""

import torch
import torch.distributed as dist

from kernels import fused
from kernels.contrastive_features import ROW_PADDING, padded
from kernels.contrastive_plan import WORKSPACE, make_plan
from kernels.distributed import Ranks
from kernels.tiles import Pairs
from kernels.tuning import choose

_FIELDS = ("row_log", "column_log", "own_weight", "share", "flags")


def _ranks(group):
    # an operator takes no process group, but its name
    return Ranks(dist.distributed_c10d._resolve_process_group(group) if group else None)


def _plan(image, ranks, same_report, workspace_bytes, gradient, choice):
    levels, size, width = image.shape
    return make_plan(
        levels,
        size,
        ranks.size,
        width,
        choice=choice,
        same_report=same_report,
        gradient=gradient,
        workspace_bytes=workspace_bytes,
    )


def _call(image, text, logit_scale, present, report_id, options):
    same_report, group, workspace_bytes, gradient = options
    ranks, choice = _ranks(group), choose(image.device)
    pairs = Pairs(
        present_KN=present,
        report_N=report_id,
        same_report=same_report,
        first_row=image.shape[1] * ranks.rank,
    )
    plan = _plan(image, ranks, same_report, workspace_bytes, gradient, choice)
    return fused.FusedCall(
        image, text, logit_scale, pairs=pairs, ranks=ranks, plan=plan, choice=choice
    )


def _or_empty(tensor, like):
    return like.new_empty(0) if tensor is None else tensor


def _or_none(tensor):
    return tensor if tensor.numel() else None


@torch.library.custom_op("retclip::contrastive_forward", mutates_args=())
def contrastive_forward(
    image: torch.Tensor,
    text: torch.Tensor,
    logit_scale: torch.Tensor,
    present: torch.Tensor | None,
    report_id: torch.Tensor | None,
    same_report: str,
    group: str,
    workspace_bytes: int,
    gradient: bool,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    """Levels (K,), the five fields of fused.Statistics, stored exponentials; empty for None."""
    options = same_report, group, workspace_bytes, gradient
    with torch.autocast(image.device.type, enabled=False):
        call = _call(image, text, logit_scale, present, report_id, options)
        levels, found, stored = fused.forward(call)
    fields = [_or_empty(getattr(found, name), image) for name in _FIELDS]
    return levels, *fields, _or_empty(stored, image)


@contrastive_forward.register_fake
def _(image, text, scale, present, report_id, same_report, group, workspace_bytes, gradient):
    levels, size, _ = image.shape
    ranks, choice = _ranks(group), choose(image.device)
    plan = _plan(image, ranks, same_report, workspace_bytes, gradient, choice)
    everyone = size * ranks.size

    def wide(*shape):
        return image.new_empty(shape, dtype=torch.float32)

    share = wide(levels, size) if same_report == "positive" else image.new_empty(0)
    stored = image.new_empty(0)
    if plan.store:
        kept = levels, padded(size, ROW_PADDING), padded(everyone, ROW_PADDING)
        stored = image.new_empty(kept, dtype=torch.bfloat16)
    flags = image.new_empty(levels, dtype=torch.int32)
    logs = wide(levels, size), wide(levels, everyone)
    return wide(levels), *logs, wide(levels, size), share, flags, stored


@torch.library.custom_op("retclip::contrastive_backward", mutates_args=())
def contrastive_backward(
    upstream: torch.Tensor,
    image: torch.Tensor,
    text: torch.Tensor,
    logit_scale: torch.Tensor,
    present: torch.Tensor | None,
    report_id: torch.Tensor | None,
    row_log: torch.Tensor,
    column_log: torch.Tensor,
    own_weight: torch.Tensor,
    share: torch.Tensor,
    flags: torch.Tensor,
    stored: torch.Tensor,
    same_report: str,
    group: str,
    workspace_bytes: int,
    gradient: bool,
    needs: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of image, text and logit_scale; empty where `needs` asks for none."""
    found = fused.Statistics(
        row_log=row_log,
        column_log=column_log,
        own_weight=own_weight,
        share=_or_none(share),
        flags=flags,
    )
    options = same_report, group, workspace_bytes, gradient
    with torch.autocast(image.device.type, enabled=False):
        call = _call(image, text, logit_scale, present, report_id, options)
        gradients = fused.backward(call, upstream, found, _or_none(stored), needs)
    return tuple(_or_empty(part, image) for part in gradients)


@contrastive_backward.register_fake
def _(upstream, image, text, logit_scale, *others):
    inputs = image, text, logit_scale
    return tuple(
        part.new_empty(part.shape) if wanted else image.new_empty(0)
        for part, wanted in zip(inputs, others[-1], strict=True)
    )


def _save(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    *tensors, ctx.same_report, ctx.group, ctx.workspace_bytes, ctx.gradient = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx, upstream, *_):
    if upstream is None:
        return (None,) * 9
    options = ctx.same_report, ctx.group, ctx.workspace_bytes, ctx.gradient
    needs = list(ctx.needs_input_grad[:3])
    gradients = contrastive_backward(upstream, *ctx.saved_tensors, *options, needs)
    wanted = (part if need else None for part, need in zip(gradients, needs, strict=True))
    return *wanted, *(None,) * 6


def _refuse(ctx, *_):
    raise RuntimeError(
        'tripartite_loss has no second derivative in backend "triton"; "reference" has'
    )


contrastive_forward.register_autograd(_differentiate, setup_context=_save)
contrastive_backward.register_autograd(_refuse)


def fused_levels(
    image,
    text,
    logit_scale,
    *,
    present=None,
    report_id=None,
    same_report="negative",
    ranks=None,
    workspace_bytes=None,
):
    """Return each level's loss of the global batch, (K,), float32.

    Arguments are those of chunked.chunked_levels; features are float32, bfloat16 or float16 on a
    CUDA device, or on the CPU under Triton's interpreter.
    """
    ranks = ranks or Ranks()
    inputs = image, text, logit_scale
    gradient = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
    group = "" if ranks.size == 1 else ranks.group.group_name
    workspace = WORKSPACE if workspace_bytes is None else workspace_bytes
    levels, *_ = contrastive_forward(
        *inputs, present, report_id, same_report, group, workspace, gradient
    )
    return levels
