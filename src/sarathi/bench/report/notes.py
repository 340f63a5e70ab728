"""What a reader must know beside the figures: warnings, conditions, what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sarathi.bench.report.measured import ReportData, rate_of
from sarathi.bench.report.table import failure_counts, milliseconds, number, percent, rate
from sarathi.bench.results import Capacity, ReplicaUse, Run, Simulation
from sarathi.telemetry import RequestRecord


def run_notes(run: Run) -> list[str]:
    """Return everything to be printed below the latencies of a run."""
    summary, found = run.summary, []
    if summary.goodput is not None and summary.attainment is not None:
        found.append(
            f"goodput: {summary.goodput:.3g} requests a second, "
            f"{100 * summary.attainment:.1f} % of all, met their targets"
        )
    if summary.failures:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.failures.items())
        # Where the records hold one request of many, it may be that none of them failed.
        detail = next((one.detail for one in run.records if one.failure is not None), None)
        found.append(f"failed: {kinds}" + (f" (the first: {detail})" if detail else ""))
    if run.num_shortened:
        found.append(f"{run.num_shortened} requests were shortened to the server's context")
    if any(record.estimated for record in run.records):
        found.append(
            "the server does not count the tokens of each event: times of tokens are estimated"
        )
    found += filter(None, (short_answers([run]), cached_prompts([run])))
    if run.simulation is None:
        found.append(
            f"the client was late by {milliseconds(run.lag.p50)} at P50, "
            f"{milliseconds(run.lag.p99)} at P99"
        )
    else:
        found += simulation_notes(run.simulation)
    if run.stopped is not None:
        found.append(run.stopped)
    return found


def short_answers(runs: Sequence[Run]) -> str | None:
    """Return a warning where complete answers are shorter than asked for."""
    complete = _complete(runs)
    asked = sum(record.output_tokens for record in complete)
    received = sum(min(len(record.tokens), record.output_tokens) for record in complete)
    return f"answers had {received:,} of {asked:,} tokens asked for" if received < asked else None


def cached_prompts(runs: Sequence[Run]) -> str | None:
    """Return a warning where the server reports cached prompt tokens."""
    complete = _complete(runs)
    cached = sum(record.cached_tokens for record in complete)
    if not cached:
        return None
    share = cached / sum(record.prompt_tokens for record in complete)
    return f"{percent(share)} of the prompt tokens came from the server's prefix cache"


def has_conversations(run: Run) -> bool:
    """Whether the prompts of a run share prefixes on purpose."""
    return "turns" in run.workload


def _complete(runs: Sequence[Run]) -> list[RequestRecord]:
    return [record for run in runs for record in run.records if record.failure is None]


def stage_shares(replicas: Sequence[ReplicaUse]) -> list[tuple[float, float]]:
    """Return the busy and the idle share of each pipeline stage, over all replicas.

    They are shares of the time in which a replica had requests. Idle in it is a bubble, so the two
    make 1.
    """
    active = sum(use.active for use in replicas)
    if not active:
        return []
    stages = zip(*(zip(use.busy, use.bubbles, strict=True) for use in replicas), strict=True)
    return [
        (sum(busy for busy, _ in stage) / active, sum(idle for _, idle in stage) / active)
        for stage in stages
    ]


def overhead_share(replicas: Sequence[ReplicaUse]) -> float | None:
    """Return the share of the time with requests in which the engine prepared iterations."""
    active = sum(use.active for use in replicas)
    return sum(use.overhead for use in replicas) / active if active else None


def kv_shares(replicas: Sequence[ReplicaUse]) -> tuple[float, float] | None:
    """Return the mean (over the time with requests) and the largest share of KV blocks in use."""
    active = sum(use.active for use in replicas)
    if not active:
        return None
    mean = sum(use.kv_mean * use.active for use in replicas) / active
    return mean, max(use.kv_max for use in replicas)


def simulation_notes(simulation: Simulation) -> list[str]:
    """Return how well the simulated hardware was used; the last note is the accuracy."""
    replicas, found = simulation.replicas, []
    shares = stage_shares(replicas)
    for stage, (busy, idle) in enumerate(shares):
        name = f"stage {stage}" if len(shares) > 1 else "devices"
        found.append(
            f"{name}: busy for {percent(busy)} of the time with requests, "
            f"idle (bubbles) for {percent(idle)}"
        )
    overhead, kv = overhead_share(replicas), kv_shares(replicas)
    if overhead is not None:
        found.append(f"the engine prepared iterations for {percent(overhead)} of that time")
    if kv is not None:
        preemptions = sum(use.preemptions for use in replicas)
        found.append(
            f"KV blocks: {percent(kv[0])} in use on average, {percent(kv[1])} at most; "
            f"{preemptions:,} preemptions"
        )
    if simulation.cost_per_million_tokens is not None:
        found.append(
            f"cost: ${number(simulation.cost_per_million_tokens)} a million tokens, prompts "
            "included"
        )
    found += filter(None, [sampling_note(simulation)])
    return [*found, f"accuracy: {simulation.accuracy}"]


def sampling_note(simulation: Simulation) -> str | None:
    """Return a note where the records hold only some of the requests."""
    every = simulation.records_every
    if every <= 1:
        return None
    return f"figures by request show one in {every:,}; percentiles are those of all"


@dataclass(frozen=True)
class Alert:
    """Warnings of one kind, shown before anything else."""

    tone: str  # "bad" or "warn"
    head: str
    texts: list[str]


@dataclass(frozen=True)
class Fact:
    """A condition of the measurements, with its value for all or for each label."""

    name: str
    values: list[tuple[str, str]]  # labels (empty for all) and value
    code: bool = False


def alerts(measured: ReportData) -> list[Alert]:
    """Return all warnings; stopped or failed runs of a search are normal, and cause none."""
    invalid = _of(measured.all_runs, lambda run: run.invalid)
    stopped = _of(measured.runs, lambda run: run.stopped)
    found = [
        Alert("bad", "Do not use these figures", invalid),
        Alert("warn", "Stopped before all requests were sent", stopped),
        Alert("warn", "Requests failed, and are in no latency", _of(measured.runs, _failed)),
        Alert("warn", "Times of tokens are estimated", _estimated(measured)),
        Alert("warn", "Answers are shorter than asked", _by_label(measured, short_answers)),
        Alert("warn", "Prompts were cached", _by_label(measured, _cached_by_accident)),
        Alert("warn", "Simulated, not measured", _by_label(measured, _simulated)),
    ]
    return [alert for alert in found if alert.texts]


def _of(runs: tuple[Run, ...], describe: Callable[[Run], str | None]) -> list[str]:
    return [
        f"{run.label}, {rate(rate_of(run))}: {text}"
        for run in runs
        if (text := describe(run)) is not None
    ]


def _failed(run: Run) -> str | None:
    summary = run.summary
    if not summary.failures:
        return None
    failed = summary.requests - summary.completed
    text = f"{failed:,} of {summary.requests:,} ({failure_counts(summary)})"
    details = [record.detail for record in run.records if record.detail]
    return f"{text}; the first: {details[0]}" if details else text


def _by_label(measured: ReportData, describe: Callable[[list[Run]], str | None]) -> list[str]:
    return [
        f"{label}: {text}"
        for label in measured.labels
        if (text := describe([run for run in measured.all_runs if run.label == label])) is not None
    ]


def _cached_by_accident(runs: list[Run]) -> str | None:
    return cached_prompts([run for run in runs if not has_conversations(run)])


def _simulated(runs: list[Run]) -> str | None:
    """Return the accuracy of the simulation, each text once."""
    found = [run.simulation for run in runs if run.simulation is not None]
    accuracies = [simulation.accuracy for simulation in found]
    samples = [note for one in found if (note := sampling_note(one)) is not None]
    return "; ".join(dict.fromkeys([*accuracies, *samples])) or None


def _estimated(measured: ReportData) -> list[str]:
    labels = {r.label for r in measured.all_runs if any(one.estimated for one in r.records)}
    return [
        f"{label}: the server does not report how many tokens each event holds"
        for label in measured.labels
        if label in labels
    ]


def facts(measured: ReportData) -> list[Fact]:
    """Return the model, workload, server and machine of the measurements."""
    all_of: tuple[Run | Capacity, ...] = (*measured.runs, *measured.capacity_results)
    simulated = any(run.simulation is not None for run in measured.all_runs)
    sources: tuple[tuple[str, Callable[[Run | Capacity], str], bool], ...] = (
        ("Model", lambda one: one.model, False),
        ("Workload", _workload, True),
        ("Server", lambda one: one.server, True),
        ("Machine" if simulated else "Client's machine", lambda one: one.machine, False),
    )
    return [
        Fact(name, _values([(one.label, of(one)) for one in all_of]), code)
        for name, of, code in sources
        if all_of
    ]


def _workload(one: Run | Capacity) -> str:
    return " ".join(f"--{name} {value}" for name, value in one.workload.items())


def _values(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return each value once, with the labels that have it."""
    owners: dict[str, dict[str, None]] = {}
    for label, value in pairs:
        owners.setdefault(value, {})[label] = None
    if len(owners) == 1:
        return [("", next(iter(owners)))]
    return [(", ".join(labels), value) for value, labels in owners.items()]
