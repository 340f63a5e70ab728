"""Servers of the same model that are measured in turns, one of them under load at a time."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from perf.report import rounds
from sarathi.bench.client.endpoint import Call
from sarathi.bench.client.open_loop import play
from sarathi.bench.target import Credentials, RunningServer, Target, running_server
from sarathi.bench.workload.prompt_text import write_prompts
from sarathi.bench.workload.token_counter import TokenCounter
from sarathi.bench.workload.workload import PlannedRequest
from sarathi.errors import BenchmarkError
from sarathi.telemetry import RequestRecord

_TIMEOUT = 300.0  # seconds without a token, or for a server to load


@dataclass(frozen=True)
class Burst:
    """Requests of the same length that are sent at once."""

    requests: int
    prompt: int  # tokens
    output: int


Times = dict[str, dict[str, list[float]]]  # seconds of each round, by figure and server


@dataclass(frozen=True)
class Contenders:
    """Servers that run, by their labels."""

    servers: Mapping[str, RunningServer]
    tokens: TokenCounter
    _salts: set[str] = field(default_factory=set)

    def alternate(self, burst: Burst, number: int, warm_up: int) -> Times:
        """Send the burst to each server in turn; return the figures of the rounds that count.

        Every round has new texts, and begins with another server.

        Raises:
            BenchmarkError: a server refused a request, or ended an answer early.
        """
        times: Times = {}
        labels = list(self.servers)
        title = f"{burst.requests} x {burst.prompt} + {burst.output} tokens"
        print(f"{title}, {number} rounds", file=sys.stderr, flush=True)
        for index in rounds(range(number + warm_up), title):
            calls = self._calls(burst)
            first = index % len(labels)
            for label in labels[first:] + labels[:first]:
                records = self._send(self.servers[label], calls)
                if index >= warm_up:
                    for name, seconds in figures_of(records).items():
                        times.setdefault(name, {}).setdefault(label, []).append(seconds)
        return times

    def _calls(self, burst: Burst) -> list[Call]:
        plan = [
            PlannedRequest(0.0, burst.prompt, burst.output, number, 0)
            for number in range(burst.requests)
        ]
        texts = write_prompts(plan, self.tokens, secrets.token_hex(4), 0)
        return [Call(0.0, text, burst.prompt, burst.output) for text in texts]

    def _send(self, server: RunningServer, calls: Sequence[Call]) -> list[RequestRecord]:
        server.check()
        playing = play(server.endpoint, server.facts.dialect, calls, timeout=_TIMEOUT)
        records = uvloop.run(playing).records
        for record in records:
            if record.failure is not None:
                raise BenchmarkError(f"{server.label}: {record.failure}: {record.detail}")
            if len(record.tokens) != record.output_tokens:
                raise BenchmarkError(
                    f"{server.label}: {len(record.tokens)} tokens came of {record.output_tokens}"
                )
        return records


def figures_of(records: Sequence[RequestRecord]) -> dict[str, float]:
    """Return the seconds that describe a burst.

    `ttft`: to the first token of all, `tbt`: between tokens, at the mean of each request; `total`:
    until all have ended.
    """
    found = {
        "ttft": float(np.median([record.tokens[0] - record.arrival for record in records])),
        "total": max(one.tokens[-1] for one in records) - min(one.arrival for one in records),
    }
    gaps = [np.mean(record.gaps) for record in records if len(record.tokens) > 1]
    if gaps:
        found["tbt"] = float(np.median(gaps))
    return found


@contextmanager
def running(targets: Sequence[Target], tokens: TokenCounter, logs: Path) -> Iterator[Contenders]:
    """Start the servers, one after the other, and stop them at the end.

    Raises:
        BenchmarkError: one does not start, or cannot be measured.
    """
    access = Credentials(None, "completions", None, _TIMEOUT)
    with ExitStack() as stack:
        servers = {}
        for target in targets:
            log = logs / f"{target.label.replace(' ', '-')}.log"
            print(f"{target.label}: {target.command}", file=sys.stderr)
            servers[target.label] = stack.enter_context(running_server(target, access, log))
        yield Contenders(servers, tokens)
