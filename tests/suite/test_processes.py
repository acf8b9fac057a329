"""Tasks spread over processes: results and what is told meanwhile reach the process that started them."""

import os

import pytest

from suite.processes import Step, spread, tell


def square(n: int) -> tuple[int, int]:
    for done in (1, 2):
        tell(Step(f"task {n}", done, 2, float(n)))
    return n * n, os.getpid()


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_tasks_tell_is_heard_before_the_end(jobs):
    heard = []
    results = list(spread(square, [1, 2, 3], jobs, died=lambda n: (-1, 0), told=heard.append))
    assert sorted(result for result, _ in results) == [1, 4, 9]
    assert all((pid == os.getpid()) == (jobs == 1) for _, pid in results)
    wanted = [Step(f"task {n}", done, 2, float(n)) for n in (1, 2, 3) for done in (1, 2)]
    assert sorted(heard, key=lambda step: (step.name, step.done)) == wanted


def die(n: int) -> int:
    tell(Step(f"task {n}", 1, 2, 0.5))
    if n == 2:
        os._exit(1)
    return n


def test_a_task_that_dies_is_told_of_and_stops_no_other():
    heard = []
    results = list(spread(die, [1, 2, 3], 2, died=lambda n: -n, told=heard.append))
    assert sorted(results) == [-2, 1, 3] and {step.name for step in heard} >= {"task 1", "task 3"}


def fail(n: int) -> int:
    tell(Step(f"task {n}", 1, 2, 0.5))
    raise ValueError(n)


def test_nobody_listens_after_a_run_however_it_ended():
    heard = []
    with pytest.raises(ValueError, match="7"):
        list(spread(fail, [7], 1, died=lambda n: -n, told=heard.append))
    tell(Step("alone", 1, 1, 0.0))
    assert heard == [Step("task 7", 1, 2, 0.5)]
