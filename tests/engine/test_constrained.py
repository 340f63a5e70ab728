"""Requests with a grammar in the engine: deferred samples, preemption, resumption, slow masks."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.backends.runner import InlineRunner
from sarathi.engine.core import EngineCore
from sarathi.engine.messages import TokenOutput
from sarathi.sampling.grammar import Grammar, choice, lark, regex
from sarathi.sampling.grammar_masks import SLOW_SECONDS, GrammarMask, GrammarMasks
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import NO_TOKEN, Sampler
from sarathi.scheduler import BlockPool, FixedBudget, LatencyModel, Scheduler
from sarathi.telemetry.recorder import IterationRecord
from tests.engine.fake_pipeline import Pipeline
from tests.engine.test_resume import BLOCK, LENGTH, Rememberer
from tests.grammar_vocabulary import END, TOKENS, PatientMasks, decode, slow_down, tokenizer

VOCAB = len(TOKENS)
PATTERNS = ["(ab|c){3,9}", "[0-3]{2}-[a-c]{1,14}", '\\{"a": (yes|no)\\}', "(aa|ab|abc)*x", "[a-c]+"]


class LateMasks(PatientMasks):
    """Masks of which each is late now and then, by chance and not by the clock."""

    def __init__(self, seed: int, share: float) -> None:
        super().__init__()
        self._random, self._share = random.Random(seed), share
        self._late: list[GrammarMask] = []

    def wait(self, masks: Iterable[GrammarMask], seconds: float, *, slow: bool) -> float:
        for mask in self._late:
            mask.ready = True
        masks = list(masks)
        super().wait(masks, seconds, slow=slow)
        self._late = [mask for mask in masks if self._random.random() < self._share]
        for mask in self._late:
            mask.ready = False
        return 0.0


class Log:
    """Keeps the records of iterations."""

    def __init__(self) -> None:
        self.records: list[IterationRecord] = []

    def record(self, record: IterationRecord) -> None:
        self.records.append(record)

    def arrived(self, request: object) -> None: ...
    def cancelled(self, request_id: int, now: float) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def engine(
    masks: GrammarMasks,
    *,
    budget: int = 16,
    blocks: int = 24,
    log: Log | None = None,
    stages: int = 1,
    **more: object,
) -> EngineCore:
    scheduler = Scheduler(
        BlockPool(blocks, BLOCK),
        FixedBudget(budget),
        max_batch_size=6,
        max_model_len=LENGTH,
        micro_batches=stages,
        **more,  # type: ignore[arg-type]
    )
    executor = Rememberer(VOCAB)
    runner = InlineRunner(executor, Sampler(VOCAB)) if stages == 1 else Pipeline(executor, stages)
    runner.sampler_slots.grammars = masks
    return EngineCore(runner, scheduler, [END], [] if log is None else [log])


def run(core: EngineCore) -> dict[int, list[TokenOutput]]:
    outputs: dict[int, list[TokenOutput]] = {}
    while core.has_work:
        result = core.step()
        assert not result.failures
        for output in result.outputs:
            outputs.setdefault(output.id, []).append(output)
    return outputs


def tokens(outputs: list[TokenOutput]) -> list[int]:
    return [output.token for output in outputs if output.token != NO_TOKEN]


def content(outputs: list[TokenOutput]) -> tuple[object, ...]:
    """What does not depend on the batches: tokens, and log probabilities of output and prompt."""
    return (
        tokens(outputs),
        outputs[-1].finish_reason,
        [output.logprobs for output in outputs if output.token != NO_TOKEN],
        scored(outputs),
    )


def scored(outputs: list[TokenOutput]) -> list[TokenLogprobs]:
    return [entry for output in outputs for entry in output.prompt_logprobs or ()]


request = st.tuples(
    st.lists(st.integers(0, VOCAB - 3), min_size=1, max_size=14),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1.0]),
        seed=st.integers(0, 1000),
        max_tokens=st.sampled_from([10, 20]),
        grammar=st.sampled_from([None, *map(regex, PATTERNS)]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        logprobs=st.sampled_from([None, 1]),
        prompt_logprobs=st.sampled_from([None, None, 1]),
    ),
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(request, min_size=1, max_size=5),
    share=st.sampled_from([0.0, 0.3, 0.8]),
    budget=st.sampled_from([3, 16]),
    blocks=st.sampled_from([9, 24]),
    seed=st.integers(0, 1000),
    cut=st.floats(0, 1),
    options=st.sampled_from([{}, {"deterministic_chunk": 4}, {"stages": 2}]),
)
def test_outputs_do_not_depend_on_deferrals_preemption_or_resumption(
    requests, share, budget, blocks, seed, cut, options
):
    expected: dict[int, list[TokenOutput]] = {}
    for number, (prompt, params) in enumerate(requests):
        alone = engine(LateMasks(0, 0.0))
        alone.submit(number, prompt, params, arrival=0.0)
        expected |= run(alone)
        if params.grammar is not None:
            last = expected[number][-1]
            if last.finish_reason == "stop":
                pattern = PATTERNS[[regex(each) for each in PATTERNS].index(params.grammar)]
                assert re.fullmatch(pattern, decode(tokens(expected[number])))
    together = engine(LateMasks(seed, share), budget=budget, blocks=blocks, **options)
    for number, (prompt, params) in enumerate(requests):
        together.submit(number, prompt, params, arrival=0.0)
    outputs = run(together)
    assert len(outputs) == len(requests)
    for number in outputs:
        assert content(outputs[number]) == content(expected[number])
    together.scheduler.check()

    prompt, params = requests[0]
    whole = tokens(expected[0])
    have = int(cut * (len(whole) - 1))
    resumed = engine(LateMasks(seed, share), **options)
    num_scored = len(scored(expected[0]))
    resumed.submit(0, prompt, params, 0.0, output_ids=whole[:have], num_scored=num_scored)
    assert tokens(run(resumed)[0]) == whole[have:]


def constrained(grammar: Grammar, **more: object) -> SamplingParams:
    return SamplingParams(temperature=0, grammar=grammar, **more)  # type: ignore[arg-type]


def test_a_complete_grammar_ends_the_output_whatever_else_is_asked_for():
    core = engine(LateMasks(0, 0.0))
    core.submit(1, [1, 2], constrained(choice(["no"]), max_tokens=9), 0.0)
    core.submit(2, [1, 2], constrained(choice(["no"]), max_tokens=9, min_tokens=9), 0.0)
    core.submit(3, [1, 2], constrained(choice(["no"]), max_tokens=9, ignore_eos=True), 0.0)
    for outputs in run(core).values():
        assert decode(tokens(outputs)) == "no"
        assert outputs[-1].token == END
        assert outputs[-1].finish_reason == "stop"


def test_a_request_whose_grammar_fails_ends_alone():
    core = engine(LateMasks(0, 0.0))
    core.submit(1, [1, 2], constrained(lark("start: foo")), 0.0)
    core.submit(2, [1, 2], constrained(choice(["no"]), max_tokens=9), 0.0)
    core.submit(3, [1, 2], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True), 0.0)
    failures, counts = [], {1: 0, 2: 0, 3: 0}
    while core.has_work:
        result = core.step()
        failures += result.failures
        for output in result.outputs:
            counts[output.id] += 1
    assert [failure.id for failure in failures] == [1]
    assert "unknown name" in failures[0].message
    assert counts[1] == 0
    assert counts[3] == 9
    assert core.stats.free_blocks == core.stats.total_blocks


def test_no_iteration_of_others_waits_for_slow_masks(monkeypatch: pytest.MonkeyPatch):
    """Plain streams get a token in every iteration; only the slow request misses some."""
    slow_down(monkeypatch, "y", 10 * SLOW_SECONDS)
    model = LatencyModel([1e-3, 1e-5, 0, 0, 1e-5])
    log = Log()
    masks = GrammarMasks(tokenizer)
    core = engine(masks, log=log, latency_model=model)
    plain = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    for number in (1, 2, 3):
        core.submit(number, [number, 4], plain, 0.0)
    core.submit(9, [5], constrained(regex("(x|y){4}"), max_tokens=9), 0.0)
    outputs = run(core)
    decodes = [record for record in log.records if record.batch.num_decodes >= 3]
    assert len(decodes) >= 19
    for record in decodes:
        assert {1, 2, 3} <= {output.id for output in record.outputs}
    # The slow one was computed again and again meanwhile, and got its tokens in the end.
    assert len(tokens(outputs[9])) == 5
    assert re.fullmatch("(x|y){4}", decode(tokens(outputs[9])))
    tried = sum(9 in {r.id for r in record.batch.sampling} for record in log.records)
    assert tried > 5
    assert all(
        record.batch.constrained == 1
        for record in log.records
        if record.batch.slices and 9 in {r.id for r in record.batch.sampling}
    )
    assert core.stats.free_blocks == core.stats.total_blocks


def test_waits_are_learned_and_become_part_of_the_prediction():
    model = LatencyModel([1e-3, 1e-5, 0, 0, 1e-5])

    class Waiting(LateMasks):
        def wait(self, masks: Iterable[GrammarMask], seconds: float, *, slow: bool) -> float:
            masks = list(masks)
            super().wait(masks, seconds, slow=slow)
            return 0.004 * len(masks)

    log = Log()
    core = engine(Waiting(0, 0.0), log=log, latency_model=model)
    for number in (1, 2):
        core.submit(number, [1, 2], constrained(regex("[ab]{50}"), max_tokens=40), 0.0)
    run(core)
    assert model.mask_wait.seconds == pytest.approx(0.004, rel=0.1)
    last = log.records[-1].batch
    assert last.constrained == 2
    assert last.predicted is not None
    plain = model.predict(last.work)
    assert last.predicted - plain == pytest.approx(0.008, rel=0.2)


def test_cancelling_a_request_that_is_being_compiled_leaves_nothing():
    core = engine(GrammarMasks(tokenizer))
    core.submit(1, [1], constrained(regex("(a|b){200}")), 0.0)
    core.cancel(1)
    assert not core.has_work
    assert core.stats.free_blocks == core.stats.total_blocks
