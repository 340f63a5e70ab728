"""Which cores the processes of an engine keep to."""

from __future__ import annotations

import os
import threading

import pytest

from sarathi.system.machine import cores_of_process, physical_cores, pin_to_cores, usable_cores

FOUR = [frozenset({0, 4}), frozenset({1, 5}), frozenset({2, 6}), frozenset({3, 7})]


def test_processes_share_out_all_cores() -> None:
    assert cores_of_process(0, 2, 2, FOUR, usable=4) == frozenset({0, 4, 1, 5})
    assert cores_of_process(1, 2, 2, FOUR, usable=4) == frozenset({2, 6, 3, 7})
    assert cores_of_process(2, 3, 1, FOUR, usable=4) == frozenset({2, 6})  # one core is left over


@pytest.mark.parametrize(
    ("processes", "threads", "usable"),
    [
        (2, 1, 4),  # others may use the remaining ones
        (2, 4, 4),  # more threads than cores for each
        (5, 1, 4),  # too many processes
        (2, 2, 2),  # a container that may use any two of them
    ],
)
def test_where_the_kernel_must_choose(processes: int, threads: int, usable: int) -> None:
    assert cores_of_process(0, processes, threads, FOUR, usable) is None


def test_only_the_calling_thread_is_bound() -> None:
    cores = physical_cores()
    if len(cores) < 2 or usable_cores() != len(cores):
        pytest.skip("not all of the machine is ours, or it has one core")
    before = os.sched_getaffinity(0)
    found: list[set[int]] = []

    def bind() -> None:
        pin_to_cores(1, len(cores), 1)
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=bind)
    thread.start()
    thread.join()
    assert found == [cores[1]]
    assert os.sched_getaffinity(0) == before
    assert set().union(*cores) == before
