"""What a plan must keep, and how it is looked for."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.bench.capacity.verdict import (
    CapacityTargets,
    Verdict,
    combine,
    evaluate,
    evaluate_latency,
)
from sarathi.simulator.simulated_run import SimulatedLoad
from sarathi.telemetry import Summary


@dataclass(frozen=True)
class PlanTargets:
    """Seconds.

    A queue that grows has a median delay of half its longest, if requests start in their order: the
    paper's bound on the median then bounds all. The engine lets short prompts pass long ones,
    however. With the median alone, a plan would let a tenth of the requests wait for minutes, and
    ever longer the longer it runs. So P90 has a bound, too: that which follows from the median's
    where requests start in order.
    """

    tbt: float  # for P99
    ttft: float | None = None  # for P90; None: any
    delay: float = 2.0  # for the median scheduling delay

    @property
    def tail_delay(self) -> float:
        """For P90 of the scheduling delay."""
        return 2 * self.delay

    def evaluate(self, summary: Summary) -> Verdict:
        """As `capacity.verdict.judge`, with more to be met.

        A miss is certain if anything says so for certain; targets are met for certain if all do.
        """
        load = evaluate(summary, CapacityTargets(self.tbt, self.delay, self.tail_delay))
        if self.ttft is None:
            return load
        ttft = summary.ttft
        if ttft.p90 is None:
            return combine(load, Verdict(False, True, "no complete answer has a token"))
        return combine(load, evaluate_latency("P90 TTFT", ttft.p90, ttft.p90_interval, self.ttft))


@dataclass(frozen=True)
class PlanTerms:
    """A load that is to be served, and how finely capacities are searched."""

    rate: float  # requests per second, of all replicas together
    targets: PlanTargets
    load: SimulatedLoad  # its requests are those of a point at least
    resolution: float = 0.1  # relative, of capacities
    point_duration: float = 90.0  # seconds of arrivals that a point has at least
