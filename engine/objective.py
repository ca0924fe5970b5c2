"""Features to the tripartite loss: who counts at which level, and which negatives they meet."""

import dataclasses

import torch
import torch.distributed as dist

from kernels import tripartite_loss


def level_mask(present_eyes, one_eye):
    """Turn present_eyes (2, B) bool into the levels' mask (3, B) bool.

    one_eye: "skip" keeps a patient with one photograph out of the patient level, "duplicate" keeps
    the patient in (the model lets the eye stand in for its fellow).
    """
    left, right = present_eyes
    patient = left & right if one_eye == "skip" else left | right
    return torch.stack([left, right, patient])


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The recipe's loss settings, applied to one micro-batch of model outputs.

    With global negatives the columns are every rank's and the value is the global batch's; with
    local ones each rank's micro-batch stands alone, as the official code trains.
    """

    negatives: str
    same_report: str
    backend: str
    one_eye: str
    workspace_bytes: int | None
    group: object

    @classmethod
    def from_config(cls, config):
        """Build from a recipe; call after torch.distributed is set up."""
        several = dist.is_initialized() and dist.get_world_size() > 1
        mib = config.loss.workspace_mib
        return cls(
            negatives=config.loss.negatives,
            same_report=config.loss.same_report,
            backend=config.loss.backend,
            one_eye=config.data.one_eye,
            workspace_bytes=None if mib is None else mib * 2**20,
            group=dist.group.WORLD if several and config.loss.negatives == "global" else None,
        )

    def __call__(self, image, text, scale, batch):
        """Return the loss (`total`, `levels` (3,)) of image, text (3, B, D) and scale (3,)."""
        return tripartite_loss(
            image,
            text,
            scale,
            present=level_mask(batch.present_eyes, self.one_eye),
            report_id=batch.report_id,
            same_report=self.same_report,
            group=self.group,
            backend=self.backend,
            workspace_bytes=self.workspace_bytes,
        )
