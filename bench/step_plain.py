"""The same network and loss as anybody would write them in plain PyTorch, to measure against.

Reports are padded, every row passes the last block, attention is torch's own choice, logits are
materialised, AdamW is torch's default; nothing is compiled. It shares no code with engine/, and its
parameters have the names of DualEncoder's, so that a strict load gives both the same weights.

Shapes: B patients, T tokens, W width, D the shared space; levels are left, right, patient.
"""

import torch
import torch.nn.functional as F
from torch import nn

LEVELS = ("left", "right", "patient")


def attend(x, projection, heads, mask=None, dropout=0.0):
    """Multi-head self-attention of x (B, T, W); mask (B, 1, 1, T) bool says who is looked at."""
    qkv = projection(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(*qkv, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x):
        """Apply element by element."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """The layers of a transformer block; `hidden` is the width inside its MLP."""

    def __init__(self, width, heads, hidden, activation, eps):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))


class ImageBlock(Block):
    """Normalises before each part, as vision transformers do."""

    def forward(self, x):
        """Map (B, T, W) to (B, T, W)."""
        x = x + self.out(attend(self.norm1(x), self.qkv, self.heads))
        return x + self.mlp(self.norm2(x))


class ReportBlock(Block):
    """Normalises after each part, as BERT does, with dropout before."""

    def __init__(self, *sizes, dropout):
        super().__init__(*sizes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):
        """Map (B, T, W) to (B, T, W)."""
        rate = self.dropout.p if self.training else 0.0
        mixed = self.out(attend(x, self.qkv, self.heads, mask, rate))
        x = self.norm1(x + self.dropout(mixed))
        return self.norm2(x + self.dropout(self.mlp(x)))


class ImageEncoder(nn.Module):
    """A vision transformer over (B, 3, S, S) photographs."""

    def __init__(self, config):
        super().__init__()
        vision, width = config.vision, config.vision.width
        self.pool = vision.pool
        self.stem = _stem(vision)
        patches = (config.image_size // vision.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(1 + patches, width))
        self.norm_pre, self.norm_post = nn.LayerNorm(width), nn.LayerNorm(width)
        activation = QuickGELU() if vision.activation == "quick_gelu" else nn.GELU()
        sizes = (width, vision.heads, vision.mlp_width, activation, 1e-5)
        self.blocks = nn.Sequential(*(ImageBlock(*sizes) for _ in range(vision.layers)))
        self.projection = nn.Linear(width, config.embed_dim, bias=False)

    def forward(self, images):
        """Return (B, D)."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.blocks(self.norm_pre(x + self.positions.to(x.dtype)))
        x = self.norm_post(x[:, 0] if self.pool == "class" else x[:, 1:].mean(1))
        return self.projection(x)


def _stem(vision):
    width, patch = vision.width, vision.patch_size
    if vision.stem == "patch":
        return nn.Conv2d(3, width, patch, stride=patch, bias=False)
    layers, channels, halvings = [], 3, patch.bit_length() - 1
    for left in range(halvings, 0, -1):
        wider = max(24, width // 2**left)
        layers += [nn.Conv2d(channels, wider, 3, 2, 1, bias=False), nn.BatchNorm2d(wider)]
        layers += [nn.ReLU()]
        channels = wider
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


class ReportEncoder(nn.Module):
    """BERT without a pooler over (B, T) padded token ids."""

    def __init__(self, config):
        super().__init__()
        text, width = config.text, config.text.width
        self.words = nn.Embedding(text.vocabulary_size, width)
        self.positions = nn.Embedding(text.max_positions, width)
        self.token_types = nn.Parameter(torch.zeros(2, width))
        self.norm, self.dropout = nn.LayerNorm(width, eps=1e-12), nn.Dropout(text.dropout)
        sizes = (width, text.heads, text.intermediate, nn.GELU(), 1e-12)
        self.blocks = nn.ModuleList(
            ReportBlock(*sizes, dropout=text.dropout) for _ in range(text.layers)
        )

    def forward(self, tokens):
        """Return the first token's state (B, W)."""
        mask = tokens != 0
        # an absent patient's report has no token
        mask[:, 0] = True
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.words(tokens) + self.positions(places) + self.token_types[0]
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return x[:, 0]


class PlainEncoder(nn.Module):
    """Both encoders and the heads; `config` is a ModelConfig. ValueError for patches left out."""

    def __init__(self, config):
        super().__init__()
        if config.vision.mask_ratio:
            raise ValueError("plain leaves no patches out: set model.vision.mask_ratio=0")
        dim, width = config.embed_dim, config.text.width
        self.visual, self.text = ImageEncoder(config), ReportEncoder(config)
        inputs = {"left": dim, "right": dim, "patient": 2 * dim}
        self.image_heads = nn.ModuleDict(
            {level: nn.Linear(inputs[level], dim, bias=False) for level in LEVELS}
        )
        self.text_heads = nn.ModuleDict(
            {
                level: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
                for level in LEVELS
            }
        )
        self.logit_scale = nn.Parameter(torch.zeros(3))

    def encode_image(self, left, right, present=None):
        """Return (3, B, D) unit features; present (2, B) bool where some eyes are missing."""
        left, right = self.visual(torch.cat([left, right])).chunk(2)
        both = [left, right]
        if present is not None:
            has_left, has_right = present[:, :, None]
            both = [torch.where(has_left, left, right), torch.where(has_right, right, left)]
        inputs = {"left": left, "right": right, "patient": torch.cat(both, dim=-1)}
        found = [self.image_heads[level](inputs[level]) for level in LEVELS]
        return F.normalize(torch.stack(found).float(), dim=-1)

    def encode_text(self, tokens):
        """Return (3, B, D) unit features."""
        state = self.text(tokens)
        found = torch.stack([self.text_heads[level](state) for level in LEVELS])
        return F.normalize(found.float(), dim=-1)


def plain_loss(image, text, scale, present=None, left_out=None):
    """The tripartite loss of image, text (3, B, D) and scale (3,), by torch's cross-entropy.

    present (3, B) bool: whose terms count; left_out (3, B, B) bool: pairs that are no negatives,
    never a patient's own.
    """
    own = torch.arange(image.shape[1], device=image.device)
    total = 0
    for level in range(len(image)):
        logits = scale[level] * image[level] @ text[level].T
        if left_out is not None:
            logits = logits.masked_fill(left_out[level], float("-inf"))
        terms = F.cross_entropy(logits, own, reduction="none")
        terms = (terms + F.cross_entropy(logits.T, own, reduction="none")) / 2
        weights = torch.ones_like(terms) if present is None else present[level].float()
        total = total + (terms * weights).sum() / weights.sum().clamp(min=1)
    return total


def masks(batch, loss, one_eye):
    """Return (present, left_out) of a Batch for plain_loss under the recipe's `loss` section."""
    left, right = batch.present_eyes
    present = torch.stack([left, right, left & right if one_eye == "skip" else left | right])
    left_out = ~(present[:, :, None] & present[:, None, :])
    if loss.same_report == "ignore":
        left_out = left_out | (batch.report_id[:, None] == batch.report_id)
    own = torch.eye(len(batch.index), dtype=torch.bool, device=batch.index.device)
    return present, left_out & ~own
