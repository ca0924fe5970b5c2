"""The optimiser's parts: schedule, parameter groups, and the clamp of the scales at every stage."""

import math

import pytest
import torch
from ranks import run_ranks

from engine import optim
from engine.config import ModelConfig, OptimizerConfig, TextConfig, VisionConfig, parse_config
from engine.model import DualEncoder

MODEL = ModelConfig(
    embed_dim=16,
    image_size=32,
    vision=VisionConfig(width=32, layers=1, heads=2),
    text=TextConfig(
        width=32, layers=1, heads=2, intermediate=64, max_positions=16, vocabulary_size=40
    ),
)
LR = 0.01
STEPS = 10
START = 4.604


def test_schedule_warms_up_and_follows_a_cosine():
    config = OptimizerConfig(lr=1.0, warmup_steps=4)
    rates = [optim.learning_rate(step, config, 12) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[8] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


@pytest.mark.parametrize("decay", ["official", "matrices"])
def test_what_decays(decay):
    model = DualEncoder(MODEL)
    config = OptimizerConfig(weight_decay=0.1, decay=decay)
    decayed, kept = optim.parameter_groups(model, config)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    held = {names[id(p)] for p in kept["params"]}
    assert len(held) + len(decayed["params"]) == len(names)
    official = decay == "official"
    assert {"logit_scale", "visual.norm_pre.weight", "text.blocks.0.qkv.bias"} <= held
    assert ("text.blocks.0.norm1.weight" in held) is not official
    assert ("visual.class_embedding" in held) is not official
    assert "visual.positions" not in held


class OnlyScales(torch.nn.Module):
    """Gradients that push every scale up, through forward as ZeRO-3 needs it."""

    def __init__(self):
        super().__init__()
        self.model = DualEncoder(MODEL)
        self.logit_scale = self.model.logit_scale
        with torch.no_grad():
            self.logit_scale.fill_(START)

    def forward(self, tokens):
        """Sum of the scales' logarithms, and a term that gives every text weight a gradient."""
        return -self.logit_scale.sum() + 0.0 * self.model.encode_text(tokens).sum()


def clamp_at_every_stage(rank, world):
    """Ten steps upwards from 4.604: the scale must stop at ln 100, in every copy."""
    from deepspeed.utils import safe_get_full_fp32_param

    from engine.world import World, deepspeed_config, import_deepspeed

    here = World(rank=rank, size=world, device=torch.device("cpu"))
    tokens = torch.randint(4, 40, (2, 6))
    for stage in range(4):
        recipe = {"batch_size": 2 * world, "steps": STEPS, "zero_stage": stage}
        config = parse_config({"training": recipe, "optimizer": {"lr": LR}})
        model = OnlyScales()
        engine, *_ = import_deepspeed().initialize(
            model=model,
            optimizer=optim.build_optimizer(model, config.optimizer),
            config=deepspeed_config(config, here),
        )
        grown = []
        for _ in range(STEPS):
            engine.backward(engine(tokens))
            engine.step()
            optim.clamp_logit_scale(engine.module.logit_scale)
            # the sum that the next forward sees, with the parameter gathered
            grown.append(-engine(tokens).item() / 3)
        assert max(grown) <= math.log(100) + 1e-6, (stage, grown)
        assert grown[-1] == pytest.approx(math.log(100)), (stage, grown)
        kept = safe_get_full_fp32_param(engine.module.logit_scale)
        kept = engine.module.logit_scale if kept is None else kept
        assert torch.allclose(kept, torch.full((3,), math.log(100))), (stage, kept)
        engine.destroy()


@pytest.mark.slow
def test_scales_are_clamped_at_every_zero_stage():
    run_ranks(clamp_at_every_stage, 2)
