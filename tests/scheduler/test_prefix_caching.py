"""Prompts share the blocks of a common prefix."""

from __future__ import annotations

from sarathi.scheduler import Request, Scheduler, StopCriteria
from tests.scheduler.scenes import request, run, scheduler, shape


def caching(**options: object) -> Scheduler:
    return scheduler(prefix_caching=True, **options)  # type: ignore[arg-type]


def test_a_prompt_starts_after_its_cached_prefix() -> None:
    sched = caching()
    sched.add(request(1, prompt=10, output=1))
    assert run(sched) == [(1, 10)]
    second = request(2, prompt=14, output=1)
    sched.add(second)
    assert run(sched) == [(2, 6)]  # two full blocks of 4 are known
    assert second.num_cached == 8
    assert (sched.prefill_allocator.prompt_tokens, sched.prefill_allocator.cached_tokens) == (24, 8)


def test_running_requests_share_blocks() -> None:
    sched = caching(blocks=6)
    first, second = request(1, prompt=13, output=3), request(2, prompt=15, output=3)
    sched.add(first)
    run(sched)
    sched.add(second)
    run(sched)
    assert first.blocks[:3] == second.blocks[:3]
    assert first.blocks[3] != second.blocks[3]
    assert sched.pool.num_free == 1
    while sched.has_work:
        run(sched)
    assert sched.pool.num_free == 6


def test_the_last_token_is_computed_even_if_all_are_known() -> None:
    sched = caching()
    for name in (1, 2):
        sched.add(request(name, prompt=8, output=1))
        run(sched)
    assert sched.prefill_allocator.cached_tokens == 4


def test_different_prefixes_are_not_shared() -> None:
    sched = caching()
    sched.add(Request(1, [1, 2, 3, 4, 5, 6, 7, 8, 9], StopCriteria(1), 1.0))
    run(sched)
    # The second block holds the same tokens, but not after the same ones.
    sched.add(Request(2, [0, 2, 3, 4, 5, 6, 7, 8, 9], StopCriteria(1), 2.0))
    assert run(sched) == [(2, 9)]


def test_outputs_are_found_by_the_next_turn_of_a_conversation() -> None:
    sched = caching()
    first = request(1, prompt=6, output=7)
    sched.add(first)
    while sched.has_work:
        run(sched, token=9)
    # The last token of the answer has been sampled and never computed.
    sched.add(Request(2, [*range(6), *[9] * 7, 1, 2], StopCriteria(1), 2.0))
    assert run(sched) == [(2, 3)]


def test_chunks_are_known_as_soon_as_they_are_computed() -> None:
    sched = caching(budget=8)
    sched.add(request(1, prompt=16, output=2))
    run(sched)
    sched.add(request(2, prompt=12, output=2))
    assert run(sched) == [(1, 8)]
    assert run(sched) == [(1, 1), (2, 4)]


def test_two_that_compute_the_same_side_by_side_do_not_disturb_each_other() -> None:
    sched = caching()
    sched.add(request(1, prompt=9, output=2))
    sched.add(request(2, prompt=9, output=2))
    assert run(sched) == [(1, 9), (2, 9)]
    while sched.has_work:
        run(sched)
    assert sched.pool.num_cached == 2  # once, not twice


def test_the_least_recently_used_is_evicted() -> None:
    sched = caching(blocks=6, block_size=4)
    for name, start in ((1, 100), (2, 200), (1, 100), (3, 300)):
        prompt = range(start, start + 9)
        sched.add(Request(name, prompt, StopCriteria(1), 0.0))
        while sched.has_work:
            run(sched)
    # All but a block fit: the end of the second prompt was used longest ago.
    for start, computed in ((100, 1), (300, 1), (200, 5)):
        sched.add(Request(9, range(start, start + 9), StopCriteria(1), 0.0))
        assert run(sched) == [(9, computed)]


def test_the_end_of_a_prefix_is_evicted_first() -> None:
    sched = caching(blocks=5, block_size=4)
    sched.add(request(1, prompt=16, output=1))
    run(sched)
    sched.add(Request(2, range(100, 107), StopCriteria(1), 2.0))
    run(sched)  # takes the one empty block and the end of the first prompt
    sched.add(request(3, prompt=16, output=1))
    assert run(sched) == [(3, 4)]


def test_a_preempted_request_finds_what_it_had_computed() -> None:
    sched = caching(blocks=5, block_size=4)
    sched.add(request(1, prompt=7, output=9))
    preempted = Request(2, range(100, 107), StopCriteria(9), 2.0)
    sched.add(preempted)
    while not preempted.num_preemptions:
        run(sched)
    assert preempted.num_cached == 0
    while sched.waiting.requests():
        computed = run(sched)
    assert (2, 9) not in computed
    assert sched.prefill_allocator.prompt_tokens == 14, "a preempted prompt was counted again"


def test_a_cancelled_prompt_leaves_what_is_computed_to_others() -> None:
    sched = caching(budget=8)
    sched.add(request(1, prompt=40))
    run(sched)
    sched.cancel(1)
    sched.add(request(2, prompt=12, output=1))
    assert run(sched) == [(2, 4)]


def test_it_can_be_disabled() -> None:
    sched = scheduler()
    for name in (1, 2):
        sched.add(request(name, prompt=9, output=1))
        assert run(sched) == [(name, 9)]
    assert sched.pool.num_cached == 0


def test_cached_blocks_count_as_free_and_can_be_reserved() -> None:
    sched = caching(blocks=4)
    sched.add(request(1, prompt=16, output=1))
    run(sched)
    assert (sched.pool.num_free, sched.pool.num_cached) == (4, 4)
    sched.add(Request(2, range(50, 66), StopCriteria(1), 2.0))
    assert shape(sched.schedule(0.0)) == [(2, 16)]
    assert sched.pool.num_cached == 0
