"""The experiments with few requests, and with invented capacities: all searches take minutes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from sarathi.errors import SimulationError
from sarathi.simulator.reproduction import published
from sarathi.simulator.reproduction.capacity_experiments import TARGETS
from sarathi.simulator.reproduction.evaluation import STUDIES, reproduce
from sarathi.simulator.reproduction.experiment import ExperimentResult
from sarathi.simulator.reproduction.jobs import (
    ARXIV,
    MISTRAL,
    RESOLUTION,
    SHAREGPT,
    TESTBEDS,
    YI,
    CapacityJob,
    FoundCapacity,
    Job,
    Options,
    RateJob,
    StallJob,
    by_target,
    orca,
    sarathi,
    setup_of,
    trace_file,
    vllm,
)
from sarathi.simulator.reproduction.published import (
    UNKNOWN,
    Comparison,
    Published,
    comparison_table,
    gain,
)
from sarathi.telemetry import Summary

FEW = Options(requests=12)


def of(what: float | None, value: float) -> Comparison:
    return Comparison("x", Published(value, "Table 9"), "s", ours=what)


@pytest.mark.parametrize(
    ("ours", "value", "ratio", "far"),
    [(2.0, 2.0, 1.0, False), (2.4, 2.0, 1.2, False), (2.6, 2.0, 1.3, True), (1.0, 2.0, 0.5, True)],
)
def test_ratios_are_of_ours_to_the_published(
    ours: float, value: float, ratio: float, far: bool
) -> None:
    compared = of(ours, value)
    assert compared.ratio == pytest.approx(ratio)
    assert compared.far is far
    assert compared.reason == (UNKNOWN if far else "")


def test_a_reason_is_given_only_where_values_differ() -> None:
    assert replace(of(4.0, 2.0), why="because").reason == "because"
    assert replace(of(2.0, 2.0), why="because").reason == ""


def test_a_missing_value_has_no_ratio() -> None:
    compared = of(None, 2.0)
    assert compared.ratio is None
    assert compared.reason == UNKNOWN
    table = comparison_table("", "", [compared])
    assert table is not None
    assert table.rows[0][3].text == "-"


def test_gains() -> None:
    assert gain(3.0, 2.0) == 1.5
    assert gain(None, 2.0) is None
    assert gain(3.0, None) is None


class InventedResults(dict[Job, Any]):
    """Invented capacities, one run for all rates, and everything else simulated when needed."""

    def __init__(self) -> None:
        super().__init__()
        self.alike: dict[Any, Any] = {}

    def __missing__(self, job: Job) -> Any:
        if isinstance(job, CapacityJob):
            rate = {"orca": 1.0, "vllm": 2.0, "sarathi": 6.0}[job.first.system.policy]
            found: Any = tuple(
                FoundCapacity(target, rate, 0.9 * rate, 1.1 * rate, "too late", 0.5 * rate)
                for target in job.targets
            )
        elif isinstance(job, RateJob):
            alike = job.testbed, job.system, job.dataset
            found = self.alike.setdefault(alike, None) or job.run()
            self.alike[alike] = found
        else:
            found = job.run()
        self[job] = found
        return found


@pytest.fixture(scope="module")
def invented() -> InventedResults:
    return InventedResults()


@pytest.fixture(scope="module")
def all_of_them(invented: InventedResults) -> dict[str, ExperimentResult]:
    return {name: ExperimentResult(study(FEW), invented) for name, study in STUDIES.items()}


def test_every_experiment_has_tables_figures_and_values(
    all_of_them: dict[str, ExperimentResult],
) -> None:
    for name, found in all_of_them.items():
        assert found.experiment.name == name
        assert found.tables
        assert found.experiment.figures
        assert found.values
        assert found.accuracy


def test_results_use_exactly_the_jobs_of_their_experiments(
    all_of_them: dict[str, ExperimentResult], invented: InventedResults
) -> None:
    assert all_of_them
    assert set(invented) == {job for study in STUDIES.values() for job in study(FEW).jobs}


def test_every_published_value_has_a_source(all_of_them: dict[str, ExperimentResult]) -> None:
    compared = [one for found in all_of_them.values() for one in found.comparisons]
    assert len(compared) > 50
    for one in compared:
        assert one.published.where
        assert one.published.source.endswith(("printed", "artifact"))
        assert one.published.value > 0
        assert not one.far or one.reason


def test_tables_have_as_many_cells_as_columns(all_of_them: dict[str, ExperimentResult]) -> None:
    for found in all_of_them.values():
        own = comparison_table(found.experiment.words.title, "", found.comparisons)
        for table in filter(None, (*found.tables, own)):
            assert all(len(row) == len(table.columns) for row in table.rows), table.title


def test_the_headline_is_of_sarathi_and_its_rivals(
    all_of_them: dict[str, ExperimentResult],
) -> None:
    mistral, yi, falcon = all_of_them["capacity"].headline
    assert [mistral.published.value, yi.published.value, falcon.published.value] == [2.6, 3.7, 5.6]
    assert mistral.ours == yi.ours == 3.0  # over vLLM
    assert falcon.ours == 6.0  # over Orca, too


def test_vllm_stalls_longer_than_sarathi() -> None:
    few = replace(FEW, requests=60)  # more than memory has room for
    theirs = StallJob(vllm(256), few).run()
    ours = StallJob(sarathi(1536, 256), few).run()
    assert theirs.longest == max(theirs.silences) > 1
    assert theirs.longest > 2 * ours.longest
    assert ours.silences == []
    for found in (theirs, ours):
        assert list(found.times) == sorted(found.times)
        assert list(found.tokens) == sorted(found.tokens)
    assert theirs.tokens[-1] == ours.tokens[-1]


def test_the_ablation_orders_as_the_papers() -> None:
    few = replace(FEW, requests=32)
    [experiment] = reproduce(["ablation"], few, workers=1)
    for dataset in ("sharegpt", "arxiv"):
        tbt = {
            (one["scheduler"], one["budget"]): one["tbt_p99"]
            for one in experiment.values
            if one["dataset"] == dataset
        }
        for budget in (512, 1024):
            both, chunks = tbt["sarathi", budget], tbt["chunked_only", budget]
            assert both < chunks < tbt["hybrid_only", 1024]


def test_chunks_cost_more_the_smaller_they_are(all_of_them: dict[str, ExperimentResult]) -> None:
    ratios = {
        (one["prompt"], one["chunk"]): one["ratio"]
        for one in all_of_them["chunking-overhead"].values
    }
    for length in (2047, 4095, 8191, 16383):
        assert ratios[length, 512] > ratios[length, 1024] > ratios[length, 2048]


def test_tensor_parallelism_over_ethernet_decodes_more_slowly(
    all_of_them: dict[str, ExperimentResult],
) -> None:
    values = [one for one in all_of_them["falcon-parallelism"].values if "tbt_p50" in one]
    by_split = {(one["split"], one["batch"]): one["tbt_p50"] for one in values}
    for batch in (32, 64, 128):
        assert by_split["TP8", batch] > by_split["TP4-PP2", batch]


def test_one_search_evaluates_a_run_by_several_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose P99 TBT is a tenth of the rate."""
    job = CapacityJob(RateJob(MISTRAL, vllm(), SHAREGPT, 0.7, FEW), (0.1, 0.5))
    summary = RateJob(MISTRAL, vllm(), SHAREGPT, 0.5, FEW).run()
    delay = structs.replace(summary.scheduling_delay, p50=0.1, p50_interval=(0.1, 0.1))
    runs: list[tuple[float, int]] = []

    def run(self: CapacityJob, rate: float, requests: int) -> Summary:
        runs.append((rate, requests))
        tbt = structs.replace(
            summary.tbt, p99=0.1 * rate, p99_interval=(0.0999 * rate, 0.1001 * rate)
        )
        return structs.replace(summary, tbt=tbt, scheduling_delay=delay)

    monkeypatch.setattr(CapacityJob, "_run", run)
    strict, relaxed = job.run()
    assert len(runs) == len(set(runs))
    assert strict.capacity is not None
    assert relaxed.capacity is not None
    assert 1 / (1 + RESOLUTION) < strict.capacity <= 1
    assert 5 / (1 + RESOLUTION) < relaxed.capacity <= 5
    assert (strict.target, relaxed.target) == (0.1, 0.5)
    assert "P99 TBT" in strict.bound
    alone = len(runs)
    runs.clear()
    for target in job.targets:
        replace(job, targets=(target,)).run()
    assert len(runs) > alone


def test_settings_are_the_papers() -> None:
    by_name = {testbed.model: testbed for testbed in TESTBEDS}
    targets = [(testbed.strict, testbed.relaxed) for testbed in TESTBEDS]
    assert targets == [(0.1, 0.5), (0.2, 1.0), (1.0, 5.0), (1.0, 5.0)]
    assert by_name["llama2-70b"].relaxed_budget == 1536
    assert by_name["falcon-180b"].deployment(8192).num_nodes == 2
    for system, budget in ((vllm(), 16384), (sarathi(512), 512), (orca(8), None)):
        config = system.config(ARXIV.max_total)
        assert config.token_budget == budget
        assert (config.in_order_share, config.min_prefill_share) == (1.0, 0.0)
    setup = setup_of(YI, sarathi(512), 8192)
    assert setup.description["overhead"] == "paper"
    assert by_target(0.2).config(8192).tbt_target == 0.2


def test_what_several_experiments_need_is_simulated_once() -> None:
    shared = set(STUDIES["capacity"](FEW).jobs) & set(STUDIES["falcon-parallelism"](FEW).jobs)
    assert len(shared) == 3  # vLLM, and Sarathi with both budgets


def test_only_the_trace_of_sharegpt_is_the_papers(tmp_path: Any) -> None:
    assert trace_file(SHAREGPT, str(tmp_path)) is None
    (tmp_path / "sharegpt_8k.csv").write_text("num_prefill_tokens,num_decode_tokens\n5,5\n")
    assert trace_file(SHAREGPT, str(tmp_path)) == tmp_path / "sharegpt_8k.csv"
    assert trace_file(ARXIV, str(tmp_path)) is None
    job = RateJob(MISTRAL, vllm(), SHAREGPT, 1.0, Options(3, 0, str(tmp_path)))
    assert job.run().ttft.count == 3


def test_an_unknown_experiment_is_refused() -> None:
    with pytest.raises(SimulationError, match="stalls"):
        reproduce(["figure-99"], FEW)


def test_the_tables_of_published_values_are_whole() -> None:
    assert len(published.ABLATION) == 6
    assert len(published.CHUNKED) == 12
    assert set(published.HEADLINE) < {testbed.model for testbed in TESTBEDS}
    known = {(testbed.model, dataset.name) for testbed in TESTBEDS for dataset in (SHAREGPT, ARXIV)}
    assert {key[:2] for key in published.GAINS} <= known
    assert set(TARGETS) == {"strict", "relaxed"}
