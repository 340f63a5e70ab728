"""Requests that sample with a mask: deferred samples, and the time that masks take."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.scheduler import (
    DEFERRED,
    BlockPool,
    FixedBudget,
    LatencyBudget,
    LatencyModel,
    Request,
    Scheduler,
    StopCriteria,
)


def request(number: int, prompt: int, output: int = 8, *, constrained: bool = False) -> Request:
    criteria = StopCriteria(max_tokens=output)
    return Request(number, [number] * prompt, criteria, 0.0, constrained=constrained)


@pytest.mark.parametrize("options", [{}, {"deterministic_chunk": 4}, {"micro_batches": 2}], ids=str)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_deferred_token_is_computed_again_and_nothing_else_changes(options, data):
    policy_blocks = data.draw(st.sampled_from([8, 30]))
    scheduler = Scheduler(
        BlockPool(policy_blocks, 4), FixedBudget(6), max_batch_size=3, max_model_len=30, **options
    )
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    requests = [request(number, length) for number, length in enumerate(lengths)]
    for each in requests:
        scheduler.add(each)
    deferred = 0
    for now in range(1000):
        batch = scheduler.schedule(float(now))
        if batch is None:
            break
        before = {r.id: len(r.output_ids) for r in batch.sampling}
        computed = {part.request.id: part for part in batch.slices}
        tokens = []
        for each in batch.sampling:
            late = deferred < 50 and data.draw(st.booleans())
            deferred += late
            tokens.append(DEFERRED if late else 100 + len(each.output_ids))
        progressed = scheduler.complete(batch, tokens, float(now))
        for each, token in zip(batch.sampling, tokens, strict=True):
            assert len(each.output_ids) == before[each.id] + (token != DEFERRED)
            assert (each in progressed) == (token != DEFERRED)
            if token == DEFERRED:
                part = computed[each.id]
                # With fixed chunks, the chunk as it was: other cuts change bits.
                assert each.remaining == (part.length if "deterministic_chunk" in options else 1)
        scheduler.check()
    assert not scheduler.has_work
    for each in requests:
        assert each.output_ids == list(range(100, 108))
    assert scheduler.pool.num_free == scheduler.pool.num_blocks


def test_prompts_get_the_time_that_masks_leave():
    allowances = {}
    for constrained, wait in ((False, 0.05), (True, 0.0), (True, 0.02)):
        model = LatencyModel([1e-3, 1e-4, 0, 0, 0])
        model.mask_wait.seconds = wait
        budget = LatencyBudget(0.1, model)
        scheduler = Scheduler(
            BlockPool(500, 4), budget, max_batch_size=4, max_model_len=1500, latency_model=model
        )
        scheduler.add(request(1, 4, constrained=constrained))
        first = scheduler.schedule(0.0)
        assert first is not None
        scheduler.complete(first, [5], 0.0)
        scheduler.add(request(2, 1400))
        batch = scheduler.schedule(0.0)
        assert batch is not None
        assert batch.num_decodes == 1
        assert batch.constrained == constrained
        assert batch.predicted == pytest.approx(model.predict(batch.work) + constrained * wait)
        assert batch.predicted is not None
        assert batch.predicted <= 0.1
        allowances[constrained, wait] = batch.allowance
    assert allowances[True, 0.0] == allowances[False, 0.05]
    late = LatencyModel([1e-3, 1e-4, 0, 0, 0]).accuracy.late
    assert allowances[True, 0.0] - allowances[True, 0.02] == pytest.approx(0.02 / (1 + late))


def test_a_prompt_in_progress_does_not_count_before_it_samples():
    scheduler = Scheduler(BlockPool(50, 4), FixedBudget(6), max_batch_size=4, max_model_len=60)
    scheduler.add(request(1, 10, constrained=True))
    counts = []
    while (batch := scheduler.schedule(0.0)) is not None:
        counts.append(batch.constrained)
        scheduler.complete(batch, [5] * len(batch.sampling), 0.0)
    assert counts == [0, 1] + [1] * 7


def test_waits_that_make_no_sense_are_not_learned():
    model = LatencyModel([1e-3, 0, 0, 0, 0])
    for constrained, seconds in ((0, 1.0), (1, -1.0), (1, float("nan")), (1, 1e9)):
        model.mask_wait.observe(constrained, seconds)
    assert model.mask_wait.seconds == 0
    for _ in range(100):
        model.mask_wait.observe(4, 0.008)
    assert model.mask_wait.seconds == pytest.approx(0.002, rel=0.01)
    assert model.coefficients == (1e-3, 0, 0, 0, 0)


def test_no_gap_of_others_exceeds_the_prediction_beside_a_heavy_grammar():
    """Under a virtual clock: its masks take 70 ms, of which each iteration waits for up to 5."""
    target, longest, heavy = 0.050, 0.005, 0.070
    truth = LatencyModel([0.010, 0.0002, 0, 0, 0])
    model = LatencyModel(truth.coefficients)
    scheduler = Scheduler(
        BlockPool(1000, 16),
        LatencyBudget(target, model),
        max_batch_size=32,
        max_model_len=3000,
        latency_model=model,
    )
    bound, *others = [request(n, 10, 300, constrained=not n) for n in range(4)]
    prompts = [request(n, 2000, 5) for n in range(10, 22)]
    for each in (bound, *others, *prompts):
        scheduler.add(each)
    now = known = 0.0  # when the mask of the next token is known
    last: dict[int, float] = {}
    gaps: list[float] = []
    errors: list[float] = []
    prompt_tokens = deferrals = 0
    for iteration in range(120):
        batch = scheduler.schedule(now)
        assert batch is not None
        assert batch.predicted is not None
        computed = now + truth.predict(batch.work)
        waited = min(longest, max(0.0, known - computed)) if bound in batch.sampling else 0.0
        end = computed + waited
        late = known > end
        tokens = [DEFERRED if late and each is bound else 7 for each in batch.sampling]
        deferrals += DEFERRED in tokens
        model.mask_wait.observe(batch.constrained, waited)
        settled = iteration > 40  # what is waited for has been learned
        if settled:
            prompt_tokens += batch.work.tokens - batch.num_decodes
        for each in scheduler.complete(batch, tokens, end):
            if each is bound:
                known = end + heavy
            elif each in others:
                if settled:
                    gaps.append(end - last[each.id])
                    errors.append(gaps[-1] - batch.predicted)
                last[each.id] = end
        now = end
    assert deferrals > 40
    assert model.mask_wait.seconds > 0.001
    assert len(bound.output_ids) > 40  # it goes on
    assert len(gaps) == 3 * 79  # the others get a token in every iteration
    assert max(gaps) <= target + longest
    assert max(errors) <= longest  # one wait, where the prediction has the mean,
    assert abs(sum(errors)) / len(errors) <= longest / 10  # which is right
    assert prompt_tokens > 79 * 100
