"""Figures 10 and 11: the load that each scheduler takes within a target."""

from __future__ import annotations

from collections.abc import Mapping

from sarathi.bench.number_format import plain
from sarathi.bench.report.table import Cell, Column, Table
from sarathi.simulator.known_error import accuracy_in_words
from sarathi.simulator.reproduction import published
from sarathi.simulator.reproduction.capacity_job import (
    RESOLUTION,
    CapacityJob,
    FoundCapacity,
    compared_gain,
)
from sarathi.simulator.reproduction.chart import Bar, BarPanel, Chart
from sarathi.simulator.reproduction.experiment import Comparison, Experiment, gain
from sarathi.simulator.reproduction.jobs import Job, Results
from sarathi.simulator.reproduction.settings import (
    DATASETS,
    PLACES,
    STRICT_BUDGET,
    Dataset,
    Options,
    System,
    Testbed,
    by_target,
    orca,
    sarathi,
    vllm,
)

ORCA, VLLM, SARATHI, OURS = "Orca", "vLLM", "Sarathi", "Sarathi, budget from the target"
SYSTEMS = (ORCA, VLLM, SARATHI, OURS)
TARGETS = ("strict", "relaxed")

# Requests per second that a search begins with, near what was found: fewer runs, same outcome.
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

Key = tuple[str, str, str, str]  # model, dataset, system, target
Capacities = Mapping[Key, FoundCapacity]


def _systems(place: Testbed) -> list[tuple[str, System, tuple[str, ...]]]:
    """With the targets that each is for."""
    return [
        (ORCA, orca(place.orca_batch), TARGETS),
        (VLLM, vllm(), TARGETS),
        (SARATHI, sarathi(STRICT_BUDGET), ("strict",)),
        (SARATHI, sarathi(place.relaxed_budget), ("relaxed",)),
        (OURS, by_target(place.strict), ("strict",)),
        (OURS, by_target(place.relaxed), ("relaxed",)),
    ]


def capacity_job(
    place: Testbed, dataset: Dataset, system: System, targets: tuple[str, ...], options: Options
) -> CapacityJob:
    start = _STARTS[place.model, dataset.name] * (1.5 if system.policy == "sarathi" else 1)
    seconds = tuple(seconds_of(place, target) for target in targets)
    return CapacityJob(place, system, dataset, seconds, start, options)


def seconds_of(place: Testbed, target: str) -> float:
    return place.strict if target == "strict" else place.relaxed


def _all_jobs(options: Options) -> list[tuple[CapacityJob, str, tuple[str, ...]]]:
    return [
        (capacity_job(place, dataset, system, targets, options), name, targets)
        for place in PLACES
        for dataset in DATASETS
        for name, system, targets in _systems(place)
    ]


def jobs(options: Options) -> list[Job]:
    return [job for job, _, _ in _all_jobs(options)]


def present(options: Options, results: Results) -> Experiment:
    found: dict[Key, FoundCapacity] = {}
    for job, name, targets in _all_jobs(options):
        for target, capacity in zip(targets, results[job], strict=True):
            found[job.place.model, job.dataset.name, name, target] = capacity
    headline = _headline(found)
    return Experiment(
        name="capacity",
        title="Capacity under strict and relaxed targets",
        of="Figures 10 and 11, Table 3",
        text=(
            "The highest Poisson rate at which P99 TBT is within the target and the median "
            f"scheduling delay at most 2 s, to within {RESOLUTION:.0%}. Sarathi has a budget of "
            "512 tokens under the strict target and 2048 (LLaMA2-70B: 1536) under the relaxed one; "
            "vLLM and Sarathi run up to 128 requests at a time, Orca 16 or (LLaMA2-70B, "
            "Falcon-180B) 8. The last row of each is our own step beyond the paper: no number of "
            "tokens, but the target itself as the budget."
        ),
        comparisons=tuple(_comparisons(found)),
        tables=(_table(found),),
        charts=(_chart(found),),
        remarks=_REMARKS,
        accuracy=tuple(
            f"{place.title} on {place.hardware}: {accuracy_in_words(place.deployment(8192))}"
            for place in PLACES
        ),
        values=tuple(
            {
                "model": model,
                "dataset": dataset,
                "scheduler": system,
                "target": target,
                "tbt_target": one.target,
                "capacity": one.capacity,
                "low": one.low,
                "high": one.high,
                "bound": one.bound,
            }
            for (model, dataset, system, target), one in found.items()
        ),
        headline=tuple(headline),
    )


_REMARKS = (
    "The artifact cuts long gaps between arrivals, so that its rates are 5.2 % above what it says. "
    "Ours are exact. Both sides of a gain have this, so that it cancels out.",
    "The median scheduling delay says nothing of who waits longest: prompts are taken strictly in "
    "order here, also with the budget from the target, which would otherwise put short ones first "
    "and seem to take more.",
    "With pipeline stages, the budget from the target overshoots it by 2 to 8 %, and so counts as "
    "missing it at loads that it could take: it divides the target among the stages, and leaves "
    "nothing for the messages between them and for the engine.",
    "Capacities in requests per second are not printed in the paper, only some of the gains.",
)


def _capacity(found: Capacities, *key: str) -> float | None:
    model, dataset, system, target = key
    return found[model, dataset, system, target].capacity


def _gain(found: Capacities, model: str, dataset: str, target: str, rival: str) -> float | None:
    ours = _capacity(found, model, dataset, SARATHI, target)
    return gain(ours, _capacity(found, model, dataset, rival, target))


def _largest(
    found: Capacities, model: str, datasets: tuple[str, ...], rivals: tuple[str, ...]
) -> tuple[float | None, str]:
    """And where it is."""
    gains = [
        (value, f"{dataset}, {target}, over {rival}")
        for dataset in datasets
        for target in TARGETS
        for rival in rivals
        if (value := _gain(found, model, dataset, target, rival)) is not None
    ]
    return max(gains, default=(None, "no rate met the target"))


def _headline(found: Capacities) -> list[Comparison]:
    titles = {place.model: f"{place.title} on {place.hardware}" for place in PLACES}
    both = tuple(dataset.name for dataset in DATASETS)
    compared = []
    for model, value in published.HEADLINE.items():
        rivals = (VLLM,) if model != "falcon-180b" else (VLLM, ORCA)
        ours, where = _largest(found, model, both, rivals)
        compared.append(Comparison(titles[model], ours, value, "x", "", where))
    return compared


def _comparisons(found: Capacities) -> list[Comparison]:
    titles = {place.model: place.title for place in PLACES}
    compared = []
    for (model, dataset, target, rival), value in published.GAINS.items():
        what = f"{titles[model]}, {dataset}, {target}: gain over {rival}"
        ours, theirs = (found[model, dataset, one, target] for one in (SARATHI, rival))
        compared.append(compared_gain(what, ours, theirs, value))
    for rival, value in published.LLAMA_GAINS.items():
        largest, where = _largest(found, "llama2-70b", ("sharegpt",), (rival,))
        what = f"LLaMA2-70B, sharegpt: largest gain over {rival}"
        why = _FEW_AT_A_TIME if rival == ORCA else ""
        compared.append(Comparison(what, largest, value, "x", why, where))
    return compared


_FEW_AT_A_TIME = (
    "Orca is bound by the 8 requests that it runs at a time: both targets give the same capacity, "
    "where requests begin to wait. It then goes with the time of a decode, in which the model is "
    "quicker than the paper's engine (see throughput)"
)


def _table(found: Capacities) -> Table:
    rows = []
    for place in PLACES:
        for system in SYSTEMS:
            cells = [Cell(f"{place.title}, {place.hardware}", prose=True), Cell(system, prose=True)]
            for dataset in DATASETS:
                for target in TARGETS:
                    one = found[place.model, dataset.name, system, target]
                    cells.append(_cell(one))
            rows.append(cells)
    columns = [Column("", prose=True), Column("scheduler", prose=True)]
    columns += [Column(t, dataset.title) for dataset in DATASETS for t in TARGETS]
    return Table(
        "Capacities (requests per second)",
        "Below each is the range that is certain: from the highest rate that met the target to the "
        "lowest that missed it, both with 95 % confidence. Targets are P99 TBT: "
        + "; ".join(f"{p.title} {plain(p.strict)} and {plain(p.relaxed)} s" for p in PLACES)
        + ".",
        tuple(columns),
        rows,
        by_label=True,
    )


def _cell(one: FoundCapacity) -> Cell:
    if one.capacity is None:
        return Cell("none", f"{plain(one.lowest)} missed", tone="bad")
    low, high = plain(one.low) if one.low else "0", plain(one.high) if one.high else "?"
    return Cell(plain(one.capacity), f"{low} to {high}")


def _chart(found: Capacities) -> Chart:
    panels = tuple(
        BarPanel(
            title=f"{place.title} (requests per second)",
            groups=tuple(f"{dataset.name}\n{target}" for dataset in DATASETS for target in TARGETS),
            series=SYSTEMS,
            bars=tuple(
                tuple(
                    Bar(_capacity(found, place.model, dataset.name, system, target))
                    for system in SYSTEMS
                )
                for dataset in DATASETS
                for target in TARGETS
            ),
        )
        for place in PLACES
    )
    best = "; ".join(
        f"{place.title} {target} {dataset.name}: "
        + ", ".join(
            f"{system} {plain(_capacity(found, place.model, dataset.name, system, target))}"
            for system in SYSTEMS
        )
        for place in PLACES
        for dataset in DATASETS
        for target in TARGETS
    )
    return Chart(
        "capacity",
        "Capacity by scheduler",
        "Longer is better. The paper does not print its capacities, only some of the gains.",
        f"Requests per second within the target. {best}.",
        panels,
    )
