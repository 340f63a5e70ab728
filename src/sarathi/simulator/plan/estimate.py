"""What can be said of a replica without a simulation."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.simulator.cost_model import BatchShape
from sarathi.simulator.plan.candidates import Candidate
from sarathi.simulator.plan.plan_targets import PlanTerms
from sarathi.simulator.setup import Setup

_SAMPLE = 1000  # requests, whose mean lengths are taken
_TOKENS = 512  # of the iteration that is taken for a typical one
_HEADROOM = 0.5  # of its throughput, which a replica has at its capacity: a rough guess


@dataclass(frozen=True)
class MeanRequest:
    """Tokens."""

    prompt: float
    output: float

    @property
    def total(self) -> float:
        return self.prompt + self.output


def mean_request(terms: PlanTerms, max_model_len: int) -> MeanRequest:
    """
    Raises:
        BenchmarkError: the workload cannot be had.
    """
    load = terms.load
    plan = load.workload.plan(terms.rate, _SAMPLE, 0, load.seed, max_model_len)
    return MeanRequest(float(plan.prompts.mean()), float(plan.outputs.mean()))


def guessed_capacity(setup: Setup, mean: MeanRequest) -> float:
    """Requests per second, within a factor of two or so: where to begin, and whom to try first."""
    decodes = min(setup.config.max_batch_size, 64, round(_TOKENS * mean.output / mean.total) + 1)
    chunk = _TOKENS - decodes
    past = int(mean.prompt / 2)
    context = int(decodes * (mean.prompt + mean.output / 2))
    shape = BatchShape(decodes, context, ((past, chunk),), decodes, _TOKENS)
    cost = setup.cost
    seconds = max(cost.stages(shape)) + cost.overhead(shape)
    return _HEADROOM * _TOKENS / (seconds * mean.total)


def lone_decode(setup: Setup) -> float:
    """Seconds between two tokens of a request that has the replica for itself, at least."""
    shape = BatchShape(1, 1, (), 1, 1)
    cost = setup.cost
    hops = (cost.num_stages - 1) * cost.hop(shape)
    return cost.overhead(shape) + sum(cost.stages(shape)) + hops


def guessed_cost(candidate: Candidate, terms: PlanTerms, mean: MeanRequest) -> float:
    """Dollars an hour. Part of a replica counts, so that there are no ties."""
    replicas = terms.rate / guessed_capacity(candidate.setup, mean)
    return max(1.0, replicas) * candidate.replica_price
