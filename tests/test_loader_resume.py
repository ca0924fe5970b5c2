"""A loader's state: the same batches after a resume, with any number of ranks and global batch."""

import pytest
import torch
from tiny_loader import joined, same, tiny_loaders, tiny_tokenizer, write_tiny_set

PATIENTS = 21


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tiny_set(tmp_path_factory.mktemp("resume"), PATIENTS)


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    return tiny_tokenizer(shards, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def build(shards, tokenizer):
    with tiny_loaders(shards, tokenizer) as build:
        yield build


@pytest.mark.parametrize("cache", ["none", "full"])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(build, backend, cache):
    options = {"backend": backend, "cache": cache, "seed": 7}
    whole = joined(build(batch_size=8, **options).epoch(2))
    for world in (2, 4):
        ranks = [
            list(build(batch_size=8 // world, rank=rank, world=world, **options).epoch(2))
            for rank in range(world)
        ]
        assert {len(batches) for batches in ranks} == {3}
        # step by step, the ranks side by side
        assert same(joined([batch for step in zip(*ranks, strict=True) for batch in step]), whole)


@pytest.mark.parametrize("cache", ["none", "full"])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_a_resumed_run_sees_the_same_batches(build, backend, cache):
    options = {"backend": backend, "cache": cache, "seed": 1}
    loader = build(**options)
    assert loader.state_dict() == {"epoch": 0, "step": 0, "global_batch": 4}
    reference = list(loader.epoch(0)) + list(loader.epoch(1))
    assert loader.state_dict() == {"epoch": 2, "step": 0, "global_batch": 4}
    assert not torch.equal(reference[0].left, reference[6].left)
    for stop in (1, 5, 6, 9):
        interrupted = build(**options)
        number, step = divmod(stop, 6)
        run = interrupted.epoch(number)
        for _ in range(step):
            next(run)
        run.close()
        state = {"epoch": number, "step": step, "global_batch": 4}
        assert step == 0 or interrupted.state_dict() == state
        resumed = build(**options)
        resumed.load_state_dict(state)
        rest = list(resumed.epoch()) + list(resumed.epoch())
        assert same(
            joined(rest), joined((reference + list(loader.epoch(2)))[stop : number * 6 + 12])
        )
        assert same(joined(interrupted.epoch(number, step)), joined(rest[: 6 - step]))


def rest_of_epoch(build, state, *, world, batch_size, **options):
    """Return what all ranks show from a state to the epoch's end, step by step side by side."""
    ranks = []
    for rank in range(world):
        loader = build(rank=rank, world=world, batch_size=batch_size, **options)
        loader.load_state_dict(state)
        ranks.append(list(loader.epoch()))
    return joined(batch for step in zip(*ranks, strict=True) for batch in step)


@pytest.mark.parametrize(
    ("world", "batch_size"), [(1, 8), (2, 4), (4, 2), (1, 4), (2, 2), (4, 1), (1, 1), (1, 16)]
)
def test_another_number_of_ranks_goes_on_where_one_stopped(build, world, batch_size):
    options = {"seed": 5, "backend": "pillow"}
    loader = build(batch_size=8, **options)
    run = loader.epoch(3)
    before = joined(next(run) for _ in range(2))
    run.close()
    state = loader.state_dict()
    assert state == {"epoch": 3, "step": 2, "global_batch": 8}
    after = rest_of_epoch(build, state, world=world, batch_size=batch_size, **options)
    shown = torch.cat([before["index"], after["index"]]).tolist()
    assert sorted(number for number in shown if number >= 0) == list(range(PATIENTS))
    # and what is shown is what the run would have shown
    whole = joined(build(batch_size=8, **options).epoch(3))
    count = PATIENTS - 16
    for name in ("index", "left", "tokens"):
        assert torch.equal(after[name][:count], whole[name][16:PATIENTS])


def test_a_global_batch_that_does_not_divide_what_was_shown_is_refused(build):
    loader = build(batch_size=3, world=2)
    with pytest.raises(ValueError, match=r"16 patients, .* here, 6: give 8, or another divisor of"):
        loader.load_state_dict({"epoch": 3, "step": 2, "global_batch": 8})
    loader.load_state_dict({"epoch": 3, "step": 3, "global_batch": 8})
    assert loader.state_dict() == {"epoch": 3, "step": 4, "global_batch": 6}
    # between epochs any will do
    loader.load_state_dict({"epoch": 4, "step": 0, "global_batch": 5})
    assert loader.state_dict() == {"epoch": 4, "step": 0, "global_batch": 6}
