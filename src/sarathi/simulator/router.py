"""Which of several replicas gets a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from sarathi.scheduling import LatencyModel, Request, Work

_TYPICAL = Work(32, 0.0, 32 * 512, 32)  # of decodes
_PRESUMED_OUTPUT = 256.0  # tokens, until the first answers have ended


class Router(Protocol):
    """Knows of a request what a real router would: its prompt, not how long its answer will be."""

    def choose(self, request: Request) -> int:
        """The index of a replica."""

    def started(self, replica: int, request: Request) -> None:
        """Its first token has come."""

    def ended(self, replica: int, request: Request) -> None: ...


class RoundRobin:
    """One after the other."""

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._replicas = replicas
        self._next = 0

    def choose(self, request: Request) -> int:
        chosen, self._next = self._next, (self._next + 1) % self._replicas
        return chosen

    def started(self, replica: int, request: Request) -> None:
        pass

    def ended(self, replica: int, request: Request) -> None:
        pass


class LeastOutstanding:
    """The one with the fewest requests that have not ended."""

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._open = [0] * replicas

    def choose(self, request: Request) -> int:
        chosen = self._open.index(min(self._open))
        self._open[chosen] += 1
        return chosen

    def started(self, replica: int, request: Request) -> None:
        pass

    def ended(self, replica: int, request: Request) -> None:
        self._open[replica] -= 1


class LeastWork:
    """The one that would be done first with all it has, as far as can be foreseen.

    A prompt counts with the time that the latency model gives it, until its first token; an answer
    with that of as many tokens as answers had on average so far.
    """

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._model = model
        self._prompts = [0.0] * replicas  # seconds
        self._answers = [0] * replicas
        self._per_token = model.predict(_TYPICAL) / _TYPICAL.tokens
        self._ended = 0
        self._tokens = 0

    def choose(self, request: Request) -> int:
        length = self._tokens / self._ended if self._ended else _PRESUMED_OUTPUT
        per_answer = length * self._per_token
        work = [p + per_answer * n for p, n in zip(self._prompts, self._answers, strict=True)]
        chosen = work.index(min(work))
        self._prompts[chosen] += self._seconds(request)
        self._answers[chosen] += 1
        return chosen

    def started(self, replica: int, request: Request) -> None:
        self._prompts[replica] -= self._seconds(request)

    def ended(self, replica: int, request: Request) -> None:
        self._answers[replica] -= 1
        self._ended += 1
        self._tokens += len(request.output_ids)

    def _seconds(self, request: Request) -> float:
        return self._model.prompt_cost(len(request.prompt_ids), 0, True)


ROUTERS: Mapping[str, Callable[[int, LatencyModel], Router]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
    "least_work": LeastWork,
}
