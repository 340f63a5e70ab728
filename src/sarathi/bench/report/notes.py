"""Warnings and conditions beside the figures: what limits their use, and what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sarathi.bench.number_format import rate
from sarathi.bench.report.measured import ReportData, rate_of
from sarathi.bench.report.table import failure_counts
from sarathi.bench.results import Capacity, Run
from sarathi.bench.run_notes import cached_prompts, has_conversations, sampling_note, short_answers


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
