"""The machine at hand, from an iteration log to a simulated run."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from sarathi.bench.results import load_iterations
from sarathi.engine.config import EngineConfig
from sarathi.errors import SimulationError
from sarathi.simulator.cost_model import BatchShape
from sarathi.simulator.simulation import simulate
from sarathi.simulator.this_cpu.measured_machine import (
    KNOTS,
    LARGE,
    MeasuredCost,
    MeasuredMachine,
    MeasuredNoise,
    cpu_setup,
    fit,
    kind,
    load_machine,
    machine_path,
    pieces,
    save_machine,
)
from sarathi.telemetry.iteration_log import IterationLine, PromptSlice
from tests.simulator.toy import toy_plan

TRUTH = MeasuredCost(
    fixed=0.01,
    slopes=(0.0005, 0.0008, 0.0006, 0.0004),
    attention=2e-7,
    context=3e-6,
    samples=0.0001,
    engine=0.0005,
    engine_samples=0.00002,
)
CHANGE = 0.004


def log(seed: int, count: int = 600, spread: float = 0.0, slow: float = 1.0) -> list[IterationLine]:
    """Iterations that take the true cost, and `slow` times that if they are large."""
    rng = random.Random(seed)
    lines = []
    now, before, decodes = 0.0, 0, 8
    for number in range(1, count + 1):
        decodes = max(1, decodes + rng.choice([0, 0, 0, 0, -1, 1]))
        prompts = []
        if rng.random() < 0.4:
            length = rng.choice([3, 20, 100, 300, 1500])
            prompts.append(PromptSlice(9999, rng.choice([0, 500]), length))
        context = sum(rng.randrange(50, 1500) for _ in range(decodes))
        tokens = decodes + sum(part.length for part in prompts)
        chunks = tuple((part.start, part.length) for part in prompts)
        shape = BatchShape(decodes, context, chunks, decodes, tokens)
        factor = rng.lognormvariate(0, spread) * (slow if tokens > LARGE else 1.0)
        model = factor * (TRUTH.stages(shape)[0] + (CHANGE if tokens != before else 0.0))
        engine = factor * TRUTH.overhead(shape)
        lines.append(
            IterationLine(
                iteration=number,
                time=0.0,
                offset=round(now, 6),
                duration=round(model + 0.8 * engine, 6),
                predicted=None,
                budget=None,
                budget_unit=None,
                tokens=tokens,
                attention=0.0,
                context=context,
                samples=decodes,
                decodes=list(range(decodes)),
                prompts=prompts,
                started=[],
                finished=[],
                cancelled=[],
                preempted=[],
                running=decodes,
                waiting=0,
                free_blocks=100,
                cached_blocks=0,
                parts={"execute": round(model, 6)},
            )
        )
        now += model + engine
        before = tokens
    return lines


def test_a_fit_finds_what_iterations_cost() -> None:
    noise, error = fit([log(1), log(2)])
    assert noise.cost.fixed == pytest.approx(TRUTH.fixed, rel=0.05)
    assert noise.cost.slopes == pytest.approx(TRUTH.slopes, rel=0.15)
    assert noise.cost.attention == pytest.approx(TRUTH.attention, rel=0.05)
    assert noise.cost.context == pytest.approx(TRUTH.context, rel=0.05)
    assert noise.cost.engine == pytest.approx(TRUTH.engine, rel=0.05)
    assert noise.change == pytest.approx(CHANGE, rel=0.1)
    assert error.p90 < 0.01


def test_noise_is_not_taken_for_cost() -> None:
    noise, error = fit([log(1, 1500, spread=0.1)])
    shape = BatchShape(8, 8000, ((0, 100),), 8, 108)
    assert noise.cost.stages(shape)[0] == pytest.approx(TRUTH.stages(shape)[0], rel=0.03)
    assert 0.04 < error.median < 0.1
    # The median error of a normal distribution is two thirds of its deviation.
    factors = sorted(noise.factors[1])
    assert factors[len(factors) // 2] == pytest.approx(1, abs=0.03)
    assert factors[len(factors) * 9 // 10] == pytest.approx(1.136, abs=0.04)


def test_too_few_iterations_are_no_measurement() -> None:
    with pytest.raises(SimulationError, match="20 and 15 iterations were measured"):
        fit([log(1, 20), log(2, 15)])
    with pytest.raises(SimulationError, match="0 iterations"):
        fit([])


def test_few_iterations_are_better_than_none() -> None:
    noise, error = fit([log(1, 50)])
    shape = BatchShape(8, 8000, (), 8, 8)
    assert noise.cost.stages(shape)[0] == pytest.approx(TRUTH.stages(shape)[0], rel=0.3)
    assert 0 < error.count <= 50


def test_what_a_fit_misses_is_kept_by_the_kind_of_iterations() -> None:
    noise, _ = fit([log(1, 1200, slow=1.5)])
    decodes, chunks, whole = (sorted(factors)[len(factors) // 2] for factors in noise.factors)
    assert (decodes, chunks) == pytest.approx((1, 1), abs=0.1)
    assert whole > 1.05
    shapes = (
        BatchShape(4, 400, (), 4, 4),
        BatchShape(4, 400, ((0, 100),), 4, 104),
        BatchShape(0, 0, ((0, 1500),), 1, 1500),
    )
    assert [kind(shape) for shape in shapes] == [0, 1, 2]


def test_pieces_of_tokens_add_up() -> None:
    for tokens in (0, 1, KNOTS[0], KNOTS[0] + 1, KNOTS[-1], 1000):
        assert sum(pieces(tokens)) == tokens
    assert pieces(20) == [4, 12, 4, 0]


def machine(noise: MeasuredNoise | None = None) -> MeasuredMachine:
    found, error = fit([log(1)])
    return MeasuredMachine(
        model="a/model",
        machine="this one",
        measured="2026-01-01",
        num_blocks=100,
        block_size=32,
        max_model_len=2000,
        noise=noise or found,
        error=error,
    )


def test_noise_makes_iterations_take_other_times_with_the_same_median() -> None:
    """The factors and the change of shape are sampled by seed, and repeat with it."""
    noise, _ = fit([log(3, 1500, spread=0.2)])
    jitter, same, other = noise.jitter(1), noise.jitter(1), noise.jitter(2)
    shape = BatchShape(8, 8000, (), 8, 8)
    factors = [jitter(shape) for _ in range(500)]
    assert factors == [same(shape) for _ in range(500)]
    assert factors != [other(shape) for _ in range(500)]
    assert sorted(factors)[250] == pytest.approx(1, abs=0.1)
    quiet = MeasuredNoise(change=CHANGE, factors=([], [], []), cost=TRUTH)
    steady = quiet.jitter(0)
    whole = TRUTH.stages(shape)[0] + TRUTH.overhead(shape)
    assert steady(shape) * whole == pytest.approx(whole + CHANGE)
    assert steady(shape) == 1.0


def test_a_simulated_run_is_as_long_as_that_of_the_machine() -> None:
    """A single request, hence iterations whose times can be added up."""
    quiet = MeasuredNoise(change=CHANGE, factors=([], [], []), cost=TRUTH)
    setup = cpu_setup(machine(quiet), EngineConfig(token_budget=256))
    (record,) = simulate(setup, toy_plan((0.0, 200, 2))).records
    first = BatchShape(0, 0, ((0, 200),), 1, 200)
    second = BatchShape(1, 200, (), 1, 1)
    expected = [
        TRUTH.stages(shape)[0] + TRUTH.overhead(shape) + CHANGE for shape in (first, second)
    ]
    assert record.tokens == pytest.approx([expected[0], sum(expected)])


def test_the_file_is_of_a_model_and_a_machine(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "machine.json"
    save_machine(machine(), path)
    assert load_machine(path, "a/model", "this one") == machine()
    with pytest.raises(SimulationError, match="of the model a/model, not of another"):
        load_machine(path, "another", "this one")
    with pytest.raises(SimulationError, match="of the machine this one, not of that one"):
        load_machine(path, "a/model", "that one")
    with pytest.raises(SimulationError, match="sarathi calibrate a/model"):
        load_machine(tmp_path / "none.json", "a/model", "this one")
    path.write_bytes(b'{"format": 1}')
    with pytest.raises(SimulationError, match="cannot be read"):
        load_machine(path, "a/model", "this one")
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(machine(), format=99)))
    with pytest.raises(SimulationError, match="format 99"):
        load_machine(path, "a/model", "this one")


def test_each_model_has_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine_path("Org/Model.gguf") == tmp_path / "sarathi/this-cpu/org-model.gguf.json"


def test_a_length_beyond_the_blocks_is_refused() -> None:
    with pytest.raises(SimulationError, match="max_model_len is 9000, expected at most 3200"):
        cpu_setup(machine(), EngineConfig(), max_model_len=9000)


def test_iteration_logs_are_read_up_to_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = log(1, 3)
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)) + b'\n{"iter')
    assert load_iterations(path) == lines
