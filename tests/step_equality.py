"""The training step under DeepSpeed against one plain PyTorch process on the same global batch.

`check_equal` runs in every rank of a process group: it trains a small dual encoder through
engine/build.py and engine/step.py, replays the same batches and dropout draws in a plain loop, and
compares all parameters.
"""

import dataclasses
import itertools

import torch
from tiny_run import RECIPE

from dataload.batch import Batch, pack_reports
from engine import build, step
from engine.config import parse_config
from engine.model import DualEncoder
from engine.objective import Objective
from engine.optim import MAX_LOG_SCALE, parameter_groups
from engine.train import seed_dropout
from engine.world import World

GLOBAL_BATCH = 8
STEPS = 5
VOCABULARY = 40
MODEL = RECIPE["model"] | {
    "text": RECIPE["model"]["text"] | {"max_positions": 16, "vocabulary_size": VOCABULARY}
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train; at a `scale_start` near 100 the clamp bites.

    `how`: "one pass", "gradcache" (two micro-batches) or "local" (two, each with its own loss).
    """

    zero_stage: int
    how: str = "one pass"
    optimizer: str = "sgd"
    clip_norm: float = 0.0
    precision: str = "fp32"
    scale_start: float = 20.0
    zero_init: bool = False
    offload: bool = False
    # every rank's; on "cuda" under NCCL
    device: str = "cpu"

    @property
    def accumulation(self):
        """How many micro-batches a rank's batch is cut into."""
        return 1 if self.how == "one pass" else 2

    @property
    def limit(self):
        """By how much a parameter may differ after STEPS."""
        if self.scale_start > 50 or self.device != "cpu":
            # gradients grow with the scale, and their rounding with them; a GPU's order of sums
            # moves with the number of rows
            return 1e-5
        return 1e-6 if self.optimizer == "sgd" else 2e-6

    @property
    def share(self):
        """By which share of its way, in the norm, a parameter may end elsewhere besides.

        In bf16 a last digit of the scale or of a sum moves activations by 2^-8 further on, at each
        step. A gradient that is wrong by a factor of two is off by half of the way.
        """
        return 1 / 8 if self.precision == "bf16" else 0.0

    @property
    def config(self):
        """The recipe of this case."""
        # a GPU's dropout depends on the kernel that draws it
        text = MODEL["text"] | ({} if self.device == "cpu" else {"dropout": 0.0})
        return parse_config(
            {
                "model": {**MODEL, "text": text, "logit_scale": self.scale_start},
                "loss": {
                    "negatives": "local" if self.how == "local" else "global",
                    "same_report": "ignore",
                },
                "optimizer": {"clip_norm": self.clip_norm, "decay": "matrices"},
                "data": {"context_length": 16, "one_eye": "duplicate"},
                "training": {
                    "batch_size": GLOBAL_BATCH,
                    "accumulation": self.accumulation,
                    "zero_stage": self.zero_stage,
                    "precision": self.precision,
                    "zero_init": self.zero_init,
                    "offload_optimizer": self.offload,
                    "compile": "off",
                    "steps": STEPS,
                },
            }
        )

    def build_optimizer(self, model, config):
        """SGD at 1e-2, or AdamW at the paper's rate; named so that DeepSpeed takes either."""
        groups = parameter_groups(model, config)
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
        return torch.optim.AdamW(groups, lr=3e-5, betas=(0.9, 0.98), eps=1e-6)


FACTORS = {
    "zero_stage": (0, 1, 2, 3),
    "world": (1, 2, 4),
    "how": ("one pass", "gradcache", "local"),
    "precision": ("fp32", "bf16"),
    "optimizer": ("sgd", "adamw"),
    "clip_norm": (0.0, 0.5),
}


def every_combination():
    """Return [(ranks, Case)] of all values of all factors."""
    rows = itertools.product(*FACTORS.values())
    return [_split_world(dict(zip(FACTORS, row, strict=True))) for row in rows]


def every_pair():
    """Return [(ranks, Case)] in which each two values of two factors meet at least once."""
    rows = [dict(zip(FACTORS, row, strict=True)) for row in itertools.product(*FACTORS.values())]
    missing = set().union(*map(_pairs, rows))
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(_pairs(row) & missing))
        chosen.append(_split_world(best))
        missing -= _pairs(best)
    return chosen


def _pairs(row):
    return set(itertools.combinations(row.items(), 2))


def _split_world(row):
    return row["world"], Case(**{name: row[name] for name in row if name != "world"})


def make_batch(number, absent=2):
    """A global batch: eyes are missing, reports repeat and vary in length, the last are absent."""
    generator = torch.Generator().manual_seed(number)
    photographs = torch.randn(2, GLOBAL_BATCH, 3, 32, 32, generator=generator)
    present = torch.ones(2, GLOBAL_BATCH, dtype=torch.bool)
    present[0, 1] = present[1, 4] = False
    index = torch.arange(GLOBAL_BATCH)
    if absent:
        present[:, -absent:] = False
        index[-absent:] = -1
    photographs[~present] = 0
    tokens = torch.randint(4, VOCABULARY, (GLOBAL_BATCH, 16), generator=generator)
    lengths = torch.randint(2, 17, (GLOBAL_BATCH,), generator=generator)
    lengths[index < 0] = 2
    tokens[torch.arange(16) >= lengths[:, None]] = 0
    return Batch(
        left=photographs[0],
        right=photographs[1],
        present_eyes=present,
        tokens=tokens,
        lengths=lengths,
        packed=pack_reports(tokens, lengths),
        report_id=torch.tensor([3, 5, 3, 7, 9, 11, 0, 0]),
        index=index,
    )


def check_cases(rank, world, cases):
    """Check several cases in the same processes; AssertionError lists all that differ."""
    wrong = []
    for case in cases:
        try:
            check_equal(rank, world, case)
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
    assert not wrong, "\n".join(wrong)


def check_equal(rank, world, case):
    """Train both ways and assert that every parameter agrees within the case's limit."""
    found, norms = through_deepspeed(rank, world, case)
    expected, expected_norms = in_plain_torch(world, case)
    # later steps start from weights whose last bits differ, which bf16 rounds apart
    tolerance = 1e-4 if case.precision == "fp32" else 5e-2
    torch.testing.assert_close(norms, expected_norms, rtol=tolerance, atol=1e-6)
    torch.manual_seed(case.config.seed)
    start = DualEncoder(case.config.model).state_dict()
    for name, value in expected.items():
        difference = (found[name] - value).abs()
        if name.endswith("qkv.bias"):
            # the bias of the keys has no gradient but rounding, which AdamW enlarges
            keys = slice(len(difference) // 3, 2 * len(difference) // 3)
            difference[keys] = 0
        off = difference.max() if case.share == 0 else difference.norm()
        limit = case.limit + case.share * (value - start[name]).norm()
        assert off <= limit, f"{name} differs by {off:.2e}, more than {limit:.2e}"


def through_deepspeed(rank, world, case):
    """Return ({name: parameter}, gradient norms) after STEPS of the engine's own step."""
    from unittest import mock

    from engine.checkpoint import consolidated_weights
    from engine.world import deepspeed_config, import_deepspeed

    device = torch.device(case.device, rank if case.device == "cuda" else None)
    here = World(rank=rank, size=world, device=device, local_size=world)
    import_deepspeed().init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)

    def with_any_optimizer(config, world):
        return deepspeed_config(config, world) | {"zero_allow_untested_optimizer": True}

    with (
        mock.patch.object(build, "deepspeed_config", with_any_optimizer),
        mock.patch.object(build.optim, "build_optimizer", case.build_optimizer),
    ):
        engine, config, _ = build.build_engine(case.config, here, None)
    objective = Objective.from_config(config)
    norms = []
    for number in range(STEPS):
        seed_dropout(config.seed, number, rank)
        mine = make_batch(number).split(world)[rank].to(device)
        result = step.train_step(engine, objective, mine, config.training.accumulation)
        norms.append(torch.as_tensor(result["grad_norm"]).float().cpu())
    weights = consolidated_weights(engine, True)
    return weights, torch.stack(norms)


def in_plain_torch(world, case):
    """Return the same of one process with torch's own loop."""
    config = case.config
    torch.manual_seed(config.seed)
    model = DualEncoder(config.model).train().to(case.device)
    optimizer = case.build_optimizer(model, config.optimizer)
    alone = dataclasses.replace(Objective.from_config(config), group=None, backend="reference")
    norms = []
    for number in range(STEPS):
        optimizer.zero_grad()
        outputs, parts = [], []
        for rank, mine in enumerate(make_batch(number).split(world)):
            seed_dropout(config.seed, number, rank)
            for part in mine.split(case.accumulation):
                part = part.to(case.device)
                with torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16"):
                    outputs.append(model(part))
                parts.append(part)
        plain_loss(alone, outputs, parts, case).backward()
        limit = case.clip_norm or float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, MAX_LOG_SCALE)
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return weights, torch.stack(norms).cpu()


def plain_loss(objective, outputs, parts, case):
    """The loss of the whole with global negatives, else the mean of each micro-batch's own."""
    if case.how == "local":
        losses = [objective(*out, part).total for out, part in zip(outputs, parts, strict=True)]
        return torch.stack(losses).mean()
    image, text = (torch.cat([out[place] for out in outputs], 1) for place in (0, 1))
    return objective(image, text, outputs[0][2], step._Whole(parts)).total
