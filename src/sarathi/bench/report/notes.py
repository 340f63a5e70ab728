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


def _complete(runs: Sequence[Run]) -> list[RequestRecord]:
    return [record for run in runs for record in run.records if record.failure is None]


def simulation_notes(simulation: Simulation) -> list[str]:
    """Return how well the simulated hardware was used; the last note is the accuracy."""
    use, found = ReplicaUse.pooled(simulation.replicas), []
    for stage, (busy, idle) in enumerate(use.stage_shares):
        name = f"stage {stage}" if len(use.busy) > 1 else "devices"
        found.append(
            f"{name}: busy for {percent(busy)} of the time with requests, "
            f"idle (bubbles) for {percent(idle)}"
        )
    if use.active:
        overhead = percent(use.overhead / use.active)
        found += [
            f"the engine prepared iterations for {overhead} of that time",
            f"KV blocks: {percent(use.kv_mean)} in use on average, {percent(use.kv_max)} at most; "
            f"{use.preemptions:,} preemptions",
        ]
    cost = simulation.cost_per_million_tokens
    if cost is not None:
        found.append(f"cost: ${number(cost)} a million tokens, prompts included")
    found += filter(None, [sampling_note(simulation)])
    return [*found, f"accuracy: {simulation.accuracy}"]


def sampling_note(simulation: Simulation) -> str | None:
    """Return a note where the records hold only some of the requests."""
    shown = f"figures by request show one in {simulation.records_every:,}"
    return f"{shown}; percentiles are those of all" if simulation.records_every > 1 else None


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
    invalid = [(run, run.invalid) for run in measured.all_runs]
    stopped = [(run, run.stopped) for run in measured.runs]
    failed = [(run, _failed(run)) for run in measured.runs]
    found = [
        Alert("bad", "Do not use these figures", _named(invalid)),
        Alert("warn", "Stopped before all requests were sent", _named(stopped)),
        Alert("warn", "Requests failed, and are in no latency", _named(failed)),
        Alert("warn", "Times of tokens are estimated", _by_label(measured, _estimated)),
        Alert("warn", "Answers are shorter than asked", _by_label(measured, short_answers)),
        Alert("warn", "Prompts were cached", _by_label(measured, _cached_by_accident)),
        Alert("warn", "Simulated, not measured", _by_label(measured, _simulated)),
    ]
    return [alert for alert in found if alert.texts]


def _named(texts: list[tuple[Run, str | None]]) -> list[str]:
    return [f"{run.label}, {rate(rate_of(run))}: {text}" for run, text in texts if text is not None]


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
    """Return the warning of runs whose prompts share prefixes, but not as turns on purpose."""
    return cached_prompts([run for run in runs if "turns" not in run.workload])


def _simulated(runs: list[Run]) -> str | None:
    """Return the accuracy of the simulation, each text once."""
    found = [run.simulation for run in runs if run.simulation is not None]
    texts = [one.accuracy for one in found] + [sampling_note(one) or "" for one in found]
    return "; ".join(filter(None, dict.fromkeys(texts))) or None


def _estimated(runs: list[Run]) -> str | None:
    estimated = any(record.estimated for run in runs for record in run.records)
    return "the server does not report how many tokens each event holds" if estimated else None


def facts(measured: ReportData) -> list[Fact]:
    """Return the model, workload, server and machine of the measurements."""
    all_of: tuple[Run | Capacity, ...] = (*measured.runs, *measured.capacity_results)
    if not all_of:
        return []
    simulated = any(run.simulation is not None for run in measured.all_runs)

    def fact(name: str, of: Callable[[Run | Capacity], str], code: bool = False) -> Fact:
        """Have each value once, with the labels that have it."""
        owners: dict[str, dict[str, None]] = {}
        for one in all_of:
            owners.setdefault(of(one), {})[one.label] = None
        one_for_all = len(owners) == 1
        values = [
            ("" if one_for_all else ", ".join(labels), value) for value, labels in owners.items()
        ]
        return Fact(name, values, code)

    return [
        fact("Model", lambda one: one.model),
        fact("Workload", _workload, code=True),
        fact("Server", lambda one: one.server, code=True),
        fact("Machine" if simulated else "Client's machine", lambda one: one.machine),
    ]


def _workload(one: Run | Capacity) -> str:
    return " ".join(f"--{name} {value}" for name, value in one.workload.items())
