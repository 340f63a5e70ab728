"""The order of prompts, and the requests that may be preempted for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sarathi.scheduler.budget.latency_model import LatencyModel
from sarathi.scheduler.request import Rank, Request

RELEGATED = 1  # the priority class of requests that miss their deadline


class Order(Protocol):
    """Ranks requests. Rows of `ORDERS`, which --order selects."""

    preempts: bool  # whether a running request is ever preempted for a waiting one

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        """Return whether `running` may be preempted to admit `waiting`."""

    def rank(self, request: Request) -> Rank:
        """Return the rank of a request, fixed at its arrival."""

    def misses_deadline(self, request: Request, num_computed: int, now: float) -> bool:
        """Return whether a prompt cannot be in time, even if it runs alone from `now` on."""


class Fcfs:
    """First come, first served."""

    preempts = False

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        return False

    def rank(self, request: Request) -> Rank:
        return Rank(0, request.arrival, request.id)

    def misses_deadline(self, request: Request, num_computed: int, now: float) -> bool:
        return False


class Priority:
    """The lowest `priority` first; first come, first served among equals."""

    preempts = True

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        return running.rank.priority_class > waiting.rank.priority_class

    def rank(self, request: Request) -> Rank:
        return Rank(request.scheduling_params.priority, request.arrival, request.id)

    def misses_deadline(self, request: Request, num_computed: int, now: float) -> bool:
        return False


@dataclass(frozen=True)
class Slack:
    """Deadline plus remaining work, with relegation.

    Between earliest deadline first and shortest remaining time first; requests that could not get
    their first token in time even if they ran alone from now on yield to those that still can:
    the order of Niyama (Goel et al., 2025), where `alpha` weighs the work.
    """

    latency_model: LatencyModel
    ttft_target: float  # seconds, of requests without one
    alpha: float = 1.0
    preempts = True

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        # A request with output continues.
        return running.rank.priority_class > waiting.rank.priority_class and not running.output_ids

    def rank(self, request: Request) -> Rank:
        work = self.latency_model.prompt_cost(request.num_tokens, 0, True)
        return Rank(0, self._deadline(request) + self.alpha * work, request.id)

    def misses_deadline(self, request: Request, num_computed: int, now: float) -> bool:
        if request.output_ids:  # recomputed after a preemption: the deadline is past
            return False
        remaining = request.num_tokens - num_computed
        work = self.latency_model.prompt_cost(remaining, num_computed, True)
        return now + work > self._deadline(request)

    def _deadline(self, request: Request) -> float:
        own = request.scheduling_params.ttft_target
        return request.arrival + (self.ttft_target if own is None else own)


ORDERS: Mapping[str, Callable[[LatencyModel, float], Order]] = {
    "fcfs": lambda model, ttft_target: Fcfs(),
    "priority": lambda model, ttft_target: Priority(),
    "slack": Slack,
}
