"""Recall@k: exact chance, fair ties, repeated reports, absent patients, bounded memory."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import engine.retrieval as retrieval
from engine.retrieval import distinct_patients, recall_at_k, recall_by_pool


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def everyone(number):
    return torch.ones(number, dtype=torch.bool)


def test_perfect_features_find_every_report():
    features = unit(20, 16)
    found = recall_at_k(features, features, torch.arange(20), everyone(20))
    assert found.image_to_text.recall == {1: 1.0, 5: 1.0, 10: 1.0}
    assert found.text_to_image.median_rank == 1
    assert found.text_to_image.chance[5] == pytest.approx(5 / 20)


def test_known_ranks_are_counted_in_each_direction():
    # scores[i, j] of photograph i and report j; each report is a basis vector
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.3, 0.5], [0.2, 0.4, 0.6]])
    found = recall_at_k(scores, torch.eye(3), torch.arange(3), everyone(3), ks=(1, 2, 3))
    assert found.image_to_text.recall == pytest.approx({1: 2 / 3, 2: 2 / 3, 3: 1.0})
    assert found.text_to_image.recall == pytest.approx({1: 2 / 3, 2: 1.0, 3: 1.0})
    assert found.image_to_text.median_rank == 1


def test_equal_scores_reach_exactly_chance():
    constant = torch.zeros(30, 8)
    constant[:, 0] = 1
    report_id = torch.arange(30) // 3
    for pool in recall_by_pool(constant, constant, report_id, everyone(30)).values():
        for way in (pool.image_to_text, pool.text_to_image):
            assert way.recall == pytest.approx(way.chance)
            assert way.recall[1] < 0.11


@pytest.mark.parametrize("k", [1, 2, 3])
def test_chance_with_repeated_reports_is_the_mean_over_all_rankings(k):
    report_id = [7, 7, 7, 8, 9]
    hits = 0
    rankings = list(itertools.permutations(range(5)))
    for query in range(5):
        hits += sum(report_id[query] in [report_id[c] for c in r[:k]] for r in rankings)
    expected = hits / (5 * len(rankings))
    found = recall_at_k(unit(5, 4), unit(5, 4), torch.tensor(report_id), everyone(5), ks=(k,))
    assert found.image_to_text.chance[k] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_ties_count_as_the_mean_over_all_ways_to_break_them(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (5, 5), generator=generator).float()
    report_id = torch.randint(0, 4, (5,), generator=generator)
    orders = list(itertools.permutations(range(5)))
    for k in (1, 2, 4):
        hits = 0
        for query, breaker in itertools.product(range(5), orders):
            ranking = sorted(range(5), key=lambda c: (-scores[query, c], breaker[c]))
            hits += bool((report_id[ranking[:k]] == report_id[query]).any())
        found = recall_at_k(scores, torch.eye(5), report_id, everyone(5), ks=(k,))
        assert found.image_to_text.recall[k] == pytest.approx(hits / (5 * len(orders)))


def test_random_features_are_near_chance():
    found = recall_at_k(unit(400, 32), unit(400, 32, seed=1), torch.arange(400), everyone(400))
    for k, recall in found.image_to_text.recall.items():
        chance = found.image_to_text.chance[k]
        assert recall == pytest.approx(chance, abs=4 * math.sqrt(chance / 400))


def test_distinct_keeps_the_first_present_patient_of_each_report():
    report_id = torch.tensor([5, 6, 5, 6, 7])
    present = torch.tensor([False, True, True, True, True])
    assert distinct_patients(report_id, present).tolist() == [1, 2, 4]
    pools = recall_by_pool(unit(5, 8), unit(5, 8), report_id, present)
    assert pools["distinct"].image_to_text.size == 3
    assert pools["all"].image_to_text.size == 4
    assert pools["distinct"].image_to_text.chance[1] == pytest.approx(1 / 3)
    assert pools["all"].image_to_text.chance[1] == pytest.approx(
        (1 / 2 + 1 / 4 + 1 / 2 + 1 / 4) / 4
    )


def test_absent_patients_change_nothing_even_with_nan():
    image, text, report_id = unit(12, 8), unit(12, 8, seed=3), torch.arange(12)
    present = torch.arange(12) % 3 != 0
    expected = recall_at_k(image[present], text[present], report_id[present], everyone(8))
    image[~present] = torch.nan
    assert recall_at_k(image, text, report_id, present) == expected


def test_nan_of_a_present_patient_is_an_error_not_a_hit():
    image = unit(4, 8)
    image[2, 1] = torch.nan
    with pytest.raises(ValueError, match="image features hold NaN"):
        recall_at_k(image, unit(4, 8), torch.arange(4), everyone(4))


def test_shapes_that_do_not_agree_are_named():
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(3, 8\)"):
        recall_at_k(unit(4, 8), unit(3, 8), torch.arange(4), everyone(4))
    with pytest.raises(ValueError, match=r"report_id must be \(4,\)"):
        recall_at_k(unit(4, 8), unit(4, 8), torch.arange(3), everyone(4))


def test_empty_pool_has_no_figures():
    found = recall_at_k(unit(3, 8), unit(3, 8), torch.arange(3), ~everyone(3))
    assert found.image_to_text.recall == {1: None, 5: None, 10: None}
    assert found.to_dict()["text_to_image"]["chance@5"] is None


def test_one_repeated_report_is_all_chance():
    pools = recall_by_pool(unit(4, 8), unit(4, 8, seed=2), torch.zeros(4).long(), everyone(4))
    assert pools["all"].image_to_text.recall == pools["all"].image_to_text.chance
    assert pools["distinct"].image_to_text.chance == {1: 1.0, 5: 1.0, 10: 1.0}


def test_chunks_of_queries_do_not_change_the_result(monkeypatch):
    arguments = unit(65, 16), unit(65, 16, seed=5), torch.arange(65) // 2, everyone(65)
    whole = recall_at_k(*arguments)
    monkeypatch.setattr(retrieval, "_CHUNK_ELEMENTS", 65 * 7)
    assert recall_at_k(*arguments) == whole
