"""The text encoder: BERT as in RoBERTa-wwm-ext, without a pooler; the [CLS] state is read.

Reports lie end to end without padding, so that no work is spent on it; attention alone looks at
them one by one. Post-LayerNorm blocks with erf-GELU and dropout. The last block computes the [CLS]
row alone after its keys and values. Shapes: B reports, N tokens of all, W width.
"""

import torch
from torch import nn

from engine.attention import KERNELS, Packing, packed_attention
from engine.fused_projection import FusedProjection
from engine.partitioned import whole
from engine.recompute import run_block

LAYER_NORM_EPS = 1e-12
TOKEN_TYPES = 2


class Block(nn.Module):
    """One post-LayerNorm BERT block over tokens that lie end to end."""

    def __init__(self, config):
        super().__init__()
        self.qkv = FusedProjection(config.width, config.heads)
        self.out = nn.Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.intermediate),
            nn.GELU(),
            nn.Linear(config.intermediate, config.width),
        )
        self.norm2 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, packing, kernel, first_only=False):
        """Map (N, W) to (N, W), or to (B, W) for the first token of each report alone."""
        asking = x.index_select(0, packing.first) if first_only else None
        query, key, value = self.qkv(x, asking)
        rate = self.dropout.p if self.training else 0.0
        mixed = packed_attention(query, key, value, packing, dropout=rate, kernel=kernel)
        x = x if asking is None else asking
        x = self.norm1(x + self.dropout(self.out(mixed.flatten(1))))
        return self.norm2(x + self.dropout(self.mlp(x)))


class TextTransformer(nn.Module):
    """Token ids to the [CLS] state; `kernel` is the attention kernel, one of KERNELS."""

    def __init__(self, config, kernel, recompute):
        super().__init__()
        assert kernel in KERNELS
        self.kernel = kernel
        self.recompute = recompute
        self.words = nn.Embedding(config.vocabulary_size, config.width)
        self.positions = nn.Embedding(config.max_positions, config.width)
        # a plain parameter: ZeRO-3 gathers a module's weights only when the module itself is called
        self.token_types = nn.Parameter(torch.empty(TOKEN_TYPES, config.width))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.reset_parameters(config.initializer_range)

    def reset_parameters(self, deviation):
        """Draw every matrix and table from N(0, deviation), as BERT does."""
        nn.init.normal_(self.token_types, std=deviation)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                with whole(module):
                    nn.init.normal_(module.weight, std=deviation)
                    if isinstance(module, nn.Linear):
                        nn.init.zeros_(module.bias)

    def forward(self, reports):
        """Map B reports, PackedReports of dataload.batch, to (B, W) states of the first token."""
        tokens = reports.tokens
        packing = Packing.of(reports.offsets, len(tokens), reports.longest, self.kernel)
        # every report is one segment: token type 0
        x = self.words(tokens) + self.positions(packing.place) + self.token_types[0]
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            first_only = block is self.blocks[-1]
            x = run_block(block, self.recompute, x, packing, self.kernel, first_only)
        return x
