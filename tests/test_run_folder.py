"""Which keys of a recipe may change when a run is continued."""

import pytest

from engine.run_folder import _may_change


@pytest.mark.parametrize(
    ("key", "before", "now", "allowed"),
    [
        ("data.threads", 4, 8, True),
        ("data.hw_decoder_load", None, 0.8, True),
        # the same batches, decoded once or every time; shrunk ones are others
        ("data.cache", "none", "full", True),
        ("data.cache", "none", "train", False),
        ("data.cache", "train", "full", False),
        ("data.find_field", False, True, False),
        ("data.augmentation.crop_scale", [0.9, 1.0], [0.5, 1.0], False),
    ],
)
def test_only_what_leaves_the_losses_alone_may_change(key, before, now, allowed):
    assert _may_change(key, before, now) is allowed
