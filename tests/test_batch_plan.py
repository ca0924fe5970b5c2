"""Plans made ahead of their use, and what of a plan a mirror turns round."""

import threading

import numpy as np
import pytest

from dataload.drawn_job import _reflect_where
from dataload.running import Ahead


def test_plans_are_made_one_step_ahead_in_another_thread():
    made, second = [], threading.Event()

    def make(step):
        made.append((step, threading.current_thread().name))
        if step == 1:
            second.set()
        return step * 10

    with Ahead(make, 3) as ahead:
        assert ahead(0) == 0
        # before anybody asks
        assert second.wait(5)
        assert [ahead(1), ahead(2)] == [10, 20]
        # asked for again after a failure, made again
        assert ahead(2) == 20
    steps, names = zip(*made, strict=True)
    assert steps == (0, 1, 2, 2)
    assert all(name.startswith("planner") for name in names)


def test_an_error_comes_where_its_step_is_asked_for():
    def make(step):
        if step == 1:
            raise OSError("shard-000001.tar")
        return step

    with Ahead(make, 4) as ahead:
        assert ahead(0) == 0
        with pytest.raises(OSError, match="shard-000001"):
            ahead(1)
        assert ahead(2) == 2


def test_what_is_not_wanted_any_more_is_not_made():
    made, begun, go = [], threading.Event(), threading.Event()

    def make(step):
        made.append(step)
        if step == 1:
            begun.set()
            go.wait(5)

    with Ahead(make, 100) as ahead:
        ahead(0)
        assert begun.wait(5)
        go.set()
    assert made == [0, 1]


def test_boxes_are_reflected_about_the_middle_of_their_photograph():
    boxes = np.array([[1, 2, 5, 9], [1, 2, 5, 9], [0, 0, 8, 20]])
    widths = np.array([20, 20, 20])
    found = _reflect_where(np.array([True, False, True]), boxes, widths)
    assert found.tolist() == [[1, 11, 5, 18], [1, 2, 5, 9], [0, 0, 8, 20]]
