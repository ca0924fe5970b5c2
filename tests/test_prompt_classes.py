"""Probabilities from prompts: the head and the prompts of each photograph's own eye."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_mixed import tiny_model

from engine.model import LEVELS
from engine.prompt_classes import ClassPrompts, prompt_probabilities, prompts_for, routes
from engine.samples import make_samples

PROMPTS = (
    ClassPrompts(name="normal", positive=("{eye}: healthy", "{eye}正常"), negative=("ill",)),
    ClassPrompts(name="glaucoma", positive=("{eye}: glaucoma",), negative=("healthy", "sound")),
)


class Encoder:
    """Unit features (3, P, 16) that depend on the text and the level; notes what was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        seeds = [sum(text.encode()) for text in texts]
        draws = [torch.randn(3, 16, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return F.normalize(torch.stack(draws, dim=1), dim=-1)


def photographs(*eyes):
    count = len(eyes)
    return SimpleNamespace(
        patient=np.arange(count),
        examination=np.zeros(count, np.int64),
        eye=np.array(eyes),
        patient_id=("P",) * count,
        exam_id=("",) * count,
        name=("photo",) * count,
        columns=({},) * count,
    )


@pytest.fixture(scope="module")
def model():
    model, _ = tiny_model()
    with torch.no_grad():
        model.logit_scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    return model


def expected(model, level, left, right, side="positive"):
    """Scale times cosine (C,) to each class, written out for one sample."""
    head = model.image_heads[level]
    raw = torch.cat([left, right]) if level == "patient" else left
    image = F.normalize(head(raw), dim=-1)
    eye = {"left": ("Left eye", "左眼"), "right": ("Right eye", "右眼")}
    english, chinese = eye.get(level, ("Both eyes", "双眼"))
    texts = {
        "positive": [[f"{english}: healthy", f"{chinese}正常"], [f"{english}: glaucoma"]],
        "negative": [["Ill"], ["Healthy", "Sound"]],
    }[side]
    encode = Encoder()
    means = [encode(some)[LEVELS.index(level)].mean(dim=0) for some in texts]
    scale = model.logit_scale[LEVELS.index(level)].exp()
    return scale * torch.stack([F.normalize(mean, dim=-1) @ image for mean in means])


@torch.no_grad()
@pytest.mark.parametrize("multi_label", [False, True])
def test_each_eye_goes_through_its_own_head(model, multi_label):
    raw = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    samples = make_samples(photographs(0, 1, 2), "photograph", raw.numpy())
    assert routes(samples) == ("left", "right", "patient")
    encode = Encoder()
    found = prompt_probabilities(model, encode, samples, raw, PROMPTS, multi_label)
    for row, level in enumerate(("left", "right", "patient")):
        # a photograph of unknown eye stands in for both
        scores = expected(model, level, raw[row], raw[row])
        if multi_label:
            scores = scores - expected(model, level, raw[row], raw[row], "negative")
        wanted = scores.sigmoid() if multi_label else scores.softmax(dim=0)
        np.testing.assert_allclose(found[row], wanted.numpy(), atol=1e-5)
    assert "Right eye: glaucoma" in encode.asked and "左眼正常" in encode.asked


@torch.no_grad()
def test_a_patient_goes_through_the_patient_head_with_the_eyes_in_their_places(model):
    raw = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    # right eye first; two photographs of the left one count as their mean
    samples = make_samples(photographs(1, 0, 0), "patient", raw.numpy())
    found = prompt_probabilities(model, Encoder(), samples, raw, PROMPTS, False)
    wanted = expected(model, "patient", raw[1:].mean(dim=0), raw[0]).softmax(dim=0)
    np.testing.assert_allclose(found[0], wanted.numpy(), atol=1e-5)


def test_prompts_come_in_the_labels_order():
    order = prompts_for(PROMPTS, ("glaucoma", "normal"), False, "p.yaml")
    assert [one.name for one in order] == ["glaucoma", "normal"]
    only = prompts_for(PROMPTS, ("glaucoma",), True, "p.yaml", strict=False)
    assert [one.name for one in only] == ["glaucoma"]
