"""Experiments with requests at a given load: stalls, latency against load, and the ablation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from operator import attrgetter
from typing import Any

import numpy as np

from sarathi.bench.report.table import Cell, milliseconds, number, plain, seconds
from sarathi.simulator.reproduction import published
from sarathi.simulator.reproduction.experiment import (
    WORDS,
    CellOf,
    DataPoint,
    Expected,
    Experiment,
    Figure,
    Grid,
    GridPanel,
    Selection,
    by,
)
from sarathi.simulator.reproduction.jobs import STALL_REQUESTS, RateJob, StallJob, Stalls
from sarathi.simulator.reproduction.testbeds import (
    ARXIV,
    DATASETS,
    SHAREGPT,
    STRICT_BUDGET,
    TESTBEDS,
    YI,
    Options,
    System,
    Testbed,
    sarathi,
    vllm,
)

_METRICS: Mapping[str, Callable[[Any], Any]] = {
    "ttft_p50": attrgetter("ttft.p50"),
    "tbt_p99": attrgetter("tbt.p99"),
    "scheduling_delay_p50": attrgetter("scheduling_delay.p50"),
}


def _metrics(*names: str) -> dict[str, Callable[[Any], Any]]:
    return {name: _METRICS[name] for name in names}


def _few(options: Options) -> Options:
    return replace(options, requests=min(STALL_REQUESTS, options.requests))


# Figure 1: generation stalls over time, and what they do to the tail of TBT.

_STALLING = {"vLLM": vllm(256), "Sarathi": sarathi(1536, 256)}
_STALL_RATES = (0.55, 0.7, 1.0)  # requests per second
_POINTS = 1500  # of a line
_STALL_METRICS: Mapping[str, Callable[[Any], Any]] = {
    "end": lambda stalls: stalls.times[-1],
    "first": lambda stalls: stalls.first,
    "longest_stall": lambda stalls: stalls.longest,
    "stalls": lambda stalls: len(stalls.silences),
    "tbt_p99": lambda stalls: stalls.summary.tbt.p99,
    "tokens": lambda stalls: stalls.tokens[-1],
}
_STALL_CELLS: Mapping[str, CellOf] = {
    "stalls": lambda one: Cell(str(one["stalls"])),
    "longest": lambda one: Cell(seconds(one["longest_stall"])),
    "all together": lambda one: Cell(seconds(sum(one.result.silences))),
    "P99 TBT": lambda one: Cell(seconds(one["tbt_p99"])),
    "longest gap of a request, P50": lambda one: Cell(seconds(one.result.summary.max_gap.p50)),
    "last token": lambda one: Cell(seconds(one["end"])),
    "tokens a second": lambda one: Cell(number(one["tokens"] / one["end"])),
}


def stalls(options: Options) -> Experiment:
    """Return the description of Figure 1."""
    words = WORDS["stalls"]
    at_once = Grid(
        "Stalls",
        words.table_caption,
        by("scheduler", _STALLING),
        (Selection("", {}),),
        _STALL_CELLS,
    )
    by_rate = replace(at_once, columns=by("rate", _STALL_RATES))
    points = []
    for name, system in _STALLING.items():
        end, why = f"{name}: last token of 128 requests", words.reasons["end"]
        expected = [Expected("end", end, published.STALLS_END[name], "s", why)]
        if name == "vLLM":
            expected.append(Expected("first", "vLLM: answers begin", published.STALLS_FIRST, "s"))
        job = StallJob(system, options)
        points.append(DataPoint({"scheduler": name}, _STALL_METRICS, job, expected=expected))
    for rate, name in product(_STALL_RATES, _STALLING):
        known, what = published.TAILS.get((rate, name)), f"{name}: P99 TBT at {rate:g}/s"
        points.append(
            DataPoint(
                {"scheduler": name, "rate": rate},
                _metrics("tbt_p99"),
                RateJob(YI, _STALLING[name], SHAREGPT, rate, _few(options)),
                expected=[Expected("tbt_p99", what, known, "s", words.reasons["tail"])]
                if known
                else (),
            )
        )
    return Experiment(
        name="stalls",
        points=points,
        tables=[at_once],
        figures=[
            words.figure(
                "stalls",
                GridPanel("Tokens so far", at_once, "tokens", "seconds", curve=_thinned),
                GridPanel("P99 TBT (ms)", by_rate, "tbt_p99", "requests per second", scale=1000),
            )
        ],
        deployments={YI.title: YI.deployment(ARXIV.max_total)},
    )


def _thinned(found: Stalls) -> tuple[list[float], list[float]]:
    """Return few points of tokens over time, with both ends of every stall."""
    times = np.asarray(found.times)
    keep = np.zeros(len(times), bool)
    keep[np.linspace(0, len(times) - 1, min(_POINTS, len(times))).astype(int)] = True
    long = np.flatnonzero(np.diff(times) > 0.5)
    keep[long] = keep[long + 1] = True
    return times[keep].tolist(), [float(value) for value in np.asarray(found.tokens)[keep]]


# Figure 12: vLLM's batch sizes against Sarathi's budgets.


def _compared_systems(testbed: Testbed) -> dict[str, System]:
    return {
        "vLLM, batch 32": vllm(32),
        "vLLM, batch 64": vllm(64),
        "vLLM, batch 128": vllm(128),
        "Sarathi, strict budget": sarathi(STRICT_BUDGET),
        "Sarathi, relaxed budget": sarathi(testbed.relaxed_budget),
    }


def _latency_figure(testbed: Testbed, grid: Grid) -> Figure:
    targets, axis = (1000 * testbed.strict, 1000 * testbed.relaxed), "requests per second"
    return Figure(
        f"latency-by-rate-{testbed.model}",
        f"{testbed.title} on {testbed.hardware}",
        WORDS["latency-by-rate"].figure_caption,
        (
            GridPanel("P50 TTFT (s)", grid, "ttft_p50", axis, log_y=True),
            GridPanel("P99 TBT (ms)", grid, "tbt_p99", axis, 1000, log_y=True, targets=targets),
        ),
    )


def latency_by_rate(options: Options) -> Experiment:
    """Return the description of Figure 12."""
    words = WORDS["latency-by-rate"]
    grids = {
        testbed: Grid(
            f"{testbed.title}, {testbed.hardware}",
            words.table_caption,
            tuple(
                Selection(name, {"model": testbed.model, "scheduler": name})
                for name in _compared_systems(testbed)
            ),
            tuple(Selection(plain(rate), {"rate": rate}, "rate") for rate in testbed.rates),
            {"": lambda one: Cell(seconds(one["ttft_p50"]), milliseconds(one["tbt_p99"]))},
        )
        for testbed in TESTBEDS
    }
    return Experiment(
        name="latency-by-rate",
        points=tuple(
            DataPoint(
                {"model": testbed.model, "scheduler": name, "rate": rate},
                _METRICS,
                RateJob(testbed, system, SHAREGPT, rate, options),
            )
            for testbed in TESTBEDS
            for name, system in _compared_systems(testbed).items()
            for rate in testbed.rates
        ),
        tables=tuple(grids.values()),
        figures=tuple(_latency_figure(testbed, grid) for testbed, grid in grids.items()),
        deployments={testbed.title: testbed.deployment(8192) for testbed in TESTBEDS},
    )


# Table 4: chunks without hybrid batches, hybrid batches without chunks, and both.

_PAPERS, _SCRIPTS = 1024, 512  # tokens of an iteration, by the table's caption and by the script
_ABLATION_RATES = {SHAREGPT: 1.0, ARXIV: 0.5}  # requests per second, from the artifact
_ABLATED = {
    ("hybrid_only", _PAPERS): System("hybrid batches only", "hybrid_only"),
    ("chunked_only", _PAPERS): System("chunks only, 1024", "chunked_only", _PAPERS),
    ("sarathi", _PAPERS): System("both: Sarathi, 1024", "sarathi", _PAPERS),
    ("chunked_only", _SCRIPTS): System("chunks only, 512", "chunked_only", _SCRIPTS),
    ("sarathi", _SCRIPTS): System("both: Sarathi, 512", "sarathi", _SCRIPTS),
}


def _expected_in_table_4(dataset: str, policy: str, title: str) -> tuple[Expected, ...]:
    ttft, tbt = published.ABLATION[dataset, policy]
    of_ttft, of_tbt = ("overload", "overload") if dataset == ARXIV.name else ("sample", "whole")
    why = WORDS["ablation"].reasons
    if policy != "hybrid_only":
        of_tbt = "caption"
    return (
        Expected("ttft_p50", f"{dataset}, {title}: P50 TTFT", ttft, "s", why[of_ttft]),
        Expected("tbt_p99", f"{dataset}, {title}: P99 TBT", tbt, "s", why[of_tbt]),
    )


def _beside_published(metric: str) -> CellOf:
    return lambda one: Cell(seconds(one[metric]), f"{seconds(one.published(metric))} published")


def ablation(options: Options) -> Experiment:
    """Return the description of Table 4."""
    words = WORDS["ablation"]
    grid = Grid(
        "P50 TTFT and P99 TBT",
        words.table_caption,
        tuple(
            Selection(system.title, {"scheduler": policy, "budget": budget})
            for (policy, budget), system in _ABLATED.items()
        ),
        tuple(Selection(each.name, {"dataset": each.name}, each.title) for each in DATASETS),
        {"P50 TTFT": _beside_published("ttft_p50"), "P99 TBT": _beside_published("tbt_p99")},
    )
    return Experiment(
        name="ablation",
        points=tuple(
            DataPoint(
                {"dataset": dataset.name, "scheduler": policy, "budget": budget},
                _metrics("ttft_p50", "tbt_p99"),
                RateJob(YI, system, dataset, _ABLATION_RATES[dataset], _few(options)),
                expected=_expected_in_table_4(dataset.name, policy, system.title),
            )
            for dataset in DATASETS
            for (policy, budget), system in _ABLATED.items()
        ),
        tables=(grid,),
        figures=[
            words.figure(
                "ablation",
                GridPanel("P50 TTFT (s)", grid, "ttft_p50"),
                GridPanel("P99 TBT (s)", grid, "tbt_p99"),
            )
        ],
        deployments={YI.title: YI.deployment(SHAREGPT.max_total)},
    )
