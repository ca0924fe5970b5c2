"""The image encoder: CLIP's vision transformer, shared by both eyes.

Pre-LayerNorm blocks with QuickGELU, a class token whose last state is normalised and projected.
Only that token is read, so the last block computes queries, projections and MLP for it alone: the
same mathematics, 1/layers less work. Shapes: N images, T = 1 + patches tokens, W width.
"""

import torch
from torch import nn

from engine.attention import KERNELS, attention
from engine.fused_projection import FusedProjection
from engine.partitioned import whole
from engine.recompute import run_block


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the GELU approximation of OpenAI's CLIP."""

    def forward(self, x):
        """Apply element by element; any shape."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """One pre-LayerNorm transformer block with an MLP four times as wide."""

    def __init__(self, width, heads, hidden, activation):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = FusedProjection(width, heads)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))

    def forward(self, x, kernel, first_only=False):
        """Map (N, T, W) to (N, T, W), or to (N, 1, W) for the first token alone."""
        normal = self.norm1(x)
        query, key, value = self.qkv(normal, normal[:, :1] if first_only else None)
        mixed = attention(query, key, value, kernel=kernel)
        x = (x[:, :1] if first_only else x) + self.out(mixed.flatten(2))
        return x + self.mlp(self.norm2(x))


class PatchProjection(nn.Conv2d):
    """Patches to rows: a convolution whose stride is its kernel, computed as one matrix product.

    The same sums; libraries choose poor kernels for such convolutions, on a CPU above all.
    """

    def __init__(self, width, patch_size):
        super().__init__(3, width, patch_size, stride=patch_size, bias=False)

    def forward(self, images):
        """Map (N, 3, H, W) to (N, patches, width), patches row by row."""
        patch = self.stride[0]
        tiled = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        # N, rows, columns, then a patch as the weight has it: colour, height, width
        patches = tiled.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return nn.functional.linear(patches, self.weight.flatten(1))


class ConvStem(nn.Sequential):
    """Convolutions from photographs to rows, colours innermost in memory: a third faster."""

    def forward(self, images):
        """Map (N, 3, H, W) to (N, patches, width), patches row by row."""
        maps = super().forward(images.contiguous(memory_format=torch.channels_last))
        return maps.flatten(2).transpose(1, 2)


def conv_stem(width, patch_size):
    """Return strided 3x3 convolutions from (N, 3, H, W) to (N, H/patch * W/patch, width).

    A convolutional start learns small lesions from far fewer photographs than one large patch
    projection does (Xiao et al., "Early convolutions help transformers see better", 2021). Batch
    normalisation, as there, tells photographs apart from the first step on: they look so alike that
    per-photograph normalisation leaves features with a cosine of 0.99 between patients, and the
    contrastive loss nothing to climb. Its statistics are each rank's own.
    """
    halvings = patch_size.bit_length() - 1
    channels = [3] + [max(24, width >> (halvings - i)) for i in range(halvings)]
    layers = []
    for before, after in zip(channels, channels[1:], strict=False):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return ConvStem(*layers, nn.Conv2d(channels[-1], width, 1))


class VisionTransformer(nn.Module):
    """Photographs to features in the shared space, before the per-level heads and normalisation.

    `kernel` is the attention kernel, one of KERNELS.
    """

    def __init__(self, config, image_size, embed_dim, kernel, recompute):
        super().__init__()
        assert kernel in KERNELS
        width, patch = config.width, config.patch_size
        self.kernel = kernel
        self.recompute = recompute
        self.mask_ratio = config.mask_ratio
        self.pool = config.pool
        if config.stem == "conv":
            self.stem = conv_stem(width, patch)
        else:
            self.stem = PatchProjection(width, patch)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(1 + (image_size // patch) ** 2, width))
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_width, _activation(config))
            for _ in range(config.layers)
        )
        self.norm_post = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self):
        """Draw CLIP's initialisation (Radford et al., 2021), set by width and depth."""
        width = self.class_embedding.numel()
        nn.init.normal_(self.class_embedding, std=width**-0.5)
        nn.init.normal_(self.positions, std=width**-0.5)
        with whole(self.projection):
            nn.init.normal_(self.projection.weight, std=width**-0.5)
        residual = (2 * len(self.blocks)) ** -0.5
        for block in self.blocks:
            with whole(block):
                nn.init.normal_(block.qkv.weight, std=width**-0.5)
                nn.init.normal_(block.out.weight, std=width**-0.5 * residual)
                nn.init.normal_(block.mlp[0].weight, std=(2 * width) ** -0.5)
                nn.init.normal_(block.mlp[2].weight, std=width**-0.5 * residual)
                for linear in (block.qkv, block.out, block.mlp[0], block.mlp[2]):
                    nn.init.zeros_(linear.bias)

    def forward(self, images):
        """Map (N, 3, H, W) normalised photographs to (N, embed_dim) features, not normalised."""
        x = self.stem(images)
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], dim=1) + self.positions.to(x.dtype)
        if self.training and self.mask_ratio:
            x = drop_patches(x, self.mask_ratio)
        x = self.norm_pre(x)
        for block in self.blocks:
            first_only = self.pool == "class" and block is self.blocks[-1]
            x = run_block(block, self.recompute, x, self.kernel, first_only)
        state = x[:, 0] if self.pool == "class" else x[:, 1:].mean(1)
        return self.projection(self.norm_post(state))


def _activation(config):
    return QuickGELU() if config.activation == "quick_gelu" else nn.GELU()


def drop_patches(x, ratio):
    """Keep the class token and a random 1 - `ratio` of the patches of each photograph.

    x (N, T, W) with positions added; every photograph keeps the same number. (Li et al., FLIP,
    arXiv:2212.00794.)
    """
    count, tokens, width = x.shape
    kept = max(round((tokens - 1) * (1 - ratio)), 1)
    order = torch.rand(count, tokens - 1, device=x.device).argsort(dim=1)[:, :kept]
    patches = x[:, 1:].gather(1, order[:, :, None].expand(-1, -1, width))
    return torch.cat([x[:, :1], patches], dim=1)
