"""Whose prompt is computed first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sarathi.scheduler.budget.latency_model import LatencyModel
from sarathi.scheduler.request import Rank, Request

BACKGROUND = 1  # the lane of requests that cannot meet their target any more


class Order(Protocol):
    preempts: bool  # whether anybody ever displaces anybody

    def displaces(self, waiting: Request, running: Request) -> bool:
        """Whether one that waits may take the place of one that runs."""

    def rank(self, request: Request) -> Rank:
        """Where a request stands, fixed when it arrives."""

    def hopeless(self, request: Request, cached: int, now: float) -> bool:
        """Whether a prompt, of which `cached` tokens are computed, cannot be in time any more."""


class Fcfs:
    """First come, first served."""

    preempts = False

    def displaces(self, waiting: Request, running: Request) -> bool:
        return False

    def rank(self, request: Request) -> Rank:
        return Rank(0, request.arrival, request.id)

    def hopeless(self, request: Request, cached: int, now: float) -> bool:
        return False


class Priority:
    """The least `priority` first; first come, first served among equals."""

    preempts = True

    def displaces(self, waiting: Request, running: Request) -> bool:
        return running.rank.lane > waiting.rank.lane

    def rank(self, request: Request) -> Rank:
        return Rank(request.scheduling_params.priority, request.arrival, request.id)

    def hopeless(self, request: Request, cached: int, now: float) -> bool:
        return False


@dataclass(frozen=True)
class Slack:
    """Deadline plus remaining work, with relegation.

    Between earliest deadline first and shortest remaining time first, and whoever could not get
    its first token in time even if it ran alone from now on makes way for those who still can:
    the order of Niyama (Goel et al., 2025), where `alpha` weighs the work.
    """

    model: LatencyModel
    ttft_target: float  # seconds, of requests that have none of their own
    alpha: float = 1.0
    preempts = True

    def displaces(self, waiting: Request, running: Request) -> bool:
        # Who has begun to answer goes on.
        return running.rank.lane > waiting.rank.lane and not running.output_ids

    def rank(self, request: Request) -> Rank:
        work = self.model.prompt_cost(request.num_tokens, 0, True)
        return Rank(0, self._deadline(request) + self.alpha * work, request.id)

    def hopeless(self, request: Request, cached: int, now: float) -> bool:
        if request.output_ids:  # computed again after a preemption: it has been in time, or not
            return False
        work = self.model.prompt_cost(request.num_tokens - cached, cached, True)
        return now + work > self._deadline(request)

    def _deadline(self, request: Request) -> float:
        own = request.scheduling_params.ttft_target
        return request.arrival + (self.ttft_target if own is None else own)


ORDERS: Mapping[str, Callable[[LatencyModel, float], Order]] = {
    "fcfs": lambda model, ttft_target: Fcfs(),
    "priority": lambda model, ttft_target: Priority(),
    "slack": Slack,
}
