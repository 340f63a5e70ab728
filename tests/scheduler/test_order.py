"""Orders of requests, in schedules by hand."""

from __future__ import annotations

from sarathi.scheduler import ORDERS, Scheduler, SchedulingParams
from tests.scheduler.scenes import PLAIN_MODEL, request, run, scheduler


def by_priority(**options: object) -> Scheduler:
    return scheduler(order=ORDERS["priority"](PLAIN_MODEL, 1.0), **options)  # type: ignore[arg-type]


def by_slack(ttft_target: float = 1.0, **options: object) -> Scheduler:
    return scheduler(order=ORDERS["slack"](PLAIN_MODEL, ttft_target), **options)  # type: ignore[arg-type]


class TestPriority:
    def test_the_least_number_goes_first(self) -> None:
        sched = by_priority(budget=10)
        for name, priority in ((1, 0), (2, 5), (3, -1), (4, 0)):
            sched.add(
                request(name, prompt=10, output=1, params=SchedulingParams(priority=priority))
            )
        assert [run(sched)[0][0] for _ in range(4)] == [3, 1, 4, 2]

    def test_an_urgent_prompt_goes_before_one_that_has_been_started(self) -> None:
        sched = by_priority(budget=10)
        sched.add(request(1, prompt=30, output=1))
        assert run(sched) == [(1, 10)]
        sched.add(request(2, prompt=15, output=1, params=SchedulingParams(priority=-1)))
        assert [run(sched) for _ in range(3)] == [[(2, 10)], [(2, 5), (1, 5)], [(1, 10)]]

    def test_it_takes_the_slot_of_a_less_urgent_request(self) -> None:
        sched = by_priority(max_batch_size=2)
        sched.add(request(1, prompt=4))
        sched.add(request(2, prompt=4))
        run(sched)
        sched.add(request(3, prompt=4, output=2, params=SchedulingParams(priority=-1)))
        assert run(sched) == [(1, 1), (3, 4)]
        assert [r.id for r in sched.waiting.requests()] == [2]
        assert sched.running.num_preemptions == 1

    def test_it_takes_memory_too(self) -> None:
        sched = by_priority(blocks=4, block_size=4)
        sched.add(request(1, prompt=14, output=2))
        run(sched)
        sched.add(request(2, prompt=10, output=2, params=SchedulingParams(priority=-1)))
        assert run(sched) == [(2, 10)]

    def test_but_never_from_an_equal(self) -> None:
        sched = by_priority(max_batch_size=1)
        sched.add(request(1, prompt=4, output=3))
        run(sched)
        sched.add(request(2, prompt=4))
        assert run(sched) == [(1, 1)]
        assert sched.running.num_preemptions == 0

    def test_it_takes_nothing_that_does_not_help(self) -> None:
        sched = by_priority(blocks=30, block_size=4)
        sched.add(request(1, prompt=64, output=40, params=SchedulingParams(priority=-1)))
        for name in (2, 3):
            sched.add(request(name, prompt=10, output=40, params=SchedulingParams(priority=5)))
        run(sched)
        sched.add(request(4, prompt=60, output=2, params=SchedulingParams(priority=-1)))
        assert run(sched) == [(1, 1), (2, 1), (3, 1)]
        assert sched.running.num_preemptions == 0

    def test_a_request_is_preempted_again_only_after_progress(self) -> None:
        sched = by_priority(budget=100, max_batch_size=1)
        sched.add(request(0, prompt=350, output=1))
        for iteration in range(1, 60):
            if iteration % 4 == 0:
                sched.add(request(iteration, 10, output=1, params=SchedulingParams(priority=-1)))
            run(sched)
            if not any(r.id == 0 for r in (*sched.running.requests(), *sched.waiting.requests())):
                return
        raise AssertionError("urgent requests starve the other one")

    def test_it_takes_nothing_from_other_tenants(self) -> None:
        sched = by_priority(budget=50, max_batch_size=2, fair=True)
        finished = {"a": 0, "b": 0}
        for iteration in range(300):
            for tenant, priority in (("a", -5), ("b", 0)):
                name = 2 * iteration + (tenant == "b")
                params = SchedulingParams(priority, tenant)
                sched.add(request(name, 50, output=10, params=params))
            batch = sched.schedule(0.0)
            assert batch is not None
            for ended in sched.complete(batch, [1] * batch.work.samples, 0.0):
                finished[ended.scheduling_params.tenant] += ended.finish_reason() is not None
        assert abs(finished["a"] - finished["b"]) <= 2
        assert sched.running.num_preemptions == 0

    def test_the_least_urgent_is_preempted_when_memory_runs_out(self) -> None:
        sched = by_priority(blocks=5, block_size=4)
        sched.add(request(1, prompt=7, output=9, params=SchedulingParams(priority=1)))
        sched.add(request(2, prompt=7, output=9))
        while not sched.running.num_preemptions:
            run(sched)
        assert [r.id for r in sched.waiting.requests()] == [1]


class TestSlack:
    def test_the_earliest_deadline_goes_first_among_equal_prompts(self) -> None:
        sched = by_slack(budget=10)
        for name, target in ((1, None), (2, 0.5), (3, 30.0)):
            sched.add(
                request(name, prompt=10, output=1, params=SchedulingParams(ttft_target=target))
            )
        for other in sched.waiting.requests():
            assert other.arrival == other.id
        # Deadlines of 2.0, 2.5 and 33 seconds.
        assert [run(sched)[0][0] for _ in range(3)] == [1, 2, 3]

    def test_work_counts_as_much_as_time(self) -> None:
        sched = by_slack(ttft_target=60.0, budget=100)
        sched.add(request(1, prompt=5000, output=1))  # 5 seconds of work
        sched.add(request(2, prompt=100, output=1))  # a deadline that is a second later
        assert run(sched) == [(2, 100)]

    def test_a_prompt_that_misses_its_deadline_is_relegated(self) -> None:
        sched = by_slack(budget=100)
        sched.add(request(1, prompt=200, output=1))  # deadline at 2.0
        sched.add(request(2, prompt=200, output=1))  # deadline at 3.0
        assert run(sched, now=1.9) == [(2, 100)]
        assert sched.prefill_allocator.num_relegations == 1
        assert [run(sched, now=2.1) for _ in range(3)] == [[(2, 100)], [(1, 100)], [(1, 100)]]
        assert sched.prefill_allocator.num_relegations == 1

    def test_a_started_prompt_is_relegated_too(self) -> None:
        sched = by_slack(budget=100)
        sched.add(request(1, prompt=800, output=1))
        assert run(sched, now=1.0) == [(1, 100)]
        sched.add(request(2, prompt=100, output=1, params=SchedulingParams(ttft_target=5.0)))
        assert run(sched, now=1.5) == [(2, 100)]
        assert run(sched, now=1.6) == [(1, 100)]

    def test_what_is_cached_need_not_be_in_time(self) -> None:
        sched = by_slack(budget=1000, prefix_caching=True)
        sched.add(request(1, prompt=900, output=1))
        run(sched, now=1.0)
        sched.add(request(2, prompt=902, output=1))  # deadline at 3.0
        run(sched, now=2.9)
        assert sched.prefill_allocator.num_relegations == 0

    def test_a_preempted_answer_is_not_relegated(self) -> None:
        sched = by_slack(blocks=5, block_size=4)
        sched.add(request(1, prompt=7, output=9))
        sched.add(request(2, prompt=7, output=9))
        while sched.has_work:
            run(sched, now=1.0 if not sched.running.num_preemptions else 100.0)
        assert sched.running.num_preemptions
        assert sched.prefill_allocator.num_relegations == 0

    def test_thousands_that_miss_deadlines_at_once_do_not_delay_an_iteration(self) -> None:
        sched = by_slack(budget=100)
        for name in range(3000):
            sched.add(request(0, prompt=200, output=1) if not name else request(name, 200, 1))
        run(sched, now=5000.0)
        assert sched.prefill_allocator.num_relegations <= 32

    def test_a_relegated_prompt_does_not_block_the_others(self) -> None:
        sched = by_slack(blocks=20, block_size=4)
        sched.add(request(1, prompt=4, output=40))
        run(sched)
        sched.add(request(2, prompt=76, output=1))
        sched.add(request(3, prompt=4, output=1, params=SchedulingParams(ttft_target=100.0)))
        assert (3, 4) in run(sched, now=50.0)

    def test_relegated_prompts_are_preempted_before_their_first_token(self) -> None:
        sched = by_slack(budget=100, max_batch_size=2)
        for name in (1, 2):
            sched.add(request(name, prompt=900, output=1))
        run(sched, now=1.0)
        for now in (3.0, 3.1, 3.2):
            run(sched, now=now)
        sched.add(request(5, prompt=50, output=1, params=SchedulingParams(ttft_target=5.0)))
        assert (5, 50) in run(sched, now=5.0)

    def test_a_prompt_that_misses_its_deadline_preempts_nothing(self) -> None:
        sched = by_slack(budget=100, max_batch_size=1)
        sched.add(request(1, prompt=900, output=1))
        run(sched, now=1.0)
        assert run(sched, now=3.0) == [(1, 100)]
        sched.add(request(5, prompt=50, output=1, params=SchedulingParams(ttft_target=0.01)))
        assert run(sched, now=5.0) == [(1, 100)]
        assert sched.running.num_preemptions == 0
