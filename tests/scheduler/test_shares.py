"""Shares of an iteration: between decodes and prompts, between prompts, between tenants."""

from __future__ import annotations

import pytest

from sarathi.scheduler import FixedBudget, LatencyBudget, LatencyModel, Scheduler, SchedulingParams
from sarathi.scheduler.queue.waiting_queue import FairShares
from tests.scheduler.scenes import PLAIN_MODEL, request, run, scheduler
from tests.scheduler.test_order import by_priority


class TestPrompts:
    """A huge prompt, and the in-order share of one half."""

    def halves(self, budget: int = 100, **options: object) -> Scheduler:
        return scheduler(budget, in_order_share=0.5, **options)  # type: ignore[arg-type]

    def test_small_prompts_pass_a_huge_one(self) -> None:
        sched = self.halves()
        sched.add(request(1, prompt=5000, output=1))
        assert run(sched) == [(1, 100)]
        sched.add(request(2, prompt=60, output=1))
        sched.add(request(3, prompt=20, output=1))
        assert run(sched) == [(1, 50), (3, 20), (2, 30)]
        assert run(sched) == [(1, 70), (2, 30)]
        assert run(sched) == [(1, 100)]

    def test_several_huge_ones_do_not_help(self) -> None:
        sched = self.halves()
        for name in (1, 2, 3):
            sched.add(request(name, prompt=5000, output=1))
        run(sched)
        sched.add(request(4, prompt=30, output=1))
        assert run(sched) == [(1, 70), (4, 30)]

    def test_a_stream_of_small_ones_does_not_hold_up_the_huge_one(self) -> None:
        sched = self.halves()
        sched.add(request(0, prompt=1000, output=1))
        iterations = 0
        while any(r.id == 0 for r in (*sched.running.requests(), *sched.waiting.requests())):
            iterations += 1
            sched.add(request(iterations, prompt=100, output=1))
            run(sched)
        assert iterations <= 1000 / 50

    def test_the_rest_of_a_share_is_for_the_next_in_order(self) -> None:
        sched = self.halves()
        for name, prompt in ((1, 20), (2, 500), (3, 40), (4, 500)):
            sched.add(request(name, prompt=prompt, output=1))
        assert run(sched) == [(1, 20), (2, 40), (3, 40)]

    def test_more_urgent_prompts_share_nothing_with_others(self) -> None:
        sched = by_priority(budget=100, in_order_share=0.5)
        sched.add(request(1, prompt=500, output=1, params=SchedulingParams(priority=-1)))
        sched.add(request(2, prompt=10, output=1))
        assert run(sched) == [(1, 100)]

    def test_a_budget_of_one_token_is_enough(self) -> None:
        sched = self.halves(budget=1)
        sched.add(request(1, prompt=2, output=1))
        sched.add(request(2, prompt=1, output=1))
        while sched.has_work:
            run(sched)

    @pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
    def test_the_share_has_bounds(self, share: float) -> None:
        with pytest.raises(ValueError, match="in-order share"):
            scheduler(in_order_share=share)


class TestPrefills:
    """A wall of decodes, and prompts behind it."""

    def wall(self, sched: Scheduler, decodes: int) -> Scheduler:
        for name in range(decodes):
            sched.add(request(name, prompt=1, output=1000))
        while len(sched.running.decodes) < decodes:
            run(sched)
        return sched

    def test_with_the_papers_budget_no_prompt_gets_past_it(self) -> None:
        sched = self.wall(scheduler(FixedBudget(20)), 20)
        sched.add(request(99, prompt=50))
        assert len(run(sched)) == 20

    def test_a_share_of_the_tokens_is_left_for_them(self) -> None:
        sched = self.wall(scheduler(FixedBudget(20, min_prefill_share=0.2)), 20)
        sched.add(request(99, prompt=50))
        assert run(sched)[20:] == [(99, 5)]  # 5 of 25

    def test_a_share_of_the_time_is_left_for_them(self) -> None:
        # Decodes take 30 ms and the target is 20.
        budget = LatencyBudget(0.02, PLAIN_MODEL, min_prefill_share=0.25)
        sched = self.wall(scheduler(budget), 20)
        sched.add(request(99, prompt=50))
        [(_, tokens)] = run(sched)[20:]
        assert tokens in (9, 10)  # 10 ms of 40

    def test_or_none_if_it_is_zero(self) -> None:
        sched = self.wall(scheduler(LatencyBudget(0.02, PLAIN_MODEL)), 20)
        sched.add(request(99, prompt=50))
        assert len(run(sched)) == 20

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_the_share_has_bounds(self, share: float) -> None:
        with pytest.raises(ValueError, match="share of prompts"):
            FixedBudget(10, share)


class TestTenants:
    def fair(self, budget: int = 10, **options: object) -> Scheduler:
        return scheduler(budget, fair=True, **options)  # type: ignore[arg-type]

    def add(self, sched: Scheduler, tenant: str, names: range, prompt: int = 10) -> None:
        for name in names:
            sched.add(request(name, prompt, output=1, params=SchedulingParams(tenant=tenant)))

    def test_they_alternate_however_many_requests_they_have(self) -> None:
        sched = self.fair()
        self.add(sched, "greedy", range(1, 6))
        self.add(sched, "modest", range(6, 8))
        assert [run(sched)[0][0] for _ in range(7)] == [1, 6, 2, 7, 3, 4, 5]

    def test_without_fairness_the_first_come_are_first_served(self) -> None:
        sched = scheduler(budget=10)
        self.add(sched, "greedy", range(1, 4))
        self.add(sched, "modest", range(4, 5))
        assert [run(sched)[0][0] for _ in range(4)] == [1, 2, 3, 4]

    def test_a_huge_prompt_is_charged_chunk_by_chunk(self) -> None:
        sched = self.fair()
        self.add(sched, "huge", range(1, 2), prompt=1000)
        run(sched)
        self.add(sched, "small", range(2, 4), prompt=20)
        assert [run(sched)[0][0] for _ in range(6)] == [1, 2, 1, 2, 1, 3]

    def test_answers_are_charged_too(self) -> None:
        sched = self.fair()
        sched.add(request(1, prompt=2, output=100, params=SchedulingParams(tenant="talks")))
        for _ in range(30):
            run(sched)
        assert sched.waiting.shares.served("talks") == 2 + 29

    def test_a_pause_is_not_saved_up(self) -> None:
        shares = FairShares()
        for name in ("stays", "goes"):
            shares.enter(name)
        shares.leave("goes")
        for _ in range(10):
            shares.select("stays")
            shares.charge("stays", 10)
        shares.enter("goes")
        assert shares.served("goes") == 100  # as "stays"

    def test_tenants_that_are_gone_are_forgotten(self) -> None:
        shares = FairShares()
        shares.enter("stays")
        for name in map(str, range(100_000)):
            shares.enter(name)
            shares.select(name)
            shares.charge(name, 5)
            shares.leave(name)
        assert len(shares._served) < 3000


class TestOwnTargets:
    def test_the_most_urgent_decode_decides(self) -> None:
        sched = scheduler(LatencyBudget(0.1, PLAIN_MODEL), in_order_share=0.5)
        sched.add(request(1, prompt=1))
        run(sched)
        sched.add(request(2, prompt=5000))
        [_, (_, before)] = run(sched)
        assert before == 79  # 100 ms / 1.1 less 10 for the iteration and 1 for the decode
        sched.add(request(3, prompt=1, params=SchedulingParams(tbt_target=0.05)))
        while len(sched.running.decodes) < 2:
            run(sched)
        [*_, (_, after)] = run(sched)
        assert after == 31  # 50 ms / 1.1 less 12, and 4 % as room for the next iterations

    def test_a_tiny_one_does_not_take_everything_from_prompts(self) -> None:
        sched = scheduler(LatencyBudget(0.1, PLAIN_MODEL), in_order_share=0.5)
        sched.add(request(1, prompt=1, params=SchedulingParams(tbt_target=1e-6)))
        run(sched)
        sched.add(request(2, prompt=5000))
        [_, (_, tokens)] = run(sched)
        assert tokens == 34  # as with half of the target

    def test_a_target_that_no_iteration_meets_does_not_stop_prompts(self) -> None:
        sched = scheduler(LatencyBudget(0.001, PLAIN_MODEL))
        sched.add(request(1, prompt=5000))
        [(_, tokens)] = run(sched)
        assert tokens == 34  # four times an iteration of one token, less what is fixed

    def test_time_that_has_passed_is_missing(self) -> None:
        sched = scheduler(LatencyBudget(0.1, PLAIN_MODEL))
        sched.add(request(1, prompt=1))
        run(sched, now=5.0)
        sched.add(request(2, prompt=500))
        [_, (_, tokens)] = run(sched, now=5.04)
        assert tokens == 43  # 60 ms / 1.1 less 11

    def test_without_decodes_chunks_are_long_but_bounded(self) -> None:
        sched = scheduler(LatencyBudget(0.1, PLAIN_MODEL))
        sched.add(request(1, prompt=5000))
        [(_, tokens)] = run(sched)
        assert tokens in (389, 390)  # four times the target


class TestSteadySizes:
    """An iteration of another size than the one before costs extra."""

    def sizes(self, model: LatencyModel, iterations: int) -> list[int]:
        sched = scheduler(LatencyBudget(0.1, model))
        sched.add(request(1, prompt=1))
        run(sched)
        sched.add(request(2, prompt=9000))
        return [sum(tokens for _, tokens in run(sched)) for _ in range(iterations)]

    def test_a_prompt_is_cut_as_before_while_that_wastes_little(self) -> None:
        # The deeper a prompt, the longer its tokens take.
        deep = LatencyModel([0.01, 0.0005, 2e-7, 0.0, 0.0])
        sizes = self.sizes(deep, 40)
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < 0.7 * sizes[0]
        assert len(set(sizes)) < 20

    def test_and_stays_the_same_where_nothing_changes(self) -> None:
        assert len(set(self.sizes(PLAIN_MODEL, 20)[1:])) == 1
