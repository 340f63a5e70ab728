from __future__ import annotations

from itertools import count

import pytest

from sarathi.fleet.router import LeastWork
from sarathi.scheduler import LatencyModel
from sarathi.scheduler.kv.block_pool import block_hashes

BLOCK = 4
# A token of a prompt takes a second; one of an answer (1 + 32 + 32) / 32.
MODEL = LatencyModel((1.0, 1.0, 0.0, 0.0, 1.0))


def router(*engines: int, num_blocks: int = 0) -> LeastWork:
    made = LeastWork()
    for engine in engines:
        made.add(engine, MODEL, block_size=BLOCK, num_blocks=num_blocks)
    return made


def hashes(tokens: list[int]) -> list[bytes]:
    return list(block_hashes(tokens, BLOCK))


def test_equal_engines_are_chosen_round_robin() -> None:
    one = router(3, 5, 9)
    chosen = []
    for _ in range(6):
        assignment = one.assign(10)
        chosen.append(assignment.engine)
        one.ended(assignment, 1)
    assert chosen == [3, 5, 9, 3, 5, 9]


def test_a_long_prompt_counts_until_its_first_token() -> None:
    one = router(0, 1)
    long = one.assign(1000)
    assert [one.assign(10).engine for _ in range(2)] == [1, 1]
    one.started(long)
    assert one.assign(10).engine == 0


def test_an_answer_counts_with_the_mean_length_so_far() -> None:
    one = router(0, 1)
    for _ in range(10):
        one.ended(one.assign(1), 10)
    running = one.assign(1)
    one.started(running)
    per_answer = 10 * MODEL.predict((32, 0.0, 32 * 512, 32)) / 32  # type: ignore[arg-type]
    assert one.work(running.engine) == pytest.approx(per_answer)
    assert one.work(1 - running.engine) == 0.0


def test_a_request_that_is_moved_does_not_count_as_an_answer() -> None:
    one = router(0)
    one.ended(one.assign(1), 10)
    one.ended(one.assign(1))
    one.started(one.assign(1))
    assert one.work(0) == pytest.approx(10 * 65 / 32)


def test_a_slower_engine_gets_less() -> None:
    one = LeastWork()
    one.add(0, MODEL)
    one.add(1, LatencyModel([3 * c for c in MODEL.coefficients]))
    chosen = [one.assign(100).engine for _ in range(40)]
    assert 8 <= chosen.count(1) <= 12


def test_a_prompt_goes_where_its_beginning_is_known() -> None:
    one = router(0, 1, num_blocks=100)
    prompt = list(range(40))
    first = one.assign(40, hashes(prompt))
    one.started(first)
    one.ended(first, 1)
    longer = [*prompt, *range(100, 120)]
    assert one.assign(60, hashes(longer)).engine == first.engine


def test_work_weighs_more_than_a_short_common_beginning() -> None:
    one = router(0, 1, num_blocks=100)
    prompt = list(range(8))
    first = one.assign(8, hashes(prompt))
    one.assign(1000, hashes(list(range(500, 1500))), among=[first.engine])
    assert one.assign(10, hashes([*prompt, 98, 99])).engine != first.engine


def test_beginnings_of_prompts_are_forgotten_last() -> None:
    one = router(0, 1, num_blocks=5)
    prompt = list(range(40))
    first = one.assign(40, hashes(prompt))
    one.ended(first, 1)
    known = one.assign(40, hashes(prompt), among=[first.engine])
    assert known.prompt == 40 - 5 * BLOCK + 1  # the token that it samples takes one, too


def test_a_whole_prompt_that_is_known_costs_its_last_token() -> None:
    one = router(0, num_blocks=100)
    prompt = list(range(40))
    one.assign(40, hashes(prompt))
    assert one.assign(40, hashes(prompt)).prompt == 2.0


def test_only_those_asked_for_are_chosen() -> None:
    one = router(*range(4))
    assert {one.assign(5, among=[1, 3]).engine for _ in range(10)} == {1, 3}


def test_the_work_of_an_engine_is_forgotten_with_it() -> None:
    one = router(0, 1, num_blocks=100)
    prompt = hashes(list(range(40)))
    assignment = one.assign(40, prompt)
    one.remove(assignment.engine)
    one.remove(assignment.engine)
    one.started(assignment)
    one.ended(assignment, 5)
    one.add(assignment.engine, MODEL, block_size=BLOCK, num_blocks=100)
    assert one.work(assignment.engine) == 0.0
    assert one.assign(40, prompt, among=[assignment.engine]).prompt == 41.0


def test_work_comes_back_to_nothing() -> None:
    one = router(0, 1)
    ids = count(1)
    assignments = [one.assign(7 * next(ids)) for _ in range(50)]
    for index, assignment in enumerate(assignments):
        if index % 2:
            one.started(assignment)
        one.ended(assignment, index)
    assert [one.work(engine) for engine in (0, 1)] == pytest.approx([0.0, 0.0])
