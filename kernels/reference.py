"""The definition of the tripartite loss in plain PyTorch: O(N^2) memory, any derivative, readable.

For one level with image rows x_i, text rows y_j and scale s, the logits are z_ij = s <x_i, y_j>.
Row i asks which of the columns it may see is its own; column j asks the same of the rows:

    row_i    = log sum_{j in A(i)} exp z_ij - sum_j t_ij z_ij
    column_j = log sum_{i in A(j)} exp z_ij - sum_i t_ij z_ij
    level    = sum_i (row_i + column_i) / (2 n),   i over the n present patients

A leaves out absent patients and, for same_report="ignore", other patients with the same report. The
target t is the identity, and for "positive" 1 / c over the c present patients of a report. With one
level and nobody absent this is CLIP's loss (arXiv:2103.00020, figure 3); RET-CLIP
(arXiv:2405.14137) sums three of them.

Shapes: K levels, N patients, D features.
"""

import torch


def _allowed_and_target(present_N, report_N, same_report, dtype):
    """Which pairs enter the denominators (N, N) bool, and the target distribution (N, N)."""
    own_NN = torch.eye(len(present_N), dtype=torch.bool, device=present_N.device)
    # an absent patient sees itself alone, so that its unused terms stay finite
    pairs_NN = (present_N[:, None] & present_N[None, :]) | own_NN
    if same_report == "negative":
        return pairs_NN, own_NN.to(dtype)
    same_NN = (report_N[:, None] == report_N[None, :]) & pairs_NN
    if same_report == "ignore":
        return pairs_NN & (~same_NN | own_NN), own_NN.to(dtype)
    return pairs_NN, same_NN.to(dtype) / same_NN.sum(1, keepdim=True)


def _level(image_ND, text_ND, scale, present_N, report_N, same_report):
    image_ND = torch.where(present_N[:, None], image_ND, 0)
    text_ND = torch.where(present_N[:, None], text_ND, 0)
    logits_NN = scale * (image_ND @ text_ND.T)
    allowed_NN, target_NN = _allowed_and_target(present_N, report_N, same_report, logits_NN.dtype)
    seen_NN = logits_NN.masked_fill(~allowed_NN, -torch.inf)
    aim_NN = target_NN * logits_NN
    rows_N = seen_NN.logsumexp(1) - aim_NN.sum(1)
    columns_N = seen_NN.logsumexp(0) - aim_NN.sum(0)
    total = torch.where(present_N, rows_N + columns_N, 0).sum()
    return total / (2 * present_N.sum().clamp(min=1))


def reference_levels(
    image, text, logit_scale, *, present=None, report_id=None, same_report="negative"
):
    """Return the loss of each level, (K,), in float64 for float64 features and else in float32.

    `image` and `text` are (K, N, D), `logit_scale` (K,), `present` (K, N) bool, `report_id` (N,)
    int64, the whole global batch; `same_report` is "negative", "ignore" or "positive". Rows of
    absent patients may hold anything.
    """
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    if present is None:
        present = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
    with torch.autocast(image.device.type, enabled=False):
        image, text, logit_scale = (part.to(dtype) for part in (image, text, logit_scale))
        levels = [
            _level(*level, report_id, same_report)
            for level in zip(image, text, logit_scale, present, strict=True)
        ]
        return torch.stack(levels)
