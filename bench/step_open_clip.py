"""open_clip's towers and loss on the same task, with the settings that make them fastest.

Both eyes pass as one batch, the reports once, padded to a multiple of 16 as its length bucketing
does; bf16 autocast, fused AdamW, cuDNN's attention where torch has it, and the whole step compiled.
The text tower is its own at BERT's size, both ways and without a mask, which is its fastest.

Shapes: B patients, T tokens, D the shared space.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.baselines import by_level
from bench.step_torch import TorchTrainer, adamw
from engine.model import LEVELS

# --text-pad-multiple
MULTIPLE = 16
# in this order, where one can serve
ATTENTION = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


class Tripartite(nn.Module):
    """Two towers and the heads of the three levels; `width` is what the text tower returns."""

    def __init__(self, visual, text, dim, width, logit_scale):
        super().__init__()
        self.visual, self.text = visual, text
        inputs = {"left": dim, "right": dim, "patient": 2 * dim}
        self.image_heads = nn.ModuleList(
            nn.Linear(inputs[level], dim, bias=False) for level in LEVELS
        )
        self.text_heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim)) for _ in LEVELS
        )
        self.logit_scale = nn.Parameter(torch.full((len(LEVELS),), logit_scale).log())

    def forward(self, left, right, tokens):
        """Return image (3, B, D), text (3, B, D) and scale (3,)."""
        left, right = self.visual(torch.cat([left, right])).chunk(2)
        eyes = (left, right, torch.cat([left, right], dim=-1))
        image = torch.stack([head(eye) for head, eye in zip(self.image_heads, eyes, strict=True)])
        state = self.text(tokens)
        text = torch.stack([head(state) for head in self.text_heads])
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1), self.logit_scale.exp()


class OpenClipTrainer(TorchTrainer):
    """Steps the towers of the installed open_clip; ValueError for a recipe it has no towers for."""

    def __init__(self, task):
        from open_clip.loss import ClipLoss

        config = task.config
        model = _build(config).to(task.device)
        cuda = task.device.type == "cuda"
        optimizer = adamw(model, config.optimizer, fused=cuda)
        super().__init__(task, model, optimizer, widths=13)
        self._loss = by_level(ClipLoss())
        self._call, self._whole = model, self._eager_step
        if cuda:
            # as its --torchcompile-mode; the search takes minutes
            mode = None if task.quick else "max-autotune-no-cudagraphs"
            self.facts |= {"compiled": True, "compile_mode": mode or "default"}
            # --torchcompile-strategy step, and task where a batch passes in pieces
            self._whole = torch.compile(self._eager_step, mode=mode)
            self._call = torch.compile(model, mode=mode)

    def train(self, batches):
        """Make an optimiser step of each batch; returns the loss of the last."""
        with sdpa_kernel(list(ATTENTION), set_priority=True):
            return super().train(batches)

    def step(self, batch):
        """Make one optimiser step and return its loss."""
        if self.facts["micro_batches"] > 1:
            return super().step(batch)
        self.optimizer.zero_grad()
        total = self._whole(batch.left, batch.right, _tokens(batch))
        self.clamp()
        self.phases.mark("unsplit")
        return total

    def embed(self, batch):
        """Return features and scales; the towers are compiled as one."""
        with self.task.autocast():
            outputs = self._call(batch.left, batch.right, _tokens(batch))
        self.phases.mark("unsplit")
        return outputs

    def loss(self, image, text, scale, batch):
        """Return the loss."""
        with self.task.autocast():
            return self._loss(image, text, scale)

    def _eager_step(self, left, right, tokens):
        with self.task.autocast():
            total = self._loss(*self.model(left, right, tokens))
        total.backward()
        clip = self.task.config.optimizer.clip_norm
        if clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        return total.detach()


def _build(config):
    from open_clip.transformer import TextTransformer, VisionTransformer

    model, vision, text = config.model, config.model.vision, config.model.text
    if vision.stem != "patch" or vision.pool != "class" or vision.mask_ratio:
        raise ValueError("its tower has a patch projection and a class token, the recipe has not")
    visual = VisionTransformer(
        image_size=model.image_size,
        patch_size=vision.patch_size,
        width=vision.width,
        layers=vision.layers,
        heads=vision.heads,
        mlp_ratio=vision.mlp_width / vision.width,
        output_dim=model.embed_dim,
    )
    reports = TextTransformer(
        context_length=-(-config.data.context_length // MULTIPLE) * MULTIPLE,
        vocab_size=text.vocabulary_size,
        width=text.width,
        heads=text.heads,
        layers=text.layers,
        mlp_ratio=text.intermediate / text.width,
        no_causal_mask=True,
        pool_type="first",
        proj_type="none",
    )
    return Tripartite(visual, reports, model.embed_dim, text.width, model.logit_scale)


def _tokens(batch):
    """Tokens (B, T) as far as the longest report, T a multiple of MULTIPLE."""
    longest = -(-batch.packed.longest // MULTIPLE) * MULTIPLE
    tokens = batch.tokens[:, :longest]
    return F.pad(tokens, (0, longest - tokens.shape[1]))
