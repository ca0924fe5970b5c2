"""Exchanges between ranks that the loss needs: gather columns, add up sums, return gradients.

Every rank holds B rows; the columns are the N = W * B rows of all ranks in rank order. `Ranks`
hides whether there is a group at all: without one (or with a group of one) each exchange returns
its argument, so callers have one code path. All ranks must make the same calls in the same order,
with the same shapes.

Shapes: B patients in the local batch, W ranks, N = B * W.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist


def _bytes(tensor):
    """A flat view as bytes (of a copy if not contiguous): gloo moves neither bool nor bfloat16."""
    return tensor.contiguous().view(-1).view(torch.uint8)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks that share a global batch: `group`, which holds this rank, or None for it alone."""

    group: object = None

    @property
    def size(self):
        """Number of ranks W."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self):
        """This rank's place in the group, 0 .. W - 1."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def gather(self, tensor):
        """Return (W * B, ...): the (B, ...) of all ranks in rank order; any dtype, no gradient."""
        if self.size == 1:
            return tensor
        everyone = tensor.new_empty(self.size * tensor.shape[0], *tensor.shape[1:])
        self.start_gather(everyone, tensor).wait()
        return everyone

    def start_gather(self, result, tensor):
        """Begin to fill contiguous `result` (W * B, ...) with the (B, ...) of all ranks.

        Returns a handle: `result` may be read and `tensor` changed after its wait().
        """
        # torch 2.13 renamed the collective; 2.11 has the old name only
        collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return collective(_bytes(result), _bytes(tensor), group=self.group, async_op=True)

    def start_rotation(self, tensor):
        """Begin to send `tensor` to the next rank, and to receive the previous one's.

        Returns the tensor received and handles to wait() for before it is read.
        """
        received = torch.empty_like(tensor)
        next_rank, previous_rank = (
            dist.get_global_rank(self.group, (self.rank + step) % self.size) for step in (1, -1)
        )
        exchange = [
            dist.P2POp(dist.isend, _bytes(tensor), next_rank, self.group),
            dist.P2POp(dist.irecv, _bytes(received), previous_rank, self.group),
        ]
        return received, dist.batch_isend_irecv(exchange)

    def reduce_scatter(self, tensor):
        """Return (B, ...): this rank's part of the sum over ranks of (W * B, ...); no gradient."""
        if self.size == 1:
            return tensor
        collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        mine = tensor.new_empty(tensor.shape[0] // self.size, *tensor.shape[1:])
        collective(mine, tensor.contiguous(), group=self.group)
        return mine

    def sum(self, tensor):
        """Return the sum of `tensor` over ranks, equal on every rank; changes its argument."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM, group=self.group)
        return tensor

    def maximum(self, tensor):
        """Return the elementwise maximum of `tensor` over ranks; changes its argument."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, ranks):
        ctx.ranks = ranks
        return ranks.gather(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return _ReduceScatter.apply(gradient, ctx.ranks), None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, ranks):
        ctx.ranks = ranks
        return ranks.reduce_scatter(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return _Gather.apply(gradient, ctx.ranks), None


def gather_with_gradient(tensor, ranks):
    """Return (W * B, ...) of all ranks; the gradient of (B, ...) is the sum of all ranks' parts.

    When each rank backpropagates the same global loss, that sum is W times its gradient: averaging
    parameter gradients over ranks, as DDP and DeepSpeed do, then leaves exactly the gradient of the
    loss.
    """
    return tensor if ranks.size == 1 else _Gather.apply(tensor, ranks)
