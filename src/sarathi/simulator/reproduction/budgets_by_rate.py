"""Latency against load: vLLM's batch sizes against Sarathi's budgets, as in Figure 12."""

from __future__ import annotations

from sarathi.bench.number_format import milliseconds, plain, seconds
from sarathi.bench.report.table import Cell, Column, Table
from sarathi.simulator.known_error import accuracy_in_words
from sarathi.simulator.reproduction.chart import Chart, Panel, Series
from sarathi.simulator.reproduction.experiment import Experiment
from sarathi.simulator.reproduction.jobs import Job, RateJob, Results
from sarathi.simulator.reproduction.settings import (
    PLACES,
    SHAREGPT,
    STRICT_BUDGET,
    Options,
    System,
    Testbed,
    sarathi,
    vllm,
)
from sarathi.telemetry import Summary


def _systems(place: Testbed) -> dict[str, System]:
    return {
        "vLLM, batch 32": vllm(32),
        "vLLM, batch 64": vllm(64),
        "vLLM, batch 128": vllm(128),
        "Sarathi, strict budget": sarathi(STRICT_BUDGET),
        "Sarathi, relaxed budget": sarathi(place.relaxed_budget),
    }


def _all_jobs(options: Options) -> dict[tuple[Testbed, str, float], RateJob]:
    return {
        (place, name, rate): RateJob(place, system, SHAREGPT, rate, options)
        for place in PLACES
        for name, system in _systems(place).items()
        for rate in place.rates
    }


def jobs(options: Options) -> list[Job]:
    return list(_all_jobs(options).values())


def present(options: Options, results: Results) -> Experiment:
    found: dict[tuple[Testbed, str, float], Summary] = {
        key: results[job] for key, job in _all_jobs(options).items()
    }
    return Experiment(
        name="latency-by-rate",
        title="Latency against load",
        of="Figure 12's schedulers at the artifact's rates (its figure 7)",
        text=(
            "P50 TTFT and P99 TBT of sharegpt at five rates a model. A smaller batch keeps vLLM's "
            "TBT no shorter, since one prompt is enough for a stall, and makes requests wait; a "
            "token budget sets TBT as wanted: 512, or 2048 (LLaMA2-70B: 1536)."
        ),
        comparisons=(),
        tables=tuple(_table(place, found) for place in PLACES),
        charts=tuple(_chart(place, found) for place in PLACES),
        remarks=(
            "The paper prints no value of this figure but two gains in capacity, which the section "
            "on capacity compares.",
            "At the highest rates all wait ever longer, so that TTFT grows with the number of "
            "requests and says only that the load is too high.",
        ),
        accuracy=tuple(
            f"{place.title}: {accuracy_in_words(place.deployment(8192))}" for place in PLACES
        ),
        values=tuple(
            {
                "model": place.model,
                "scheduler": name,
                "rate": rate,
                "ttft_p50": summary.ttft.p50,
                "tbt_p99": summary.tbt.p99,
                "scheduling_delay_p50": summary.scheduling_delay.p50,
            }
            for (place, name, rate), summary in found.items()
        ),
    )


def _table(place: Testbed, found: dict[tuple[Testbed, str, float], Summary]) -> Table:
    return Table(
        f"{place.title}, {place.hardware}",
        "P50 TTFT, and below it P99 TBT, at each rate (requests per second).",
        (Column("", prose=True), *(Column(plain(rate), "rate") for rate in place.rates)),
        [
            [
                Cell(name, prose=True, label=index),
                *(_cell(found[place, name, rate]) for rate in place.rates),
            ]
            for index, name in enumerate(_systems(place))
        ],
    )


def _cell(summary: Summary) -> Cell:
    return Cell(seconds(summary.ttft.p50), milliseconds(summary.tbt.p99))


def _chart(place: Testbed, found: dict[tuple[Testbed, str, float], Summary]) -> Chart:
    def lines(percentile: str, factor: float) -> tuple[Series, ...]:
        metric, rank = percentile.split()
        return tuple(
            Series(
                name,
                place.rates,
                [
                    factor * (getattr(getattr(found[place, name, rate], metric), rank) or 0.0)
                    for rate in place.rates
                ],
                index,
            )
            for index, name in enumerate(_systems(place))
        )

    targets = 1000 * place.strict, 1000 * place.relaxed
    axis = "requests per second"
    last = place.rates[-1]
    told = "; ".join(
        f"{name}: P99 TBT {milliseconds(found[place, name, last].tbt.p99)}"
        for name in _systems(place)
    )
    return Chart(
        f"latency-by-rate-{place.model}",
        f"{place.title} on {place.hardware}",
        "Lines at the strict and the relaxed target.",
        f"P50 TTFT and P99 TBT against the rate. At {plain(last)} requests per second: {told}.",
        (
            Panel("P50 TTFT (s)", axis, lines("ttft p50", 1), log_y=True),
            Panel("P99 TBT (ms)", axis, lines("tbt p99", 1000), log_y=True, targets=targets),
        ),
    )
