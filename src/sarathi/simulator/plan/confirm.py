"""A choice as it would run: all its replicas, and the router before them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from msgspec import structs

from sarathi.bench.results import Run
from sarathi.simulator.plan.attempt import attempt
from sarathi.simulator.plan.candidates import Candidate, Rejected
from sarathi.simulator.plan.evaluate import PlanChoice
from sarathi.simulator.plan.plan_targets import PlanTerms

_SPARE = 3  # replicas more than were thought to be enough
_MOST_REQUESTS = 4096  # unless the least duration of a run asks for more
_RECORDS = 1024  # of a run, for figures


@dataclass(frozen=True)
class ConfirmJob:
    choice: PlanChoice
    candidate: Candidate
    terms: PlanTerms
    router: str


def confirm(job: ConfirmJob) -> PlanChoice | Rejected:
    """With more replicas, where those that were thought to be enough are not."""
    choice, terms = job.choice, job.terms
    for replicas in range(choice.replicas, choice.replicas + _SPARE + 1):
        number = max(
            min(_MOST_REQUESTS, replicas * terms.load.num_requests),
            math.ceil(terms.rate * terms.point_duration),
        )
        setup = job.candidate.setup
        described = {**setup.description, "replicas": str(replicas), "router": job.router}
        run, verdict = attempt(
            replace(setup, num_replicas=replicas, router=job.router, description=described),
            terms,
            terms.rate,
            number,
            f"{replicas} x {choice.layout}",
            _RECORDS,
        )
        if run is not None and verdict.met:
            found = replace(choice, replicas=replicas, reason=verdict.reason, confirmed=True)
            return replace(found, run=_priced(run, found.cost_per_million_tokens))
    reason = f"{replicas} replicas together miss: {verdict.reason}"
    return Rejected(choice.layout, "misses", reason)


def _priced(run: Run, cost: float) -> Run:
    """With the cost of a load that goes on. At its end, a run keeps devices for ever fewer."""
    simulation = run.simulation
    assert simulation is not None
    return structs.replace(
        run, simulation=structs.replace(simulation, cost_per_million_tokens=cost)
    )
