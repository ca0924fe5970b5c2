"""The text encoder: BERT as in RoBERTa-wwm-ext, without a pooler; the [CLS] state is read.

Post-LayerNorm blocks with erf-GELU and dropout. The last block computes the [CLS] row alone after
its keys and values. Shapes: B reports, T tokens (0 = padding), W width.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from engine.attention import attention

LAYER_NORM_EPS = 1e-12
TOKEN_TYPES = 2


class Block(nn.Module):
    """One post-LayerNorm BERT block."""

    def __init__(self, config, attention_backend):
        super().__init__()
        self.heads = config.heads
        self.attention_backend = attention_backend
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.intermediate),
            nn.GELU(),
            nn.Linear(config.intermediate, config.width),
        )
        self.norm2 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, mask, queries=None):
        """Map (B, T, W) to (B, Q, W), all rows or the first; mask (B, T) bool, True = token."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(2)
        rate = self.dropout.p if self.training else 0.0
        mixed = attention(
            query[:, :queries],
            key,
            value,
            mask=mask,
            dropout=rate,
            backend=self.attention_backend,
        )
        x = self.norm1(x[:, :queries] + self.dropout(self.out(mixed.flatten(2))))
        return self.norm2(x + self.dropout(self.mlp(x)))


class TextTransformer(nn.Module):
    """Token ids to the [CLS] state."""

    def __init__(self, config, attention_backend, checkpoint_activations):
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.words = nn.Embedding(config.vocabulary_size, config.width)
        self.positions = nn.Embedding(config.max_positions, config.width)
        # a plain parameter: ZeRO-3 gathers a module's weights only when the module itself is called
        self.token_types = nn.Parameter(torch.empty(TOKEN_TYPES, config.width))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, attention_backend) for _ in range(config.layers))
        self.reset_parameters(config.initializer_range)

    def reset_parameters(self, deviation):
        """Draw every matrix and table from N(0, deviation), as BERT does."""
        nn.init.normal_(self.token_types, std=deviation)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens):
        """Map (B, T) int64 token ids, 0 = padding, to (B, W) states of the first token."""
        mask = tokens != 0
        if tokens.device.type == "cpu":
            # columns of padding alone; on a GPU asking for the longest report would be a sync
            tokens, mask = (part[:, : int(mask.sum(1).max())] for part in (tokens, mask))
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        # every report is one segment: token type 0
        x = self.words(tokens) + self.positions(positions) + self.token_types[0]
        x = self.dropout(self.norm(x))
        for number, block in enumerate(self.blocks, start=1):
            queries = 1 if number == len(self.blocks) else None
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, queries, use_reentrant=False)
            else:
                x = block(x, mask, queries)
        return x[:, 0]
