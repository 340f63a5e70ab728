"""Figure 13: tensor against pipeline parallelism for Falcon-180B on two nodes with Ethernet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sarathi.bench.number_format import milliseconds, plain
from sarathi.bench.report.table import Cell, Column, Table
from sarathi.bench.workload.workload import Workload
from sarathi.simulator.known_error import accuracy_in_words
from sarathi.simulator.reproduction import published
from sarathi.simulator.reproduction.capacity_gains import capacity_job, seconds_of
from sarathi.simulator.reproduction.capacity_job import CapacityJob, FoundCapacity, compared_gain
from sarathi.simulator.reproduction.chart import Bar, BarPanel, Chart, Panel, Series
from sarathi.simulator.reproduction.experiment import Comparison, Experiment, gain
from sarathi.simulator.reproduction.jobs import Job, Results
from sarathi.simulator.reproduction.settings import (
    FALCON,
    FALCON_TP8,
    SHAREGPT,
    STRICT_BUDGET,
    Options,
    System,
    Testbed,
    sarathi,
    setup_of,
    vllm,
)
from sarathi.simulator.reproduction.throughput import cost_of, decodes, prompts
from sarathi.simulator.simulation import simulate

_BATCHES = (8, 16, 32, 64, 128)
_PROMPT, _ANSWER = 2048, 64  # tokens
_SPLITS = {"TP8": FALCON_TP8, "TP4-PP2": FALCON}
_TARGETS = ("strict", "relaxed")
_VLLM_TP, _VLLM, _SARATHI = "vLLM, TP8", "vLLM, TP4-PP2", "Sarathi, TP4-PP2"


@dataclass(frozen=True)
class DecodeJob:
    """Requests that decode together until all are done, with no prompt between."""

    place: Testbed
    batch: int

    @property
    def title(self) -> str:
        return f"decodes of {self.place.title}, {self.place.hardware}, batch {self.batch}"

    def run(self) -> float | None:
        """P50 TBT in seconds."""
        system = System("decodes", "faster_transformer", max_batch=self.batch)
        workload = Workload.from_options(
            prompt_lengths=f"fixed:{_PROMPT}", output_lengths=f"fixed:{_ANSWER}"
        )
        plan = workload.plan(1.0, self.batch, 0, 0, SHAREGPT.max_total)
        plan = replace(plan, times=np.zeros(len(plan)))
        setup = setup_of(self.place, system, SHAREGPT.max_total)
        return simulate(setup, plan, most_records=1).summary.tbt.p50


def _capacity_jobs(options: Options) -> dict[str, dict[str, CapacityJob]]:
    both = capacity_job(FALCON, SHAREGPT, vllm(), _TARGETS, options)
    across = capacity_job(FALCON_TP8, SHAREGPT, vllm(), _TARGETS, options)
    return {
        _VLLM_TP: dict.fromkeys(_TARGETS, across),
        _VLLM: dict.fromkeys(_TARGETS, both),
        _SARATHI: {
            target: capacity_job(FALCON, SHAREGPT, sarathi(budget), (target,), options)
            for target, budget in (("strict", STRICT_BUDGET), ("relaxed", FALCON.relaxed_budget))
        },
    }


def jobs(options: Options) -> list[Job]:
    found = [job for own in _capacity_jobs(options).values() for job in own.values()]
    small = [DecodeJob(place, batch) for place in _SPLITS.values() for batch in _BATCHES]
    return [*found, *small]


def present(options: Options, results: Results) -> Experiment:
    medians: dict[str, list[float | None]] = {
        name: [results[DecodeJob(place, batch)] for batch in _BATCHES]
        for name, place in _SPLITS.items()
    }
    capacities: dict[str, dict[str, FoundCapacity]] = {}
    for name, own in _capacity_jobs(options).items():
        capacities[name] = {
            target: _of(results[job], seconds_of(FALCON, target)) for target, job in own.items()
        }
    return Experiment(
        name="falcon-parallelism",
        title="Falcon-180B over Ethernet: tensor or pipeline parallelism",
        of="Figure 13, section 3.3",
        text=(
            "Eight A100 in two nodes with 100 Gb/s Ethernet between them. With TP8, every layer of "
            "every iteration waits for an all-reduce over Ethernet; with TP4-PP2 only activations "
            "cross it, once an iteration. Left: decodes alone, of requests with prompts of 2048 "
            "tokens. Right: capacity on sharegpt."
        ),
        comparisons=tuple(_comparisons(medians, capacities)),
        tables=(_decode_table(medians), _capacity_table(capacities)),
        charts=(_decode_chart(medians), _capacity_chart(capacities)),
        remarks=_REMARKS,
        accuracy=tuple(
            f"Falcon-180B, {name}: {accuracy_in_words(place.deployment(8192))}"
            for name, place in _SPLITS.items()
        ),
        values=(
            *(
                {"split": name, "batch": batch, "tbt_p50": median}
                for name, found in medians.items()
                for batch, median in zip(_BATCHES, found, strict=True)
            ),
            *(
                {"scheduler": name, "target": target, "capacity": capacity.capacity}
                for name, own in capacities.items()
                for target, capacity in own.items()
            ),
        ),
    )


def _of(found: tuple[FoundCapacity, ...], target: float) -> FoundCapacity:
    return next(one for one in found if one.target == target)


_REMARKS = (
    "Decodes are spread evenly over the two micro-batches here. In the paper's engine the first "
    "micro-batch takes all that can run, so that the other may be small.",
    "No all-reduce between two such nodes was measured. The model has the latency of another "
    "network and the bandwidth of long messages over this one: for few decodes TP8 is then no "
    "slower than TP4-PP2, for many several times as slow.",
    "Section 3.3 says that a prompt of 4k takes 1150 ms and 32 decodes 200 ms, and that a bubble "
    "lasts for the difference: that is the time of one stage. Through both in that time, the "
    "prompt would need more than the peak of the GPUs.",
)
_NETWORK = "the network between the nodes was not measured (see the remarks)"
_SLOW_DECODES = (
    "decodes are slow in the paper's engine (see throughput): each GPU reads its weights in 32 ms. "
    "What takes the rest is not known"
)


def _comparisons(
    medians: dict[str, list[float | None]], capacities: dict[str, dict[str, FoundCapacity]]
) -> list[Comparison]:
    at = _BATCHES.index(32)
    cost = cost_of(FALCON, SHAREGPT.max_total)
    ours = capacities[_SARATHI]
    return [
        Comparison(
            "median TBT of 32 decodes, TP8 to TP4-PP2",
            gain(medians["TP8"][at], medians["TP4-PP2"][at]),
            published.TP8_TBT,
            "x",
            _NETWORK,
        ),
        compared_gain(
            "strict: gain of Sarathi TP4-PP2 over vLLM TP8",
            ours["strict"],
            capacities[_VLLM_TP]["strict"],
            published.TP8_GAIN,
            _NETWORK,
        ),
        *(
            compared_gain(
                f"{target}: gain of Sarathi over vLLM, both TP4-PP2",
                ours[target],
                capacities[_VLLM][target],
                published.GAINS["falcon-180b", "sharegpt", target, "vLLM"],
            )
            for target in _TARGETS
        ),
        Comparison(
            "prompt of 4096, one stage",
            max(cost.stages(prompts(1, 4096))),
            published.FALCON_PROMPT,
            "s",
        ),
        Comparison(
            "32 decodes, one stage",
            max(cost.stages(decodes(32, _PROMPT))),
            published.FALCON_DECODES,
            "s",
            _SLOW_DECODES,
        ),
    ]


def _decode_table(medians: dict[str, list[float | None]]) -> Table:
    return Table(
        "P50 TBT of decodes",
        "By the number of requests that decode together.",
        (Column("", prose=True), *(Column(f"{batch}", "batch") for batch in _BATCHES)),
        [
            [Cell(name, prose=True, label=index), *(Cell(milliseconds(value)) for value in found)]
            for index, (name, found) in enumerate(medians.items())
        ],
    )


def _capacity_table(capacities: dict[str, dict[str, FoundCapacity]]) -> Table:
    return Table(
        "Capacity on sharegpt (requests per second)",
        f"P99 TBT within {plain(FALCON.strict)} s (strict) or {plain(FALCON.relaxed)} s (relaxed).",
        (Column("", prose=True), *(Column(target) for target in _TARGETS)),
        [
            [
                Cell(name, prose=True, label=index),
                *(Cell(_shown(one), tone="" if one.capacity else "bad") for one in own.values()),
            ]
            for index, (name, own) in enumerate(capacities.items())
        ],
    )


def _shown(one: FoundCapacity) -> str:
    return "none" if one.capacity is None else plain(one.capacity)


def _decode_chart(medians: dict[str, list[float | None]]) -> Chart:
    series = tuple(
        Series(name, _BATCHES, [1000 * (value or 0.0) for value in found], index)
        for index, (name, found) in enumerate(medians.items())
    )
    told = "; ".join(
        f"{name} {milliseconds(found[0])} to {milliseconds(found[-1])}"
        for name, found in medians.items()
    )
    return Chart(
        "falcon-decodes",
        "Decodes: tensor parallelism over Ethernet waits",
        "Median time between tokens of decodes alone.",
        f"P50 TBT for 8 to 128 requests: {told}.",
        (Panel("P50 TBT (ms)", "requests in a batch", series, log_x=True),),
    )


def _capacity_chart(capacities: dict[str, dict[str, FoundCapacity]]) -> Chart:
    names = tuple(capacities)
    panel = BarPanel(
        "Requests per second",
        _TARGETS,
        names,
        tuple(
            tuple(Bar(capacities[name][target].capacity) for name in names) for target in _TARGETS
        ),
    )
    told = "; ".join(
        f"{name}: {', '.join(f'{target} {_shown(one)}' for target, one in own.items())}"
        for name, own in capacities.items()
    )
    return Chart(
        "falcon-capacity",
        "Capacity by parallelism",
        "Longer is better.",
        f"Capacity in requests per second. {told}.",
        (panel,),
    )
