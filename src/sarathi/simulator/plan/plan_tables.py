"""A plan for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from sarathi.bench.number_format import milliseconds, number, percent, plain, seconds
from sarathi.bench.results import Run
from sarathi.bench.run_notes import stage_shares
from sarathi.simulator.plan.candidates import DERIVED, Kind, Rejected
from sarathi.simulator.plan.evaluate import PlanChoice
from sarathi.simulator.plan.plan_targets import PlanTerms
from sarathi.simulator.plan.planner import PlanResult, tbt, ttft

_KINDS = get_args(Kind)
_MARKED = (
    "Figures of plans marked * are of all their replicas and the router together, the others of "
    "one replica with its share of the load."
)
_WIDE = 110  # columns of a terminal


def print_plan(planned: PlanResult, terms: PlanTerms) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if planned.choices:
        console.print(_choices(planned, console.width >= _WIDE))
    console.print(outcome(planned, terms))
    if planned.choices:
        console.print(_MARKED)
    for line in accuracies(planned):
        console.print(line)
    if planned.rejected:
        console.print("Not chosen:")
    for names, one in grouped(planned.rejected):
        console.print(f"  {names}: {one.kind}: {one.reason}")
        for line in one.detail.splitlines():
            console.print(f"    {line}")


def outcome(planned: PlanResult, terms: PlanTerms) -> str:
    """In a sentence."""
    cheapest = planned.cheapest
    if cheapest is None:
        return f"nothing serves {plain(terms.rate)} requests a second within the targets"
    return (
        f"cheapest: {cheapest.replicas} x {cheapest.layout}, {_devices(cheapest.devices)}, "
        f"${cheapest.cost:.2f} an hour, ${number(cheapest.cost_per_million_tokens)} a million "
        f"tokens; {cheapest.reason}"
    )


def accuracies(planned: PlanResult) -> list[str]:
    """How far the figures can be trusted, each once with all it is said of."""
    owners: dict[str, dict[str, None]] = {}
    for choice in planned.choices:
        name = f"{choice.layout.device} {choice.layout.split}"
        owners.setdefault(accuracy(choice.run), {})[name] = None
    return [f"accuracy of {', '.join(names)}: {text}" for text, names in owners.items()]


def grouped(rejected: Sequence[Rejected]) -> list[tuple[str, Rejected]]:
    """Those with the same reason once, with all their layouts."""
    found: dict[tuple[str, str, str], list[Rejected]] = {}
    for one in sorted(rejected, key=lambda one: _KINDS.index(one.kind)):
        found.setdefault((one.kind, one.reason, one.detail), []).append(one)
    return [(", ".join(str(one.layout) for one in each), each[0]) for each in found.values()]


def accuracy(run: Run) -> str:
    assert run.simulation is not None
    return run.simulation.accuracy


def budget(choice: PlanChoice | Rejected) -> str:
    tokens = choice.layout.token_budget
    return DERIVED if tokens is None else f"{tokens:,}"


def capacity(choice: PlanChoice) -> str:
    """Requests per second, of a replica."""
    return f"{'>= ' if choice.open_ended else ''}{plain(choice.capacity)}"


def fronts(planned: PlanResult, choice: PlanChoice) -> str:
    """Those that a choice is on."""
    members = (("TBT", planned.tbt_front), ("TTFT", planned.ttft_front))
    return "+".join(name for name, front in members if choice in front)


def busy(choice: PlanChoice) -> float:
    """The share of the time with requests in which the busiest stage was."""
    assert choice.run.simulation is not None
    return max((share for share, _ in stage_shares(choice.run.simulation.replicas)), default=0.0)


def plan_fields(planned: PlanResult, terms: PlanTerms) -> dict[str, Any]:
    """What `sarathi plan --json` prints. Times are seconds, rates are per second."""
    targets = terms.targets
    return {
        "rate": terms.rate,
        "workload": terms.load.workload.describe(),
        "tbt_target": targets.tbt,
        "ttft_target": targets.ttft,
        "delay_target": targets.delay,
        "requests_per_point": terms.load.num_requests,
        "explored": planned.explored,
        "plans": [_fields(planned, choice) for choice in planned.choices],
        "rejected": [
            {
                **_layout(rejected),
                "kind": rejected.kind,
                "reason": rejected.reason,
                "detail": rejected.detail,
            }
            for rejected in planned.rejected
        ],
    }


def _fields(planned: PlanResult, choice: PlanChoice) -> dict[str, Any]:
    summary = choice.run.summary
    return {
        **_layout(choice),
        "replicas": choice.replicas,
        "devices": choice.devices,
        "device_price": choice.price,
        "cost_per_hour": choice.cost,
        "cost_per_million_tokens": choice.cost_per_million_tokens,
        "capacity": choice.capacity,
        "capacity_is_at_least": choice.open_ended,
        "rate_per_replica": choice.rate_per_replica,
        "tbt_p99": summary.tbt.p99,
        "ttft_p50": summary.ttft.p50,
        "ttft_p90": summary.ttft.p90,
        "busy": busy(choice),
        "on_tbt_front": choice in planned.tbt_front,
        "on_ttft_front": choice in planned.ttft_front,
        "confirmed": choice.confirmed,
        "reason": choice.reason,
        "accuracy": accuracy(choice.run),
    }


def _layout(one: PlanChoice | Rejected) -> dict[str, Any]:
    layout = one.layout
    return {
        "device": layout.device,
        "tp": layout.tp,
        "pp": layout.pp,
        "token_budget": layout.token_budget,
    }


def _choices(planned: PlanResult, wide: bool) -> Table:
    """
    Args:
        wide: there is room for more than what decides.
    """
    table = Table(
        title="Plans, the cheapest first",
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("plan", no_wrap=True)
    heads = ["budget", "devices", "$/hour", "capacity", "P99\nTBT", "P50\nTTFT", "P90\nTTFT"]
    if wide:
        heads[3:3] = ["$/million\ntokens"]
        heads[5:5] = ["rate\neach", "busy"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("front", no_wrap=True)
    for choice in planned.choices:
        layout, summary = choice.layout, choice.run.summary
        mark = " *" if choice.confirmed else ""
        cells = [
            budget(choice),
            str(choice.devices),
            f"{choice.cost:.2f}",
            capacity(choice),
            milliseconds(tbt(choice)),
            seconds(summary.ttft.p50),
            seconds(ttft(choice)),
        ]
        if wide:
            cells[3:3] = [number(choice.cost_per_million_tokens)]
            cells[5:5] = [plain(choice.rate_per_replica), percent(busy(choice))]
        table.add_row(
            f"{choice.replicas} x {layout.device} {layout.split}{mark}",
            *cells,
            fronts(planned, choice),
        )
    return table


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"
