"""The simulator decides what the engine decides, batch by batch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarathi.backends.runner import InlineRunner
from sarathi.backends.step import Step
from sarathi.bench.workload.workload import Plan
from sarathi.engine.core import EngineCore
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import Sampler
from sarathi.scheduler import POLICIES, AdmissionError, Batch
from sarathi.simulator.cost_model import BatchShape
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulation import simulate
from sarathi.telemetry.iteration_log import IterationLine, IterationLog
from sarathi.telemetry.recorder import Recorder
from tests.simulator.toy import ToyCost, toy_plan, toy_setup
from tests.simulator.virtual_pipeline import VOCABULARY, Clock, Pipeline

Decision = tuple[int, list[tuple[int, int, int]], list[int]]


def decision(batch: Batch) -> Decision:
    """Decodes, slices and preempted requests."""
    slices = [(part.request.id, part.start, part.length) for part in batch.slices]
    return batch.num_decodes, slices, [request.id for request in batch.preempted]


def simulated(setup: Setup, plan: Plan) -> list[Decision]:
    seen: list[Decision] = []
    simulate(setup, plan, on_batch=lambda replica, batch, *times: seen.append(decision(batch)))
    return seen


def prompt_ids(plan: Plan) -> list[list[int]]:
    """Alike exactly where they are of one conversation."""
    return [
        [(97 * request.conversation + position) % VOCABULARY for position in range(length)]
        for request in plan
        for length in [request.prompt_tokens]
    ]


def in_the_engine(setup: Setup, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[Decision]:
    """What the engine's own loop computes, on a clock that its runner moves."""
    clock = Clock()
    monkeypatch.setattr("sarathi.engine.core.time", clock)
    assert isinstance(setup.cost, ToyCost)
    runner = Pipeline(setup.cost, clock)
    scheduler = setup.scheduler(prefix_caching=bool(plan.turns.any()))
    schedule = scheduler.schedule
    seen: list[Decision] = []

    def watched(now: float) -> Batch | None:
        runner.batch = schedule(now)
        if runner.batch is not None and runner.batch.slices:
            seen.append(decision(runner.batch))
        return runner.batch

    monkeypatch.setattr(scheduler, "schedule", watched)
    core = EngineCore(runner, scheduler, eos_ids=())
    coming = list(enumerate(zip(plan, prompt_ids(plan), strict=True)))
    while coming or core.has_work:
        while coming and coming[0][1][0].at <= clock.now:
            index, (planned, ids) = coming.pop(0)
            params = SamplingParams(max_tokens=planned.output_tokens, temperature=0)
            try:
                core.submit(index, ids, params, planned.at)
            except AdmissionError:
                continue
        runner.comes = coming[0][1][0].at if coming else None
        if core.has_work:
            core.step()
        elif coming:
            clock.now = coming[0][1][0].at
    assert runner.most <= runner.depth
    return seen


requests = st.lists(
    st.tuples(
        st.floats(0, 0.3, allow_subnormal=False), st.integers(1, 120), st.integers(1, 25)
    ).map(lambda r: (round(r[0], 4), r[1], r[2])),
    min_size=1,
    max_size=25,
).map(sorted)
engines: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries(
        {"policy": st.sampled_from(sorted(POLICIES)), "max_batch_size": st.integers(1, 9)}
    ).filter(lambda options: options["policy"] != "sarathi"),
    st.fixed_dictionaries(
        {
            "token_budget": st.integers(1, 60),
            "max_batch_size": st.integers(1, 9),
            "in_order_share": st.sampled_from([1.0, 0.5]),
        }
    ),
    st.fixed_dictionaries(
        {
            "tbt_target": st.floats(0.005, 0.2),
            "order": st.sampled_from(["fcfs", "slack"]),
            "in_order_share": st.sampled_from([1.0, 0.5]),
            "min_prefill_share": st.sampled_from([0.0, 0.1]),
        }
    ),
)


@given(requests, engines, st.integers(40, 200), st.booleans(), st.randoms())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_batches_are_those_of_the_engine(
    monkeypatch: pytest.MonkeyPatch,
    arrivals: list[tuple[float, int, int]],
    options: dict[str, Any],
    blocks: int,
    turns: bool,
    random: Any,
) -> None:
    """The same arrivals and times of iterations, whatever the engine's options are."""
    names = [random.randrange(4) for _ in arrivals] if turns else ()
    plan = toy_plan(*arrivals, conversations=names)
    cost = ToyCost(context=1e-6, overhead_seconds=0.001)
    setup = toy_setup(cost, blocks=blocks, max_model_len=150, **options)
    with monkeypatch.context() as patch:
        expected = in_the_engine(setup, plan, patch)
    assert simulated(setup, plan) == expected


stages = st.sampled_from(
    [(1.0,), (0.5, 0.5), (0.3, 0.7), (0.7, 0.3), (0.2, 0.3, 0.5), (0.5, 0.1, 0.4)]
)


@given(
    requests,
    engines,
    stages.filter(lambda factors: len(factors) > 1),
    st.integers(40, 200),
    st.booleans(),
    st.randoms(),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_pipeline_has_the_batches_of_the_engines(
    monkeypatch: pytest.MonkeyPatch,
    arrivals: list[tuple[float, int, int]],
    options: dict[str, Any],
    factors: tuple[float, ...],
    blocks: int,
    turns: bool,
    random: Any,
) -> None:
    # No request arrives at the very moment at which a stage has computed something.
    arrivals = [(at + 1e-5 * math.e, prompt, output) for at, prompt, output in arrivals]
    names = [random.randrange(4) for _ in arrivals] if turns else ()
    plan = toy_plan(*arrivals, conversations=names)
    cost = ToyCost(context=1e-6, overhead_seconds=0.001, hop_seconds=0.0007, stage_factors=factors)
    setup = toy_setup(cost, blocks=blocks, max_model_len=150, **options)
    with monkeypatch.context() as patch:
        expected = in_the_engine(setup, plan, patch)
    assert simulated(setup, plan) == expected


class Slow:
    """An executor whose iterations take a little while, on the machine's own clock."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    def pooled(self) -> np.ndarray:
        raise AssertionError("no request asks for an embedding")

    def execute(self, step: Step) -> np.ndarray:
        time.sleep(self._random.uniform(1e-4, 2e-3))
        return np.zeros((len(step.sample_rows), VOCABULARY), np.float32)


class Replay:
    """Gives each iteration the time that is next on a list."""

    num_stages = 1

    def __init__(self, seconds: Iterator[float]) -> None:
        self._seconds = seconds

    def stages(self, shape: BatchShape) -> Sequence[float]:
        return (next(self._seconds),)

    def hop(self, shape: BatchShape) -> float:
        return 0.0

    def overhead(self, shape: BatchShape) -> float:
        return 0.0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_recorded_iteration_log_is_repeated(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are whole microseconds, as the log has them, so that sums are exact."""
    budget = {"token_budget": 48} if POLICIES[policy].requires_budget else {}
    setup = toy_setup(policy=policy, blocks=90, max_model_len=200, max_batch_size=6, **budget)
    random = np.random.default_rng(1)
    lengths = [(int(random.integers(1, 100)), int(random.integers(1, 30))) for _ in range(40)]
    wanted = sorted(random.integers(0, 60, size=len(lengths)).tolist())

    path = tmp_path / "log.jsonl"
    log: Recorder = IterationLog(str(path), time.monotonic(), None)
    core = EngineCore(InlineRunner(Slow(), Sampler(VOCABULARY)), setup.scheduler(False), (), [log])
    came: list[int] = []  # before which iteration each request came
    iteration = 0
    while core.has_work or len(came) < len(lengths):
        while len(came) < len(lengths) and (wanted[len(came)] <= iteration or not core.has_work):
            prompt, output = lengths[len(came)]
            params = SamplingParams(max_tokens=output, temperature=0)
            core.submit(len(came), [1] * prompt, params, float(iteration))
            came.append(iteration)
        core.step()
        iteration += 1
    core.close()

    decoder = msgspec.json.Decoder(IterationLine)
    lines = [decoder.decode(text) for text in path.read_bytes().splitlines()]
    begins = [float(round(1e6 * line.offset)) for line in lines]
    plan = toy_plan(*((begins[at], *lengths[index]) for index, at in enumerate(came)))
    # An iteration in which requests are preempted and nothing runs takes no virtual time.
    real = [(begin, line) for begin, line in zip(begins, lines, strict=True) if line.tokens]
    lasting = [after[0] - before[0] for before, after in pairwise(real)]
    model = setup.profile()
    monkeypatch.setattr(Setup, "profile", lambda self: model)
    replay = Replay(iter([*lasting, 1.0]))
    found = [
        ([name for name, *_ in slices[:count]], slices[count:])
        for count, slices, _ in simulated(replace(setup, cost=replay), plan)
    ]
    assert len(real) > 50
    assert found == [
        (line.decodes, [(part.id, part.start, part.length) for part in line.prompts])
        for _, line in real
    ]
