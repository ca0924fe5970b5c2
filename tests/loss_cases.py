"""Features, masks, tolerances and an oracle for the tests of the loss."""

import math

import numpy as np
import torch

SAME_REPORT = ("negative", "ignore", "positive")
CASES = ("random", "converged", "clustered", "shifted", "cone", "opposed", "mislabelled", "equal")


def error_budget(dtype):
    """Relative error that a result of `dtype` may have, computed in float32 (or float64) inside."""
    if dtype == torch.float64:
        return 1e-11
    # half precision results are rounded once, at the end
    return 1e-5 + (0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2)


def relative_error(found, expected):
    """L2 norm of the difference over that of `expected`, in float64; absolute where that is 0."""
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / (expected.norm() if expected.any() else 1)).item()


def unit(features):
    """Rows scaled to length 1."""
    return features / features.norm(dim=-1, keepdim=True)


def features(case, levels, size, width, *, seed=0):
    """Two float64 tensors (levels, size, width) of unit rows: image and text."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    image, text = noise(levels, size, width), noise(levels, size, width)
    if case == "converged":
        text = unit(image) + 1.3 * unit(text)
    elif case == "clustered":
        centre = noise(levels, 3, width)[:, torch.arange(size) % 3]
        image, text = centre + 0.01 * image, centre + 0.01 * text
    elif case in ("shifted", "cone"):
        # cosines of -1 / (1 + spread^2) on average: -0.05 and -0.5
        spread = 19**0.5 if case == "shifted" else 1.0
        axis = unit(noise(width))
        image, text = axis + spread * unit(image), -axis + spread * unit(text)
    elif case == "opposed":
        # own pairs at cosine -1, some others at 1
        image[:, 1::2] = -image[:, : size - size % 2 : 2]
        text = -image
    elif case == "mislabelled":
        text = unit(image) + 1.5 * unit(text)
        text[:, -1] = -image[:, -1]
    elif case == "equal":
        image[:], text[:] = image[:, :1], image[:, :1]
    return unit(image), unit(text)


def masks(levels, size, *, seed=0, chance=0.7):
    """`present` (levels, size) bool and `report_id` (size,) int64 with repeats."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(levels, size, generator=generator) < chance
    report_id = torch.randint(-(2**62), 2**62, (max(1, size // 2),), generator=generator)
    return present, report_id[torch.randint(len(report_id), (size,), generator=generator)]


def loss_and_gradients(loss, inputs, upstream, **options):
    """Levels, and the gradients of fresh leaves with these values under `upstream` (K,)."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    levels = loss(*leaves, **options).levels
    return levels.detach(), torch.autograd.grad((levels * upstream.to(levels)).sum(), leaves)


def oracle(image, text, logit_scale, present, report_id, same_report):
    """Levels by loops over Python floats, straight from the definition of the loss."""
    image, text = np.asarray(image), np.asarray(text)
    levels = []
    for level in range(len(image)):
        patients = [i for i in range(image.shape[1]) if present[level, i]]
        terms = [
            _cross_entropy(
                a[level], b[level], float(logit_scale[level]), i, patients, report_id, same_report
            )
            for i in patients
            for a, b in ((image, text), (text, image))
        ]
        levels.append(sum(terms) / 2 / len(patients) if patients else 0.0)
    return levels


def _cross_entropy(queries, keys, scale, i, patients, report_id, same_report):
    """-log probability of patient i's own key, or the mean of that over keys of its report."""
    logit = {j: scale * float(queries[i] @ keys[j]) for j in patients}
    alike = [j for j in patients if report_id[j] == report_id[i]]
    if same_report == "ignore":
        logit = {j: value for j, value in logit.items() if j == i or j not in alike}
    targets = alike if same_report == "positive" else [i]
    top = max(logit.values())
    normaliser = top + math.log(sum(math.exp(value - top) for value in logit.values()))
    return sum(normaliser - logit[j] for j in targets) / len(targets)
