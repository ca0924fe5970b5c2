"""Every ZeRO stage, number of ranks and way to take a step gives one plain process's parameters.

`make test` runs a set of cases in which every two settings meet; `make test-full` all of them.
"""

import pytest
from ranks import run_ranks
from step_equality import FACTORS, check_cases, every_combination, every_pair


def cases_of(rows, world):
    return [case for ranks, case in rows if ranks == world]


# four processes on two cores take as long as all else here
@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.full)])
def test_every_two_settings_meet(world):
    run_ranks(check_cases, world, cases_of(every_pair(), world))


@pytest.mark.full
@pytest.mark.parametrize("zero_stage", FACTORS["zero_stage"])
@pytest.mark.parametrize("world", FACTORS["world"])
def test_every_combination(world, zero_stage):
    cases = cases_of(every_combination(), world)
    run_ranks(check_cases, world, [case for case in cases if case.zero_stage == zero_stage])
