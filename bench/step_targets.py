"""What is asked of the training step, and whether a run of the step benchmark shows it.

A row is one implementation at one batch size with one kind of input, "synthetic" or "shards".
"""

from bench.targets import Target

# of the first loss, relative
AGREEMENT = 1e-3


def _by_batch(rows, name, source="synthetic"):
    """The timed rows of an implementation by batch size."""
    return {
        row["batch"]: row
        for row in rows
        if row["implementation"] == name
        and row.get("input") == source
        and row.get("patients_per_s") is not None
    }


def _utilisation(rows):
    row = _by_batch(rows, "engine").get(1024)
    return row and row["mfu_gemm"]


def _least_ratio(ours, theirs, speed="patients_per_s"):
    """The least of our speeds relative to theirs, over the batch sizes of both."""
    ratios = [ours[batch][speed] / theirs[batch][speed] for batch in ours if batch in theirs]
    return min(ratios, default=None)


def _against(name, speed="patients_per_s"):
    return lambda rows: _least_ratio(_by_batch(rows, "engine"), _by_batch(rows, name), speed)


def _decoded(rows):
    return _least_ratio(_by_batch(rows, "engine", "shards"), _by_batch(rows, "engine"))


def _cached(rows):
    """The speed of 4,096 patients in micro-batches, relative to the largest batch in one pass."""
    found = _by_batch(rows, "engine")
    large = found.get(4096)
    whole = [batch for batch, row in found.items() if row["micro_batches"] == 1]
    if not whole or large is None or large["micro_batches"] == 1:
        return None
    return large["patients_per_s"] / found[max(whole)]["patients_per_s"]


def _disagreement(rows):
    offs = [
        row["first_loss_off"]
        for row in rows
        if row["implementation"] == "engine" and row.get("first_loss_off") is not None
    ]
    return max(offs, default=None)


TARGETS = (
    Target(
        says="MFU at B = 1,024, of the measured GEMM rate",
        device="cuda",
        least=0.55,
        measured=_utilisation,
    ),
    Target(
        says="decoded 512 px photographs, speed relative to synthetic input",
        device="cuda",
        least=0.97,
        measured=_decoded,
    ),
    Target(
        says="speed relative to open_clip",
        device="cuda",
        least=1.25,
        measured=_against("open_clip"),
    ),
    Target(
        says="speed relative to the official step",
        device="cuda",
        least=2.4,
        measured=_against("retclip"),
    ),
    Target(
        says="B = 4,096 by GradCache, speed relative to a batch in one pass",
        device="cuda",
        least=0.78,
        measured=_cached,
    ),
    Target(
        says="speed relative to plain PyTorch", device="cpu", least=1.0, measured=_against("plain")
    ),
    # where others use the machine, too, they disturb these the least
    Target(
        says="speed relative to plain PyTorch, the fastest turn of each",
        device="cpu",
        least=1.0,
        measured=_against("plain", "patients_per_s_best"),
    ),
    Target(says="first loss off plain PyTorch's, relative", most=AGREEMENT, measured=_disagreement),
)
