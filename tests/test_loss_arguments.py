"""What the loss refuses: the message names the argument, what it was and what would be right."""

import pytest
import torch

from kernels import tripartite_loss

GOOD = {
    "image": torch.ones(3, 4, 16),
    "text": torch.ones(3, 4, 16),
    "logit_scale": torch.ones(3),
}


def _call(**changes):
    given = GOOD | changes
    features = [given.pop(name) for name in ("image", "text", "logit_scale")]
    return tripartite_loss(*features, **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": [1.0]}, r"image is \[1.0\]; expected \(levels, patients, features\) of float32"),
        ({"image": torch.ones(3, 4, 16).long()}, r"image is \(3, 4, 16\) int64 on cpu; expected"),
        ({"image": torch.ones(4, 16)}, r"image is \(4, 16\) float32 on cpu; expected \(levels"),
        ({"image": torch.ones(3, 0, 16)}, r"image is \(3, 0, 16\) .*none 0"),
        ({"image": torch.ones(3, 4, 24)}, "image has 24 features; expected a multiple of 16"),
        ({"image": torch.ones(3, 4, 1040)}, "image has 1040 features; .* up to 1024"),
        ({"text": torch.ones(3, 5, 16)}, r"text is \(3, 5, 16\) .*; expected \(3, 4, 16\) float32"),
        ({"text": torch.ones(3, 4, 16).half()}, r"text is \(3, 4, 16\) float16 on cpu; expected"),
        ({"text": torch.ones(3, 4, 16, device="meta")}, "text is .* on meta; expected .* on cpu"),
        ({"logit_scale": 14.3}, r"logit_scale is 14.3; expected \(3,\) float32 or float64"),
        ({"logit_scale": torch.ones(())}, r"logit_scale is \(\) float32 on cpu; expected \(3,\)"),
        ({"logit_scale": torch.ones(3).half()}, r"logit_scale is \(3,\) float16 on cpu"),
        ({"present": torch.ones(3, 4)}, r"present is \(3, 4\) float32 .*; expected \(3, 4\) bool"),
        ({"present": torch.ones(4).bool()}, r"present is \(4,\) bool .*; expected \(3, 4\) bool"),
        ({"report_id": torch.ones(4)}, r"report_id is \(4,\) float32 .*; expected \(4,\) int64"),
        ({"report_id": torch.ones(3).long()}, r"report_id is \(3,\) int64 .*; expected \(4,\)"),
        ({"same_report": "same"}, "same_report is 'same'; expected one of negative, ignore, pos"),
        ({"same_report": "ignore"}, r'same_report="ignore" needs report_id, \(4,\) int64'),
        ({"same_report": "positive"}, r'same_report="positive" needs report_id'),
        ({"workspace_bytes": 0}, "workspace_bytes is 0; expected a number of bytes above 0"),
        ({"workspace_bytes": 1e6}, "workspace_bytes is 1000000.0; expected"),
        ({"group": "WORLD"}, "group is 'WORLD'; expected a torch.distributed process group"),
        (
            {"backend": "cuda"},
            'backend is \'cuda\'; expected one of "auto", "triton", "torch", "ref',
        ),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        _call(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_the_right_arguments_pass(backend):
    loss = _call(backend=backend, report_id=torch.arange(4), same_report="ignore")
    # every pair has cosine 16 here: each row has 4 equal logits
    torch.testing.assert_close(loss.levels, torch.full((3,), 4.0).log())
