"""Experiments with times: of single iterations, and of requests at a given load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import product
from operator import attrgetter
from typing import Any

import numpy as np

from sarathi.bench.report.table import Cell, milliseconds, number, plain, seconds
from sarathi.simulator.cost_model import OVERHEADS, BatchShape, iteration_seconds
from sarathi.simulator.gpu_cost import GpuCostModel
from sarathi.simulator.reproduction import jobs, published
from sarathi.simulator.reproduction.experiment import (
    WORDS,
    CellOf,
    DataPoint,
    Experiment,
    ExperimentResult,
    Figure,
    Grid,
    GridPanel,
    Selection,
    by,
)
from sarathi.simulator.reproduction.published import Comparison, Published

Metrics = Mapping[str, Callable[[Any], Any]]


def cost_of(testbed: jobs.Testbed, max_total: int = 16384) -> GpuCostModel:
    """Return the cost model of a testbed under the paper's engine."""
    return GpuCostModel(testbed.deployment(max_total), OVERHEADS["paper"])


def prompt_batch(batch: int, length: int) -> BatchShape:
    """Return an iteration of whole prompts."""
    return BatchShape.make(chunks=((0, length),) * batch)


def chunked_seconds(cost: GpuCostModel, length: int, chunk: int) -> float:
    """Return the time of a prompt in chunks, with nothing beside them."""
    total = 0.0
    for start in range(0, length, chunk):
        size = min(chunk, length - start)
        last = int(start + size == length)
        total += iteration_seconds(cost, BatchShape.make(chunks=((start, size),), samples=last))
    return total


# Figure 1: generation stalls over time, and what they do to the tail of TBT.

_LATENCIES: Metrics = {
    "ttft_p50": attrgetter("ttft.p50"),
    "tbt_p99": attrgetter("tbt.p99"),
    "scheduling_delay_p50": attrgetter("scheduling_delay.p50"),
}
_STALLING = {"vLLM": jobs.vllm(256), "Sarathi": jobs.sarathi(1536, 256)}
_STALL_RATES = (0.55, 0.7, 1.0)  # requests per second
_POINTS = 1500  # of a line
_STALL_METRICS: Metrics = {
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


def _few(options: jobs.Options) -> jobs.Options:
    return replace(options, requests=min(jobs.STALL_REQUESTS, options.requests))


def stalls(options: jobs.Options) -> Experiment:
    """Return the description of Figure 1."""
    words = WORDS["stalls"]
    schedulers, whole = by("scheduler", _STALLING), (Selection("", {}),)
    at_once = Grid("Stalls", words.table_caption, schedulers, whole, _STALL_CELLS)
    by_rate = replace(at_once, columns=by("rate", _STALL_RATES))
    points = []
    for name, system in _STALLING.items():
        what, end = f"{name}: last token of 128 requests", published.STALLS_END[name]
        expected = {"end": Comparison(what, end, "s", words.reasons["end"])}
        if name == "vLLM":
            expected["first"] = Comparison("vLLM: answers begin", published.STALLS_FIRST, "s")
        job = jobs.StallJob(system, options)
        points.append(DataPoint({"scheduler": name}, _STALL_METRICS, job, expected=expected))
    for rate, name in product(_STALL_RATES, _STALLING):
        known, what = published.TAILS.get((rate, name)), f"{name}: P99 TBT at {rate:g}/s"
        points.append(
            DataPoint(
                {"scheduler": name, "rate": rate},
                {"tbt_p99": _LATENCIES["tbt_p99"]},
                jobs.RateJob(jobs.YI, _STALLING[name], jobs.SHAREGPT, rate, _few(options)),
                expected={"tbt_p99": Comparison(what, known, "s", words.reasons["tail"])}
                if known
                else {},
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
        deployments={jobs.YI.title: jobs.YI.deployment(jobs.ARXIV.max_total)},
    )


def _thinned(found: jobs.Stalls) -> tuple[list[float], list[float]]:
    """Return few points of tokens over time, with both ends of every stall."""
    times = np.asarray(found.times)
    keep = np.zeros(len(times), bool)
    keep[np.linspace(0, len(times) - 1, min(_POINTS, len(times))).astype(int)] = True
    long = np.flatnonzero(np.diff(times) > 0.5)
    keep[long] = keep[long + 1] = True
    return times[keep].tolist(), [float(value) for value in np.asarray(found.tokens)[keep]]


# Figures 3 and 4: what batching does to prompts and to decodes.

_PROMPT = 1024  # tokens, of Figure 3
_WHOLE = 8192  # tokens of the prompt that is computed in chunks
_MODELS = (jobs.MISTRAL, jobs.YI)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_CHUNKS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
# By kind: title of the table and of the panel, label of the axis, field, and sizes.
_THROUGHPUTS = {
    "decode": ("Decodes", "Decodes", "requests in a batch", "batch", _BATCHES),
    "prefill": ("Prompts of 1024", "Prompts", "prompts in a batch", "batch", _BATCHES[:4]),
    "chunked": (
        "A prompt of 8192 in chunks",
        "A prompt in chunks",
        "tokens of a chunk",
        "chunk",
        _CHUNKS,
    ),
}


def _tokens_per_second(cost: GpuCostModel, kind: str, size: int) -> float:
    if kind == "decode":
        return size / iteration_seconds(cost, BatchShape.make(size, _PROMPT))
    if kind == "prefill":
        return size * _PROMPT / iteration_seconds(cost, prompt_batch(size, _PROMPT))
    return _WHOLE / chunked_seconds(cost, _WHOLE, size)


def _iteration_point(kind: str, size: int, shape: BatchShape, known: Published) -> DataPoint:
    """Return an iteration of Yi-34B of which the artifact has the time."""
    what, why = f"Yi-34B: {kind.format(size)}", WORDS["throughput"].reasons["overhead"]
    return DataPoint(
        {"iteration": kind, "size": size},
        {"time": lambda seconds: 1000 * seconds},
        result=iteration_seconds(cost_of(jobs.YI), shape),
        expected={"time": Comparison(what, replace(known, value=1000 * known.value), "ms", why)},
        exported=False,
    )


def _iteration_panel(title: str, x_label: str, kind: str, sizes: Iterable[int]) -> GridPanel:
    columns = tuple(Selection(str(size), {"size": size, "iteration": kind}) for size in sizes)
    grid = Grid("", "", (Selection("ours", {}),), columns, {})
    return GridPanel(f"{title} (ms)", grid, "time", x_label, log_x=True, log_y=True)


def throughput(options: jobs.Options) -> Experiment:
    """Return the description of Figures 3 and 4."""
    words = WORDS["throughput"]
    grids, throughputs, points = [], [], []
    for kind, (title, panel_title, x_label, axis, sizes) in _THROUGHPUTS.items():
        grid = Grid(
            f"{title} (tokens per second)",
            words.table_caption,
            tuple(Selection(m.title, {"model": m.model, "kind": kind}) for m in _MODELS),
            by(axis, sizes, axis),
            {"": lambda one: Cell(number(one["tokens_per_second"]))},
        )
        grids.append(grid)
        panel_title += " (tokens per second)"
        throughputs.append(GridPanel(panel_title, grid, "tokens_per_second", x_label, log_x=True))
        points += [
            DataPoint(
                {"model": testbed.model, "kind": kind, axis: size},
                {"tokens_per_second": float},
                result=_tokens_per_second(cost_of(testbed), kind, size),
            )
            for testbed, size in product(_MODELS, sizes)
        ]
    decodes, prompt = "iteration of {} decodes", "prompt of {}"
    for n, known in published.DECODES.items():
        points.append(_iteration_point(decodes, n, BatchShape.make(n, _PROMPT), known))
    for n, known in published.PREFILLS.items():
        points.append(_iteration_point(prompt, n, prompt_batch(1, n), known))
    hybrid = BatchShape.make(3, _PROMPT, ((0, 1021),), 3)
    what = "1021 tokens of a prompt and 3 decodes"
    points.append(_iteration_point(what, 1024, hybrid, published.HYBRID))
    batch, tokens = "requests in a batch", "tokens of the prompt"
    return Experiment(
        name="throughput",
        points=points,
        tables=grids,
        figures=[
            words.figure("throughput", *throughputs),
            words.figure(
                "iteration-times",
                _iteration_panel("Iteration of decodes", batch, decodes, published.DECODES),
                _iteration_panel("Iteration of a prompt", tokens, prompt, published.PREFILLS),
            ),
        ],
        comparisons=[_tile_step],
        deployments={each.title: each.deployment(8192) for each in _MODELS},
    )


def _tile_step(found: ExperimentResult) -> Comparison:
    more, fewer = (iteration_seconds(cost_of(jobs.MISTRAL), prompt_batch(1, n)) for n in (257, 256))
    what, why = "Mistral-7B: chunk of 257 to one of 256", WORDS["throughput"].reasons["tiles"]
    return Comparison(what, published.TILE, "x", why, more / fewer)


# Figure 12: vLLM's batch sizes against Sarathi's budgets.


def _compared_systems(testbed: jobs.Testbed) -> dict[str, jobs.System]:
    return {
        "vLLM, batch 32": jobs.vllm(32),
        "vLLM, batch 64": jobs.vllm(64),
        "vLLM, batch 128": jobs.vllm(128),
        "Sarathi, strict budget": jobs.sarathi(jobs.STRICT_BUDGET),
        "Sarathi, relaxed budget": jobs.sarathi(testbed.relaxed_budget),
    }


def latency_by_rate(options: jobs.Options) -> Experiment:
    """Return the description of Figure 12."""
    words, axis = WORDS["latency-by-rate"], "requests per second"
    points, grids, figures = [], [], []
    for testbed in jobs.TESTBEDS:
        systems = _compared_systems(testbed)
        points += [
            DataPoint(
                {"model": testbed.model, "scheduler": name, "rate": rate},
                _LATENCIES,
                jobs.RateJob(testbed, system, jobs.SHAREGPT, rate, options),
            )
            for (name, system), rate in product(systems.items(), testbed.rates)
        ]
        grid = Grid(
            f"{testbed.title}, {testbed.hardware}",
            words.table_caption,
            tuple(Selection(n, {"model": testbed.model, "scheduler": n}) for n in systems),
            tuple(Selection(plain(rate), {"rate": rate}, "rate") for rate in testbed.rates),
            {"": lambda one: Cell(seconds(one["ttft_p50"]), milliseconds(one["tbt_p99"]))},
        )
        targets = (1000 * testbed.strict, 1000 * testbed.relaxed)
        panels = (
            GridPanel("P50 TTFT (s)", grid, "ttft_p50", axis, log_y=True),
            GridPanel("P99 TBT (ms)", grid, "tbt_p99", axis, 1000, log_y=True, targets=targets),
        )
        name, title = f"latency-by-rate-{testbed.model}", f"{testbed.title} on {testbed.hardware}"
        grids.append(grid)
        figures.append(Figure(name, title, words.figure_caption, panels))
    return Experiment(
        name="latency-by-rate",
        points=points,
        tables=grids,
        figures=figures,
        deployments={testbed.title: testbed.deployment(8192) for testbed in jobs.TESTBEDS},
    )


# Figure 14: how much longer a prompt takes in chunks.

_LENGTHS = (2047, 4095, 8191, 16383)  # tokens, as in the artifact


def chunking_overhead(options: jobs.Options) -> Experiment:
    """Return the description of Figure 14."""
    words = WORDS["chunking-overhead"]
    cost = cost_of(jobs.YI)
    whole = {length: chunked_seconds(cost, length, length) for length in _LENGTHS}
    grid = Grid(
        "Time relative to the whole prompt",
        words.table_caption,
        tuple(
            Selection(f"{n:,}", {"prompt": n}, head=f"{n:,} tokens", note=seconds(whole[n]))
            for n in _LENGTHS
        ),
        tuple(
            Selection(f"chunks of {n}", {"chunk": n}, "chunk", str(n)) for n in (512, 1024, 2048)
        ),
        {"": lambda one: Cell(number(one["ratio"]))},
        corner=("prompt",),
        groups_by_row=True,
    )

    def most(found: ExperimentResult) -> Comparison:
        longest = max(found.one(prompt=length, chunk=512)["ratio"] for length in _LENGTHS)
        return Comparison("most, chunks of 512", published.CHUNKED_MOST, "x", ours=longest)

    panel = GridPanel("Times as long as the whole prompt", grid, "ratio")
    return Experiment(
        name="chunking-overhead",
        points=[
            DataPoint(
                {"prompt": length, "chunk": chunk},
                {"ratio": float},
                result=chunked_seconds(cost, length, chunk) / whole[length],
                expected={"ratio": Comparison(f"{length} tokens, chunks of {chunk}", known, "x")},
            )
            for (length, chunk), known in published.CHUNKED.items()
        ],
        tables=[grid],
        figures=[words.figure("chunking-overhead", panel)],
        comparisons=[most],
        deployments={jobs.YI.title: jobs.YI.deployment(16384)},
    )


# Table 4: chunks without hybrid batches, hybrid batches without chunks, and both.

_PAPERS, _SCRIPTS = 1024, 512  # tokens of an iteration, by the table's caption and by the script
_ABLATION_RATES = {jobs.SHAREGPT: 1.0, jobs.ARXIV: 0.5}  # requests per second, from the artifact
_ABLATED = {("hybrid_only", _PAPERS): jobs.System("hybrid batches only", "hybrid_only")} | {
    (policy, budget): jobs.System(f"{title}, {budget}", policy, budget)
    for budget in (_PAPERS, _SCRIPTS)
    for policy, title in (("chunked_only", "chunks only"), ("sarathi", "both: Sarathi"))
}


def _expected_in_table_4(dataset: str, policy: str, title: str) -> dict[str, Comparison]:
    ttft, tbt = published.ABLATION[dataset, policy]
    of_ttft, of_tbt = (
        ("overload", "overload") if dataset == jobs.ARXIV.name else ("sample", "whole")
    )
    why = WORDS["ablation"].reasons
    if policy != "hybrid_only":
        of_tbt = "caption"
    return {
        "ttft_p50": Comparison(f"{dataset}, {title}: P50 TTFT", ttft, "s", why[of_ttft]),
        "tbt_p99": Comparison(f"{dataset}, {title}: P99 TBT", tbt, "s", why[of_tbt]),
    }


def _beside_published(metric: str) -> CellOf:
    return lambda one: Cell(seconds(one[metric]), f"{seconds(one.published(metric))} published")


def ablation(options: jobs.Options) -> Experiment:
    """Return the description of Table 4."""
    words = WORDS["ablation"]
    grid = Grid(
        "P50 TTFT and P99 TBT",
        words.table_caption,
        tuple(
            Selection(system.title, {"scheduler": policy, "budget": budget})
            for (policy, budget), system in _ABLATED.items()
        ),
        tuple(Selection(each.name, {"dataset": each.name}, each.title) for each in jobs.DATASETS),
        {"P50 TTFT": _beside_published("ttft_p50"), "P99 TBT": _beside_published("tbt_p99")},
    )
    panels = (
        GridPanel("P50 TTFT (s)", grid, "ttft_p50"),
        GridPanel("P99 TBT (s)", grid, "tbt_p99"),
    )
    return Experiment(
        name="ablation",
        points=[
            DataPoint(
                {"dataset": dataset.name, "scheduler": policy, "budget": budget},
                {name: _LATENCIES[name] for name in ("ttft_p50", "tbt_p99")},
                jobs.RateJob(jobs.YI, system, dataset, _ABLATION_RATES[dataset], _few(options)),
                expected=_expected_in_table_4(dataset.name, policy, system.title),
            )
            for dataset, ((policy, budget), system) in product(jobs.DATASETS, _ABLATED.items())
        ],
        tables=[grid],
        figures=[words.figure("ablation", *panels)],
        deployments={jobs.YI.title: jobs.YI.deployment(jobs.SHAREGPT.max_total)},
    )
