"""Hand-computed schedules: requests in, exact batches out."""

from __future__ import annotations

import pytest

from sarathi.scheduler import AdmissionError, Scheduler
from tests.scheduler.scenes import request, run, scheduler, shape


def test_nothing_to_do_is_none() -> None:
    assert scheduler().schedule(0.0) is None


def test_a_prompt_is_cut_into_chunks_of_the_budget() -> None:
    sched = scheduler(budget=4)
    sched.add(request(1, prompt=10, output=3))
    assert [run(sched) for _ in range(5)] == [[(1, 4)], [(1, 4)], [(1, 2)], [(1, 1)], [(1, 1)]]
    assert not sched.has_work


def test_a_request_is_scheduled_with_its_first_chunk() -> None:
    sched = scheduler(budget=4)
    first, second = request(1, prompt=6), request(2, prompt=9)
    sched.add(first)
    sched.add(second)
    assert (first.scheduling_delay, second.scheduling_delay) == (None, None)
    for now in (3.0, 4.0, 5.0):
        run(sched, now=now)
    assert (first.first_scheduled_at, second.first_scheduled_at) == (3.0, 4.0)
    assert (first.scheduling_delay, second.scheduling_delay) == (2.0, 2.0)


def test_every_decode_runs_beside_the_chunks_of_a_prompt() -> None:
    sched = scheduler(budget=4)
    sched.add(request(1, prompt=2))
    sched.add(request(2, prompt=1))
    assert run(sched) == [(1, 2), (2, 1)]
    sched.add(request(3, prompt=5))
    assert run(sched) == [(1, 1), (2, 1), (3, 2)]
    assert run(sched) == [(1, 1), (2, 1), (3, 2)]
    assert run(sched) == [(1, 1), (2, 1), (3, 1)]  # the end of the prompt: samples its first token
    assert run(sched) == [(1, 1), (2, 1), (3, 1)]


def test_started_prompts_come_before_new_ones_and_share_what_is_left() -> None:
    sched = scheduler(budget=6)
    sched.add(request(1, prompt=8))
    sched.add(request(2, prompt=3))
    sched.add(request(3, prompt=9))
    assert run(sched) == [(1, 6)]
    assert run(sched) == [(1, 2), (2, 3), (3, 1)]
    assert run(sched) == [(1, 1), (2, 1), (3, 4)]


def test_decodes_beyond_the_budget_all_run_and_prompts_wait() -> None:
    sched = scheduler(budget=2)
    sched.add(request(1, prompt=1, output=3))
    sched.add(request(2, prompt=1, output=3))
    run(sched)
    sched.add(request(3, prompt=4))
    assert run(sched) == [(1, 1), (2, 1)]
    assert run(sched) == [(1, 1), (2, 1)]
    assert run(sched) == [(3, 2)]


def test_requests_are_ordered_by_arrival_not_by_submission() -> None:
    sched = scheduler(budget=4)
    sched.add(request(2, prompt=4))
    sched.add(request(1, prompt=4))
    assert run(sched) == [(1, 4)]


def test_the_batch_size_bounds_running_requests() -> None:
    sched = scheduler(max_batch_size=2)
    for name in (1, 2, 3):
        sched.add(request(name, prompt=2, output=2))
    assert run(sched) == [(1, 2), (2, 2)]
    assert run(sched) == [(1, 1), (2, 1)]
    assert run(sched) == [(3, 2)]


def test_a_prompt_is_admitted_only_when_all_of_it_fits_beside_what_runs() -> None:
    sched = scheduler(blocks=6, block_size=4)
    sched.add(request(1, prompt=8, output=5))  # 2 blocks, 3 in the end
    assert run(sched) == [(1, 8)]
    sched.add(request(2, prompt=16, output=5))  # 4 blocks: they fit, but leave none to grow
    sched.add(request(3, prompt=4, output=2))  # would fit, but is not first
    assert [run(sched) for _ in range(4)] == [[(1, 1)]] * 4
    assert run(sched) == [(2, 16), (3, 4)]


class TestPreemption:
    def fill(self) -> Scheduler:
        """Two requests that own 2 of 4 blocks each, both full; each needs a third."""
        sched = scheduler(blocks=5, block_size=4)
        sched.add(request(1, prompt=7, output=9))
        sched.add(request(2, prompt=7, output=9))
        assert run(sched) == [(1, 7), (2, 7)]
        assert run(sched) == [(1, 1), (2, 1)]
        return sched

    def test_the_latest_arrival_gives_up_its_blocks(self) -> None:
        sched = self.fill()
        batch = sched.schedule(0.0)
        assert batch is not None
        assert shape(batch) == [(1, 1)]
        assert [preempted.id for preempted in batch.preempted] == [2]
        assert sched.running.num_preemptions == 1

    def test_a_preempted_request_is_recomputed_and_continues(self) -> None:
        sched = self.fill()
        preempted = sched.running.requests()[1]
        assert run(sched) == [(1, 1)]
        assert preempted.num_computed == 0
        assert preempted.blocks == []
        assert preempted.prompt_ids == range(7)
        assert preempted.output_ids == [7, 7]
        while len(preempted.output_ids) == 2:
            run(sched)
        assert preempted.output_ids == [7, 7, 7]
        assert preempted.num_preemptions == 1
        while sched.has_work:
            run(sched)
        assert len(preempted.output_ids) == 9  # not 9 more than it had when it was preempted

    def test_a_preempted_request_goes_before_later_arrivals(self) -> None:
        sched = self.fill()
        sched.add(request(3, prompt=2, output=2))
        run(sched)
        assert [waiting.id for waiting in sched.waiting.requests()] == [2, 3]

    def test_a_preempted_request_keeps_the_time_of_its_first_iteration(self) -> None:
        sched = self.fill()
        preempted = sched.running.requests()[1]
        while not preempted.num_preemptions or not preempted.num_computed:
            run(sched, now=5.0)
        assert preempted.first_scheduled_at == 0.0

    def test_no_request_is_admitted_in_an_iteration_that_preempts(self) -> None:
        sched = self.fill()
        sched.add(request(3, prompt=1, output=1))
        assert run(sched) == [(1, 1)]

    def test_a_started_prompt_never_waits_for_memory(self) -> None:
        sched = scheduler(budget=5, blocks=6, block_size=4)
        sched.add(request(1, prompt=1, output=20))
        sched.add(request(2, prompt=14, output=2))  # reserves 4 of the 6 blocks
        lengths = [run(sched) for _ in range(4)]
        assert lengths == [[(1, 1), (2, 4)], [(1, 1), (2, 4)], [(1, 1), (2, 4)], [(1, 1), (2, 2)]]


class TestCancellation:
    def test_a_waiting_request_is_forgotten(self) -> None:
        sched = scheduler()
        sched.add(request(1, prompt=3))
        assert sched.cancel(1)
        assert not sched.has_work
        assert not sched.cancel(1)

    def test_a_running_request_frees_its_blocks_and_its_reservation(self) -> None:
        sched = scheduler(budget=4)
        sched.add(request(1, prompt=40))
        run(sched)
        assert sched.cancel(1)
        assert sched.pool.num_available == sched.pool.num_blocks

    def test_a_request_in_flight_keeps_its_blocks_until_its_batch_completes(self) -> None:
        sched = scheduler()
        sched.add(request(1, prompt=4))
        sched.add(request(2, prompt=4))
        batch = sched.schedule(0.0)
        assert batch is not None
        assert sched.cancel(1)
        assert sched.pool.num_free == sched.pool.num_blocks - 2
        progressed = sched.complete(batch, [7, 8], 0.0)
        assert [(r.id, r.output_ids) for r in progressed] == [(2, [8])]
        assert sched.pool.num_free == sched.pool.num_blocks - 1


class TestTheEnd:
    def test_a_stop_token_ends_a_request(self) -> None:
        sched = scheduler()
        preempted = request(1, prompt=2, stop_ids=frozenset({7}))
        sched.add(preempted)
        run(sched, token=7)
        assert preempted.finish_reason() == "stop"
        assert not sched.has_work

    def test_not_before_the_least_number_of_tokens(self) -> None:
        sched = scheduler()
        patient = request(1, prompt=2, min_tokens=2, stop_ids=frozenset({7}))
        sched.add(patient)
        assert [run(sched) for _ in range(3)] == [[(1, 2)], [(1, 1)], [(1, 1)]]
        assert patient.output_ids == [7, 7, 7]
        assert not sched.has_work

    def test_a_stop_token_as_the_last_of_the_length_counts_as_a_stop(self) -> None:
        sched = scheduler()
        last = request(1, prompt=2, output=1, stop_ids=frozenset({7}))
        sched.add(last)
        run(sched)
        assert last.finish_reason() == "stop"


@pytest.mark.parametrize(
    ("prompt", "output", "message"),
    [
        (0, 1, "empty"),
        (1, -1, "max_tokens"),
        (9_000, 2_000, "model's length of 10000"),
        (399, 3, "KV cache of 400 tokens"),
    ],
)
def test_what_can_never_run_is_refused(prompt: int, output: int, message: str) -> None:
    sched = scheduler(blocks=100)
    with pytest.raises(AdmissionError, match=message):
        sched.add(request(1, prompt, output))
    assert not sched.has_work


def test_the_last_token_needs_no_block_in_the_cache() -> None:
    sched = scheduler(budget=400, blocks=100)
    sched.add(request(1, prompt=399, output=2))
    while sched.has_work:
        run(sched)


def test_a_request_id_cannot_be_used_twice_at_a_time() -> None:
    sched = scheduler()
    sched.add(request(1, prompt=1))
    with pytest.raises(AdmissionError, match="in use"):
        sched.add(request(1, prompt=1))


def test_a_batch_with_too_few_or_too_many_tokens_is_noticed() -> None:
    sched = scheduler()
    sched.add(request(1, prompt=1))
    batch = sched.schedule(0.0)
    assert batch is not None
    with pytest.raises(ValueError, match="samples"):
        sched.complete(batch, [], 0.0)
    with pytest.raises(ValueError, match="samples"):
        sched.complete(batch, [1, 2], 0.0)


class TestPipelines:
    def test_decodes_in_flight_are_left_out(self) -> None:
        sched = scheduler(budget=4)
        sched.add(request(1, prompt=4))
        first = sched.schedule(0.0)
        sched.add(request(2, prompt=4))
        second = sched.schedule(0.0)
        assert shape(first) == [(1, 4)]
        assert shape(second) == [(2, 4)]
        assert sched.schedule(0.0) is None
        assert first is not None
        sched.complete(first, [7], 0.0)
        assert shape(sched.schedule(0.0)) == [(1, 1)]

    def test_the_next_chunk_follows_into_the_pipeline(self) -> None:
        sched = scheduler(budget=4, micro_batches=3)
        sched.add(request(1, prompt=10))
        batches = [sched.schedule(0.0) for _ in range(3)]
        assert [shape(batch) for batch in batches] == [[(1, 4)], [(1, 4)], [(1, 2)]]
        assert [batch.slices[0].start for batch in batches if batch] == [0, 4, 8]
        assert sched.schedule(0.0) is None
        for batch in batches:
            assert batch is not None
            sched.complete(batch, [7] * len(batch.sampling), 0.0)
            sched.check()
        assert shape(sched.schedule(0.0)) == [(1, 1)]

    def test_a_cancelled_prompt_keeps_its_blocks_until_its_last_chunk_is_out(self) -> None:
        sched = scheduler(budget=4, micro_batches=2)
        sched.add(request(1, prompt=10))
        first, second = sched.schedule(0.0), sched.schedule(0.0)
        assert first is not None
        assert second is not None
        sched.cancel(1)
        sched.complete(first, [], 0.0)
        assert sched.pool.num_free < sched.pool.num_blocks
        sched.complete(second, [], 0.0)
        assert sched.pool.num_free == sched.pool.num_blocks
        assert not sched.has_work

    def test_decodes_are_spread_over_the_micro_batches(self) -> None:
        sched = scheduler(micro_batches=2)
        for name in range(5):
            sched.add(request(name, prompt=1))
        run(sched)
        first, second = sched.schedule(0.0), sched.schedule(0.0)
        assert shape(first) == [(0, 1), (1, 1), (2, 1)]
        assert shape(second) == [(3, 1), (4, 1)]
        assert sched.schedule(0.0) is None


class TestDrafts:
    def decoding(self, **options: object) -> Scheduler:
        sched = scheduler(block_size=4, **options)  # type: ignore[arg-type]
        sched.add(request(1, prompt=3, output=9, stop_ids=frozenset({5})))
        sched.add(request(2, prompt=3, output=3))
        run(sched)
        return sched

    def test_accepted_ones_are_computed_and_the_others_are_computed_again(self) -> None:
        sched = self.decoding()
        batch = sched.schedule(0.0)
        assert batch is not None
        batch = sched.add_drafts(batch, [4, 4])
        assert batch.num_drafts == (4, 1)  # the second request may have two more tokens
        assert shape(batch) == [(1, 5), (2, 2)]
        first, second = sched.complete(batch, [7, 8, 9, 6], 0.0, [3, 1])
        assert (first.output_ids, second.output_ids) == ([7, 7, 8, 9], [7, 6])
        assert (first.num_computed, second.num_computed) == (6, 4)
        assert first.is_decode
        assert second.is_decode
        assert run(sched) == [(1, 1), (2, 1)]

    def test_a_stop_among_them_ends_the_request(self) -> None:
        sched = self.decoding()
        batch = sched.schedule(0.0)
        assert batch is not None
        batch = sched.add_drafts(batch, [3, 0])
        first, _ = sched.complete(batch, [8, 5, 9, 7], 0.0, [3, 1])
        assert first.output_ids == [7, 8, 5]
        assert first.finish_reason() == "stop"
        assert sched.take_ended_ids() == [1]
        sched.check()

    def test_there_are_fewer_where_blocks_are_short(self) -> None:
        sched = self.decoding(blocks=3)
        batch = sched.schedule(0.0)
        assert batch is not None
        assert sched.add_drafts(batch, [5, 1]).num_drafts == (4, 0)

    @pytest.mark.parametrize("counts", [None, [1], [0, 4], [4, 1], [2, 2], [1, 1]])
    def test_wrong_counts_are_refused(self, counts: list[int] | None) -> None:
        sched = self.decoding()
        batch = sched.schedule(0.0)
        assert batch is not None
        batch = sched.add_drafts(batch, [2, 0])
        with pytest.raises(ValueError, match=r"batch 2 samples .* tokens, got"):
            sched.complete(batch, [7] * 4, 0.0, counts)
