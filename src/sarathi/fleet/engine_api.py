"""What a server needs of what answers its requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from sarathi.engine.messages import ModelInfo
from sarathi.fleet.generation import Generation
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import SchedulingParams
from sarathi.telemetry.request_latencies import Latencies
from sarathi.telemetry.stats import Stats

ReplicaState = Literal["ready", "starting", "draining", "failed"]
REPLICA_STATES: tuple[ReplicaState, ...] = ("ready", "starting", "draining", "failed")


class ReplicaStatus(msgspec.Struct, frozen=True):
    """One of the engines that share the requests."""

    number: int
    state: ReplicaState
    requests: int  # that it has and that have not ended
    restarts: int
    reason: str | None = None  # why it failed, or had to be started again the last time


def by_state(replicas: Sequence[ReplicaStatus]) -> dict[ReplicaState, int]:
    """How many there are in each state, those without any included."""
    counts = dict.fromkeys(REPLICA_STATES, 0)
    for replica in replicas:
        counts[replica.state] += 1
    return counts


class Engine(Protocol):
    """What a server needs: `Fleet`, or a scripted one in tests."""

    @property
    def info(self) -> ModelInfo | None:
        """None until the model is loaded."""

    @property
    def error(self) -> str | None:
        """Why requests will not be answered any more, None while they are."""

    @property
    def stats(self) -> Stats | None:
        """The schedulers' state after their latest iterations, summed; None before the first."""

    @property
    def latencies(self) -> Latencies:
        """Of all requests so far."""

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        """By number."""

    @property
    def restarts(self) -> int:
        """Engines that were started because another one had died."""

    @property
    def resumed(self) -> int:
        """Times that a request went on in another engine than before."""

    def submit(
        self, prompt_ids: Sequence[int], params: SamplingParams, terms: SchedulingParams = ...
    ) -> Generation:
        """Queue one request; `EngineError` where no engine is ready or will be again."""

    def scale(self, replicas: int, drain_seconds: float | None = None) -> None:
        """Start or end engines until there are so many; returns at once, see `Fleet.scale`."""
