"""Experiments that search for capacities: of all models, and of Falcon-180B over Ethernet."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from operator import attrgetter, itemgetter

from sarathi.bench.report.table import Cell, milliseconds, number, plain
from sarathi.simulator.cost_model import BatchShape
from sarathi.simulator.reproduction import jobs, published
from sarathi.simulator.reproduction.experiment import (
    WORDS,
    Compare,
    DataPoint,
    Experiment,
    ExperimentResult,
    Fields,
    Grid,
    GridPanel,
    Measured,
    Selection,
    by,
)
from sarathi.simulator.reproduction.latency_experiments import Metrics, cost_of, prompt_batch
from sarathi.simulator.reproduction.published import Comparison, Published, gain

ORCA, VLLM, SARATHI, OURS = "Orca", "vLLM", "Sarathi", "Sarathi, budget from the target"
SYSTEMS = (ORCA, VLLM, SARATHI, OURS)
TARGETS = ("strict", "relaxed")

# Requests per second at which a search begins, near what was found: fewer runs, same outcome.
_STARTS: Mapping[tuple[str, str], float] = {
    ("mistral-7b", "sharegpt"): 1.7,
    ("mistral-7b", "arxiv"): 0.5,
    ("yi-34b", "sharegpt"): 0.6,
    ("yi-34b", "arxiv"): 0.2,
    ("llama2-70b", "sharegpt"): 0.2,
    ("llama2-70b", "arxiv"): 0.06,
    ("falcon-180b", "sharegpt"): 0.4,
    ("falcon-180b", "arxiv"): 0.15,
}
_METRICS: Metrics = {
    "tbt_target": attrgetter("target"),
    **{name: attrgetter(name) for name in ("capacity", "low", "high", "bound")},
}
_Run = tuple[str, jobs.System, tuple[str, ...]]  # name, scheduler, and the targets that it is for


def _capacities(
    fields: Fields,
    testbed: jobs.Testbed,
    dataset: jobs.Dataset,
    run: _Run,
    options: jobs.Options,
    metrics: Metrics = _METRICS,
) -> list[DataPoint]:
    """Return a data point for each target; all are searched for by one job."""
    name, system, targets = run
    start = _STARTS[testbed.model, dataset.name] * (1.5 if system.policy == "sarathi" else 1)
    seconds = tuple(testbed.target(target) for target in targets)
    job = jobs.CapacityJob(jobs.RateJob(testbed, system, dataset, start, options), seconds)
    return [
        DataPoint(
            {**fields, "scheduler": name, "target": target}, metrics, job, select=itemgetter(i)
        )
        for i, target in enumerate(targets)
    ]


def _sarathi_runs(name: str, testbed: jobs.Testbed) -> list[_Run]:
    """Return Sarathi with the budget for each target."""
    return [
        (name, jobs.sarathi(jobs.STRICT_BUDGET), ("strict",)),
        (name, jobs.sarathi(testbed.relaxed_budget), ("relaxed",)),
    ]


def _gain(
    what: str, where: Fields, ours: str, theirs: str, known: Published, why: str = ""
) -> Compare:
    """Compare how many times as much load one scheduler takes as another.

    Args:
        why: ours differs from the published gain, unless that is within what is certain of ours.
    """

    def compare(found: ExperimentResult) -> Comparison:
        first: jobs.FoundCapacity = found.one(**where, scheduler=ours).result
        second: jobs.FoundCapacity = found.one(**where, scheduler=theirs).result
        value = gain(first.capacity, second.capacity)
        low, high = gain(first.low, second.high), gain(first.high, second.low)
        if low is None or high is None:
            return Comparison(what, known, "x", why, value)
        within = low <= known.value <= high
        chance = "chance: the published gain is within the range that is certain of ours"
        note = f"for certain {number(low)}x to {number(high)}x"
        return Comparison(what, known, "x", chance if within else why, value, note)

    return compare


def _largest_gain(
    what: str,
    model: str,
    datasets: tuple[jobs.Dataset, ...],
    rivals: tuple[str, ...],
    known: Published,
    why: str = "",
) -> Compare:
    """Compare the largest gain of Sarathi over any of the rivals, under any target."""

    def compare(found: ExperimentResult) -> Comparison:
        gains = []
        for dataset, target, rival in product(datasets, TARGETS, rivals):
            where = {"model": model, "dataset": dataset.name, "target": target}
            ours, theirs = (
                found.one(**where, scheduler=name)["capacity"] for name in (SARATHI, rival)
            )
            if (value := gain(ours, theirs)) is not None:
                gains.append((value, f"{dataset.name}, {target}, over {rival}"))
        largest, note = max(gains, default=(None, "no rate met the target"))
        return Comparison(what, known, "x", why, largest, note)

    return compare


# Figures 10 and 11: the load that each scheduler takes within a target.

_LOADS = tuple(
    Selection(
        f"{dataset.name}\n{target}",
        {"dataset": dataset.name, "target": target},
        dataset.title,
        target,
    )
    for dataset, target in product(jobs.DATASETS, TARGETS)
)


def _capacity_cell(one: Measured) -> Cell:
    found: jobs.FoundCapacity = one.result
    if found.capacity is None:
        return Cell("none", f"{plain(found.lowest)} missed", tone="bad")
    low = plain(found.low) if found.low else "0"
    high = plain(found.high) if found.high else "?"
    return Cell(plain(found.capacity), f"{low} to {high}")


def _capacity_grid(*testbeds: jobs.Testbed) -> Grid:
    return Grid(
        "Capacities (requests per second)",
        WORDS["capacity"].table_caption,
        tuple(
            Selection(
                system,
                {"model": testbed.model, "scheduler": system},
                f"{testbed.title}, {testbed.hardware}",
            )
            for testbed, system in product(testbeds, SYSTEMS)
        ),
        _LOADS,
        {"": _capacity_cell},
        corner=("", "scheduler"),
    )


def capacity(options: jobs.Options) -> Experiment:
    """Return the description of Figures 10 and 11."""
    words = WORDS["capacity"]
    titles = {testbed.model: testbed.title for testbed in jobs.TESTBEDS}
    full_titles = {each.model: f"{each.title} on {each.hardware}" for each in jobs.TESTBEDS}
    points = []
    for testbed, dataset in product(jobs.TESTBEDS, jobs.DATASETS):
        fields = {"model": testbed.model, "dataset": dataset.name}
        for run in (
            (ORCA, jobs.orca(testbed.orca_batch), TARGETS),
            (VLLM, jobs.vllm(), TARGETS),
            *_sarathi_runs(SARATHI, testbed),
            *((OURS, jobs.by_target(testbed.target(target)), (target,)) for target in TARGETS),
        ):
            points += _capacities(fields, testbed, dataset, run, options)
    comparisons = []
    for (model, load, target, rival), known in published.GAINS.items():
        what = f"{titles[model]}, {load}, {target}: gain over {rival}"
        where = {"model": model, "dataset": load, "target": target}
        comparisons.append(_gain(what, where, SARATHI, rival, known))
    for rival, known in published.LLAMA_GAINS.items():
        what = f"LLaMA2-70B, sharegpt: largest gain over {rival}"
        why = words.reasons["few at a time"] if rival == ORCA else ""
        comparisons.append(
            _largest_gain(what, jobs.LLAMA.model, (jobs.SHAREGPT,), (rival,), known, why)
        )
    headline = []
    for model, known in published.HEADLINE.items():
        rivals = (VLLM, ORCA) if model == jobs.FALCON.model else (VLLM,)
        headline.append(_largest_gain(full_titles[model], model, jobs.DATASETS, rivals, known))
    panels = [
        GridPanel(f"{each.title} (requests per second)", _capacity_grid(each), "capacity")
        for each in jobs.TESTBEDS
    ]
    return Experiment(
        name="capacity",
        points=points,
        tables=[_capacity_grid(*jobs.TESTBEDS)],
        figures=[words.figure("capacity", *panels)],
        comparisons=comparisons,
        headline=headline,
        deployments={full_titles[each.model]: each.deployment(8192) for each in jobs.TESTBEDS},
    )


# Figure 13: tensor against pipeline parallelism for Falcon-180B on two nodes with Ethernet.

_BATCHES = (8, 16, 32, 64, 128)
_SPLITS = {"TP8": jobs.FALCON_TP8, "TP4-PP2": jobs.FALCON}
_VLLM_TP, _VLLM_PP, _SARATHI_PP = "vLLM, TP8", "vLLM, TP4-PP2", "Sarathi, TP4-PP2"


def _shown_capacity(one: Measured) -> Cell:
    found = one["capacity"]
    return Cell("none", tone="bad") if found is None else Cell(plain(found))


def _falcon_comparisons(reasons: Mapping[str, str]) -> list[Compare]:
    network = reasons["network"]

    def decodes(found: ExperimentResult) -> Comparison:
        tp, pp = (found.one(split=split, batch=32)["tbt_p50"] for split in _SPLITS)
        what = "median TBT of 32 decodes, TP8 to TP4-PP2"
        return Comparison(what, published.TP8_TBT, "x", network, gain(tp, pp))

    def gains(target: str, what: str, rival: str, known: Published, why: str = "") -> Compare:
        title = f"{target}: gain of {what}"
        return _gain(title, {"target": target}, _SARATHI_PP, rival, known, why)

    def stage(what: str, shape: BatchShape, known: Published, why: str = "") -> Compare:
        seconds = max(cost_of(jobs.FALCON, jobs.SHAREGPT.max_total).stages(shape))
        return lambda found: Comparison(f"{what}, one stage", known, "s", why, seconds)

    both, known = "Sarathi over vLLM, both TP4-PP2", published.GAINS
    batch, slow = BatchShape.make(32, 2048), reasons["decodes"]
    return [
        decodes,
        gains("strict", "Sarathi TP4-PP2 over vLLM TP8", _VLLM_TP, published.TP8_GAIN, network),
        *(
            gains(
                target, both, _VLLM_PP, known[jobs.FALCON.model, jobs.SHAREGPT.name, target, VLLM]
            )
            for target in TARGETS
        ),
        stage("prompt of 4096", prompt_batch(1, 4096), published.FALCON_PROMPT),
        stage("32 decodes", batch, published.FALCON_DECODES, slow),
    ]


def falcon_parallelism(options: jobs.Options) -> Experiment:
    """Return the description of Figure 13."""
    words, falcon = WORDS["falcon-parallelism"], jobs.FALCON
    decodes = Grid(
        "P50 TBT of decodes",
        words.table_caption,
        by("split", _SPLITS),
        by("batch", _BATCHES, "batch"),
        {"": lambda one: Cell(milliseconds(one["tbt_p50"]))},
    )
    capacities = Grid(
        "Capacity on sharegpt (requests per second)",
        f"P99 TBT within {plain(falcon.strict)} s (strict) or {plain(falcon.relaxed)} s (relaxed).",
        by("scheduler", (_VLLM_TP, _VLLM_PP, _SARATHI_PP)),
        by("target", TARGETS),
        {"": _shown_capacity},
    )
    points = [
        DataPoint(
            {"split": name, "batch": n},
            {"tbt_p50": lambda median: median},
            jobs.DecodeJob(testbed, n),
        )
        for (name, testbed), n in product(_SPLITS.items(), _BATCHES)
    ]
    metrics = {"capacity": _METRICS["capacity"]}
    for testbed, run in (
        (jobs.FALCON_TP8, (_VLLM_TP, jobs.vllm(), TARGETS)),
        (falcon, (_VLLM_PP, jobs.vllm(), TARGETS)),
        *((falcon, run) for run in _sarathi_runs(_SARATHI_PP, falcon)),
    ):
        points += _capacities({}, testbed, jobs.SHAREGPT, run, options, metrics)
    times = GridPanel("P50 TBT (ms)", decodes, "tbt_p50", "requests in a batch", 1000, log_x=True)
    return Experiment(
        name="falcon-parallelism",
        points=points,
        tables=[decodes, capacities],
        figures=[
            words.figure("falcon-decodes", times),
            words.figure(
                "falcon-capacity", GridPanel("Requests per second", capacities, "capacity")
            ),
        ],
        comparisons=_falcon_comparisons(words.reasons),
        deployments={f"Falcon-180B, {name}": t.deployment(8192) for name, t in _SPLITS.items()},
    )
