"""Query, key and value from one matrix, with the queries of chosen rows alone where that suffices.

A module of its own: ZeRO-3 gathers weights when the module that owns them is called.
"""

import torch.nn.functional as F
from torch import nn


class FusedProjection(nn.Linear):
    """W features to query, key and value of H heads, D = W / H features each."""

    def __init__(self, width, heads):
        super().__init__(width, 3 * width)
        self.heads = heads

    def forward(self, x, asking=None):
        """Map x (..., W) to query, key, value, each (..., H, D).

        asking (..., W): the rows that ask, where not all do; query then has their shape.
        """
        if asking is None:
            return super().forward(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        width = self.in_features
        bias = self.bias
        query = F.linear(asking, self.weight[:width], bias[:width])
        both = F.linear(x, self.weight[width:], bias[width:])
        key, value = both.unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return query.unflatten(-1, (self.heads, -1)), key, value
