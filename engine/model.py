"""DualEncoder: the RET-CLIP network (arXiv:2405.14137), three image heads, three text heads.

Both eyes pass the shared image encoder as one batch of 2B photographs. Shapes: B patients, D the
shared space; levels are always left, right, patient.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from dataload.batch import pack_reports
from engine.config import ModelConfig
from engine.text import TextTransformer
from engine.vision import VisionTransformer

LEVELS = ("left", "right", "patient")


class TextHead(nn.Sequential):
    """Two-layer MLP from the [CLS] state to one level of the shared space."""

    def __init__(self, width, embed_dim):
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embed_dim))


class DualEncoder(nn.Module):
    """Both encoders, the heads of the three levels and their logit scales.

    `config.text.vocabulary_size` must be set. `logit_scale` (3,) holds logarithms.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        dim = config.embed_dim
        # auto is settled by engine/attention_choice.py on a GPU; elsewhere torch chooses
        kernel = "sdpa" if config.attention == "auto" else config.attention
        self.visual = VisionTransformer(
            config.vision, config.image_size, dim, kernel, config.recompute
        )
        self.text = TextTransformer(config.text, kernel, config.recompute)
        self.image_heads = nn.ModuleDict(
            {
                "left": nn.Linear(dim, dim, bias=False),
                "right": nn.Linear(dim, dim, bias=False),
                "patient": nn.Linear(2 * dim, dim, bias=False),
            }
        )
        self.text_heads = nn.ModuleDict(
            {level: TextHead(config.text.width, dim) for level in LEVELS}
        )
        # one dimension: DeepSpeed cannot broadcast a 0-dimensional parameter
        self.logit_scale = nn.Parameter(torch.full((3,), math.log(config.logit_scale)))

    def encode_image(self, left, right, present=None):
        """Photographs to unit features (3, B, D).

        left, right: (B, 3, H, W) normalised; present: (2, B) bool, which eyes were photographed. An
        eye that is missing is replaced by its fellow at the patient level; its own level then holds
        a placeholder's feature that the caller leaves out.
        """
        return image_features(self.visual, self.image_heads, left, right, present)

    def encode_text(self, reports):
        """Reports to unit features (3, B, D).

        reports: token ids (B, T) int64, 0 = padding at the end, or PackedReports of dataload.batch,
        which spares a GPU the question how long they are.
        """
        if isinstance(reports, torch.Tensor):
            tokens = reports.cpu()
            lengths = (tokens != 0).sum(1).clamp(min=1)
            reports = pack_reports(tokens, lengths).to(reports.device)
        state = self.text(reports)
        features = torch.stack([self.text_heads[level](state) for level in LEVELS])
        return F.normalize(features.float(), dim=-1)

    def forward(self, batch):
        """Return image (3, B, D), text (3, B, D) and the scales (3,), exponentiated.

        Training always calls this one: ZeRO-3 gathers parameters in the hooks of forward.
        """
        image = self.encode_image(batch.left, batch.right, batch.present_eyes)
        return image, self.encode_text(batch.packed), self.logit_scale.float().exp()


def image_features(visual, heads, left, right, present=None):
    """DualEncoder.encode_image of an image encoder and its heads alone, which exports hold."""
    count = left.shape[0]
    eyes = visual(torch.cat([left, right]))
    # not chunk: a graph's number of pieces would depend on the batch
    left, right = eyes[:count], eyes[count:]
    fellow_left, fellow_right = left, right
    if present is not None:
        has_left, has_right = present[0, :, None], present[1, :, None]
        fellow_left = torch.where(has_left, left, right)
        fellow_right = torch.where(has_right, right, left)
    features = torch.stack(
        [
            heads["left"](left),
            heads["right"](right),
            heads["patient"](torch.cat([fellow_left, fellow_right], dim=-1)),
        ]
    )
    return F.normalize(features.float(), dim=-1)
