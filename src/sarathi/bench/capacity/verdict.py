"""Whether a run met the targets, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sarathi.bench.capacity.pooled_runs import pooled
from sarathi.bench.results import Run
from sarathi.telemetry import Summary
from sarathi.units import format_duration

FAILED_SHARE = 0.01  # of the requests; with more, a run misses whatever the latencies
Z = 1.96  # standard errors to either side that hold 95 %


@dataclass(frozen=True)
class CapacityTargets:
    """What a rate must keep to count, in seconds."""

    tbt: float  # for P99
    delay: float = 2.0  # for the median scheduling delay
    tail_delay: float | None = None  # for its 90th percentile
    by_ttft: bool = False  # the median TTFT in its place, whatever the server tells of itself


@dataclass(frozen=True)
class Verdict:
    """What a run says of its rate."""

    met: bool
    certain: bool  # with 95 % confidence other requests would have said the same
    reason: str


def judge(summary: Summary, targets: CapacityTargets) -> Verdict:
    """Whether one or several runs met the targets, with at most 1 % of the requests failed.

    Where the server does not tell its scheduling delay, or `by_ttft` is set, the median TTFT stands
    for it: it is longer, so that a server gains nothing by not telling.

    The bound on the tail of the delay is for schedulers that let some requests pass others: those
    meet any median while the rest waits ever longer.

    A miss is certain if any of its reasons is: for a latency, if the whole interval lies above the
    target. A run that met the targets did so for certain if all its intervals lie below them.
    Without an interval, for want of requests, nothing is certain.
    Answers of one token each have no TBT, and meet any target.
    """
    return together(_failures(summary), _tbt(summary, targets.tbt), *_delays(summary, targets))


def together(*verdicts: Verdict) -> Verdict:
    """One on all that had to be met."""
    missed = [verdict for verdict in verdicts if not verdict.met]
    told = ", ".join(verdict.reason for verdict in missed or verdicts)
    if missed:
        return Verdict(False, any(verdict.certain for verdict in missed), told)
    return Verdict(True, all(verdict.certain for verdict in verdicts), told)


def judge_runs(runs: Sequence[Run], targets: CapacityTargets) -> tuple[Verdict, Summary]:
    """One verdict on all runs at a rate, and the figures behind it.

    Their requests are judged as if they were of one run. A run that was stopped has missed for
    certain, and its requests are those of its beginning: it decides alone.

    Args:
        runs: of one rate; at least one.
    """
    for run in runs:
        if run.stopped is not None:
            return Verdict(False, True, run.stopped), run.summary
    summary = pooled(runs)
    return judge(summary, targets), summary


def _failures(summary: Summary) -> Verdict:
    failed, requests = sum(summary.failures.values()), summary.requests
    allowed = FAILED_SHARE * requests
    # The number of failures is taken for a Poisson variable; none at all is taken for never.
    certain = failed == 0 or abs(failed - allowed) > Z * math.sqrt(failed)
    if failed == 0:
        return Verdict(True, certain, "no failures")
    kinds = ", ".join(f"{number} {kind}" for kind, number in summary.failures.items())
    return Verdict(failed <= allowed, certain, f"{failed} of {requests} failed ({kinds})")


def _tbt(summary: Summary, target: float) -> Verdict:
    tbt = summary.tbt
    if tbt.p99 is None:
        return Verdict(True, True, "no time between tokens")
    return judge_latency("P99 TBT", tbt.p99, tbt.p99_interval, target)


def _delays(summary: Summary, targets: CapacityTargets) -> list[Verdict]:
    told = summary.scheduling_delay.count > 0 and not targets.by_ttft
    name, delay = ("scheduling delay", summary.scheduling_delay) if told else ("TTFT", summary.ttft)
    if delay.p50 is None:
        return [Verdict(False, True, "no complete answer has a token")]
    verdicts = [judge_latency(f"median {name}", delay.p50, delay.p50_interval, targets.delay)]
    if targets.tail_delay is not None and delay.p90 is not None:
        tail = judge_latency(f"P90 {name}", delay.p90, delay.p90_interval, targets.tail_delay)
        verdicts.append(tail)
    return verdicts


def judge_latency(
    name: str, value: float, interval: tuple[float, float] | None, target: float
) -> Verdict:
    """A percentile against its target; certain if all of its interval says the same."""
    low, high = interval or (-math.inf, math.inf)
    if value > target:
        return Verdict(
            False, low > target, f"{name} {format_duration(value)} above {format_duration(target)}"
        )
    return Verdict(
        True, high <= target, f"{name} {format_duration(value)} within {format_duration(target)}"
    )
