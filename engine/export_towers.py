"""Both towers as graphs can hold them: no packing, no branch on a size, the same mathematics.

Training packs reports end to end, which depends on the data; here they stay padded and attention
is masked instead, which sums the same terms. Each is a plain twin of DualEncoder's own path, and a
test holds them equal.

Shapes: B patients, L tokens of the longest report, D the shared space, S an image's side.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from engine.model import LEVELS, DualEncoder, image_features


def plain_copy(model):
    """Return a float32 copy of a DualEncoder on the CPU, in eval mode, with torch's attention."""
    config = dataclasses.replace(model.config, attention="sdpa", recompute="none")
    copy = DualEncoder(config)
    copy.load_state_dict(model.state_dict())
    return copy.float().eval()


class ImageTower(nn.Module):
    """Photographs to unit features of the three levels."""

    def __init__(self, model):
        super().__init__()
        self.visual, self.heads = model.visual, model.image_heads

    def forward(self, left, right, present):
        """Map left, right (B, 3, S, S) and present (2, B) bool to (3, B, D) unit rows.

        A missing eye is stood in for by its fellow at the patient level; its own level then holds
        a placeholder.
        """
        return image_features(self.visual, self.heads, left, right, present)


class TextTower(nn.Module):
    """Padded token ids to unit features of the three levels."""

    def __init__(self, model):
        super().__init__()
        self.text, self.heads = model.text, model.text_heads

    def forward(self, tokens):
        """Map tokens (B, L) int64, 0 = padding at the end, to (3, B, D) unit rows."""
        text = self.text
        place = torch.arange(tokens.shape[1], device=tokens.device)
        # a report of padding alone counts as one token, as in DualEncoder
        lengths = (tokens != 0).sum(1).clamp(min=1)
        mask = (place < lengths[:, None])[:, None, None, :]
        x = text.norm(text.words(tokens) + text.positions(place) + text.token_types[0])
        for block in text.blocks:
            x = self._block(block, x, mask, first_only=block is text.blocks[-1])
        state = x[:, 0]
        features = torch.stack([self.heads[level](state) for level in LEVELS])
        return F.normalize(features, dim=-1)

    def _block(self, block, x, mask, first_only):
        asking = x[:, :1] if first_only else None
        query, key, value = (part.transpose(1, 2) for part in block.qkv(x, asking))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x if asking is None else asking
        x = block.norm1(x + block.out(mixed.transpose(1, 2).flatten(2)))
        return block.norm2(x + block.mlp(x))


def example_images(config, patients=3):
    """Return (left, right, present) of random photographs, with one-eyed patients among them."""
    generator = torch.Generator().manual_seed(0)
    side = config.image_size
    left, right = torch.randn(2, patients, 3, side, side, generator=generator)
    present = torch.ones(2, patients, dtype=torch.bool)
    present[0, 1::3] = present[1, 2::3] = False
    return left, right, present


def example_tokens(config, length, patients=3):
    """Return (B, L) int64 random token ids of reports of several lengths."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, config.text.vocabulary_size, (patients, length), generator=generator)
    for number in range(1, patients):
        tokens[number, max(length // (number + 1), 1) :] = 0
    return tokens
