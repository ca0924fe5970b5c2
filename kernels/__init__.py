"""The tripartite contrastive loss: its definition, its fast forms, its distributed form."""

from kernels.neighbours import warn_of_neighbour
from kernels.tripartite import TripartiteLoss, tripartite_loss

__all__ = ["TripartiteLoss", "tripartite_loss"]

warn_of_neighbour()
