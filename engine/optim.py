"""AdamW's parameter groups, RET-CLIP's schedule, and the clamp of the logit scales."""

import math

import torch

from engine.partitioned import whole_shape

MAX_LOG_SCALE = math.log(100)


def parameter_groups(model, config):
    """Split parameters into those that decay and those that do not.

    "matrices": every tensor of two or more dimensions decays. "official": RET-CLIP's code besides
    decays BERT's LayerNorm weights and the class embedding, whose names its filter misses.
    """
    official = config.decay == "official"
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        bert_norm = name.startswith("text.") and "norm" in name and name.endswith("weight")
        named = official and (bert_norm or name == "visual.class_embedding")
        decays = (len(whole_shape(parameter)) > 1 or named) and name != "logit_scale"
        (decayed if decays else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def build_optimizer(model, config):
    """Return torch's fused AdamW over the model's parameter groups; nothing is compiled for it."""
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.lr,
        betas=tuple(config.betas),
        eps=config.eps,
        fused=True,
    )


def learning_rate(step, config, steps):
    """Return the rate of step `step` (from 0) of `steps`: linear warm-up, then a cosine to 0.

    As in RET-CLIP: step k of W warm-up steps has rate lr (k + 1) / W.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer, rate):
    """Give every parameter group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clamp_logit_scale(parameter):
    """Keep the logarithms of the scales within [0, ln 100], in the optimiser's fp32 copy and here.

    From ZeRO stage 1 on, a step overwrites the model's tensor from that copy, so clamping the
    tensor alone does nothing; clamping the copy alone would leave the next forward one update
    above. `parameter` is the model's logit_scale under a DeepSpeed engine; all ranks call this.
    """
    from deepspeed import utils
    from deepspeed.runtime.zero import GatheredParameters

    if hasattr(parameter, "ds_id"):
        # ZeRO-3, by partition: its full setter fails where ranks do not divide the three values
        local = utils.safe_get_local_fp32_param(parameter)
        utils.safe_set_local_fp32_param(parameter, local.clamp(0.0, MAX_LOG_SCALE))
    elif (full := utils.safe_get_full_fp32_param(parameter)) is not None:
        utils.safe_set_full_fp32_param(parameter, full.clamp(0.0, MAX_LOG_SCALE))
    with GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
        parameter.clamp_(0.0, MAX_LOG_SCALE)
