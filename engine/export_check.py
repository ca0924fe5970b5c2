"""What every export must pass before it is kept: the same features, or the same tensors."""

import torch

from engine.export_towers import example_images, example_tokens

# largest difference of a unit feature's entries from the model's
TOLERANCE = 1e-4


class ExportError(ValueError):
    """A model that cannot be exported so; the message says what stands in the way."""


def _checks(model):
    """Yield (tower's name, inputs, features of the model itself) of other sizes than the example's.

    One-eyed patients and padded reports are among them; the model packs its reports.
    """
    longest = model.config.text.max_positions
    with torch.no_grad():
        for patients, length in ((1, 1), (3, min(5, longest)), (5, min(33, longest))):
            images = example_images(model.config, patients)
            yield "image", images, model.encode_image(*images)
            tokens = example_tokens(model.config, length, patients)
            yield "text", (tokens,), model.encode_text(tokens)


def largest_difference(model, run):
    """Return the largest difference of `run(name, inputs)` from the model; ExportError above it."""
    worst = 0.0
    for name, inputs, expected in _checks(model):
        found = run(name, inputs)
        difference = (torch.as_tensor(found) - expected).abs().max().item()
        # not a number is no small difference
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the exported {name} tower differs from the model by {difference:.1e} for "
                f"{len(inputs[0])} patients; at most {TOLERANCE:.0e} is allowed"
            )
        worst = max(worst, difference)
    return worst


def require_equal(found, wanted, name):
    """Raise ExportError unless two state dicts hold the same tensors, bit by bit."""
    same = found.keys() == wanted.keys() and all(
        found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key])
        for key in wanted
    )
    if not same:
        raise ExportError(f"{name}: does not hold the model's weights; is the disk full?")
