"""How the fused loss divides its memory, and which tiles it takes."""

import dataclasses
import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from kernels import tuning
from kernels.contrastive_features import ROW_PADDING, padded
from kernels.contrastive_plan import WORKSPACE, make_plan

LEAST = ROW_PADDING**2 * 6


def plan_of(size, ranks=1, levels=3, width=512, **changes):
    settings = {
        "choice": tuning.SMALLEST,
        "same_report": "negative",
        "gradient": True,
        "workspace_bytes": WORKSPACE,
    }
    return make_plan(levels, size, ranks, width, **(settings | changes))


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 300_000),
    ranks=st.sampled_from([1, 2, 8]),
    levels=st.integers(1, 3),
    width=st.sampled_from([16, 512, 1024]),
    workspace=st.integers(LEAST, 1 << 32),
    product=st.sampled_from(tuning.PRODUCTS),
    gradient=st.booleans(),
)
def test_what_a_plan_allocates_stays_within_the_workspace(
    size, ranks, levels, width, workspace, product, gradient
):
    choice = dataclasses.replace(tuning.SMALLEST, product=product)
    plan = plan_of(
        size, ranks, levels, width, choice=choice, gradient=gradient, workspace_bytes=workspace
    )
    everyone = padded(size if plan.ring else size * ranks, ROW_PADDING)
    pair = 2 if product == "fused" else 6
    kept = plan.store * levels * padded(size, ROW_PADDING) * everyone * 2
    assert plan.levels * plan.rows * plan.columns * pair + kept <= workspace
    for part in (plan.rows, plan.columns, plan.panel):
        assert part % ROW_PADDING == 0 and part > 0
    assert plan.levels in (1, levels) and (gradient or not plan.store)


def test_small_batches_keep_their_exponentials_and_take_all_levels_at_once():
    plan = plan_of(4096)
    assert plan.store and plan.levels == 3 and plan.panel == plan.columns == 4096


def test_large_batches_take_one_level_after_another():
    plan = plan_of(131_072)
    assert not plan.store and plan.levels == 1
    # squares: sums of rows and of columns are then read and written as rarely as possible
    assert 0.5 < plan.rows / plan.columns < 2


def test_text_goes_round_where_it_would_not_fit():
    assert not plan_of(32_768, ranks=8).ring
    assert plan_of(131_072, ranks=8).ring
    assert not plan_of(131_072).ring


def test_a_workspace_too_small_is_refused_with_the_least():
    with pytest.raises(
        ValueError, match='workspace_bytes is 1000; backend "triton" needs at least'
    ):
        plan_of(10, workspace_bytes=1000)


def test_an_unlisted_architecture_takes_the_smallest_tiles_and_says_so():
    tuning._choice_of.cache_clear()
    with pytest.warns(UserWarning, match="no tuning table for sm_999: .*bench.tune loss"):
        assert tuning._choice_of("sm_999") == tuning.SMALLEST
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # once is enough
        tuning._choice_of("sm_999")


def test_a_written_table_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "tables.json"
    path.write_text("{}")
    monkeypatch.setattr(tuning, "TABLES", path)
    tuning.tables.cache_clear()
    choice = tuning.candidates()[0]
    assert tuning.write_table("sm_90", choice, "measured here") == path
    assert tuning.tables() == {"sm_90": choice}
    assert json.loads(path.read_text())["sm_90"]["source"] == "measured here"
    monkeypatch.undo()
    tuning.tables.cache_clear()


def test_an_override_ends_with_its_block():
    before = tuning.choose("cpu")
    with tuning.override(product="gemm") as choice:
        assert choice.product == "gemm" and tuning.choose("cpu") == choice
    assert tuning.choose("cpu") == before
    with pytest.raises(ValueError, match="product is 'cublas'; expected one of fused, gemm"):
        dataclasses.replace(before, product="cublas")
