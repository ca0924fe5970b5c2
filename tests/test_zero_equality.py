"""Every ZeRO stage, number of ranks and way to take a step gives one plain process's parameters.

`make test` runs a set of cases in which every two settings meet; `make test-full` all of them.
"""

import pytest
from ranks import run_ranks
from step_equality import FACTORS, Case, check_cases, every_combination, every_pair


def cases_of(rows, world):
    return [case for ranks, case in rows if ranks == world]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_two_settings_meet(world):
    run_ranks(check_cases, world, cases_of(every_pair(), world))


# the optimiser's part in host memory; the model built in partitions
ELSEWHERE = [
    Case(zero_stage=1, offload=True, optimizer="adamw", clip_norm=0.5),
    Case(zero_stage=2, offload=True, how="gradcache"),
    Case(zero_stage=2, offload=True, how="local", clip_norm=0.5),
    Case(zero_stage=3, offload=True, zero_init=True, optimizer="adamw"),
    Case(zero_stage=3, zero_init=True, how="gradcache"),
]


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.full), 2])
def test_offloaded_and_partitioned_from_the_start(world):
    run_ranks(check_cases, world, ELSEWHERE)


@pytest.mark.full
@pytest.mark.parametrize("zero_stage", FACTORS["zero_stage"])
@pytest.mark.parametrize("world", FACTORS["world"])
def test_every_combination(world, zero_stage):
    cases = cases_of(every_combination(), world)
    run_ranks(check_cases, world, [case for case in cases if case.zero_stage == zero_stage])
