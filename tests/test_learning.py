"""The learning benchmark: what its arms change, and when it says that something helped."""

import pytest

from bench import learning, learning_plots
from bench.plots import write_svg
from engine.config import load_config


def row(arm, seed, auroc, recall):
    return {
        "arm": arm,
        "seed": seed,
        "zero-shot AUROC": auroc,
        "recall@5": recall,
        "chance@5": 0.05,
        "curve": [[10, recall / 2], [20, recall]],
    }


ROWS = [
    *(row("official", seed, 0.6 + seed / 100, 0.2 + seed / 100) for seed in range(3)),
    *(row("global negatives", seed, 0.8 + seed / 100, 0.21 + seed / 100) for seed in range(3)),
]


def test_the_last_arm_is_the_demo_s_own_recipe_and_the_first_the_official_one():
    keys = [
        f"{key}={value}" for key, value in learning.arm_keys("repeated reports ignored").items()
    ]
    assert load_config(learning.RECIPE, keys) == load_config(learning.RECIPE)
    first = load_config(
        learning.RECIPE, [f"{key}={value}" for key, value in learning.arm_keys("official").items()]
    )
    assert (first.loss.negatives, first.training.accumulation) == ("local", 4)
    assert (first.data.augmentation.flip, first.loss.same_report) == ("per_eye", "negative")
    with pytest.raises(KeyError):
        learning.arm_keys("unknown")


def test_a_change_counts_beyond_two_standard_errors():
    before, now = learning.summary(ROWS)
    assert before["runs"] == 3 and before["recall@5"]["verdict"] == "-"
    assert now["zero-shot AUROC"]["mean"] == pytest.approx(0.81)
    # 0.01 / sqrt(3), of values 0.01 apart
    assert now["zero-shot AUROC"]["error"] == pytest.approx(0.00577, abs=1e-5)
    assert now["zero-shot AUROC"]["verdict"] == "helped"
    assert now["recall@5"]["verdict"] == "no difference seen"
    falling = [*ROWS[3:], *(entry | {"arm": "laterality kept"} for entry in ROWS[:3])]
    assert learning.summary(falling)[1]["zero-shot AUROC"]["verdict"] == "hurt"
    alone = learning.summary([ROWS[0], ROWS[3]])
    assert alone[1]["recall@5"]["verdict"] == "one run tells nothing"


def test_curves_are_drawn_by_arm(tmp_path):
    figure = learning_plots.figures({"rows": ROWS})["curves"]
    write_svg(figure, tmp_path / "curves.svg", "toy rows")
    text = (tmp_path / "curves.svg").read_text()
    assert text.startswith("<?xml") and len(text) > 5000 and "toy rows" in text
