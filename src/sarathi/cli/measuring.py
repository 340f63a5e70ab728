"""From the arguments of the commands that measure servers to what the benchmark takes."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from sarathi.bench.client.open_loop import RunListener, RunListeners
from sarathi.bench.client.server_probe import ServerFacts
from sarathi.bench.measure import Load, RunOptions
from sarathi.bench.progress_line import ProgressLine
from sarathi.bench.target import Credentials, RunningServer, Target, running_server
from sarathi.bench.workload.token_counter import LocalTokens, ServerTokens, TokenCounter
from sarathi.bench.workload.workload import Workload
from sarathi.cli.keys import api_key
from sarathi.telemetry import Targets

_PATIENCE = 60.0  # seconds


class Tokens:
    """Counts with `--tokenizer`, or else with whichever server is asked at the time."""

    def __init__(self, args: argparse.Namespace) -> None:
        """
        Raises:
            BenchmarkError: `--tokenizer` is none.
        """
        chat = args.api == "chat"
        self._local = None if args.tokenizer is None else LocalTokens(args.tokenizer, chat)
        self._remote: ServerTokens | None = None

    def ask(self, subject: RunningServer) -> None:
        """A server is up that can be asked."""
        self.close()
        self._remote = ServerTokens(subject.endpoint)

    def count(self, text: str) -> int:
        counter: TokenCounter | None = self._local or self._remote
        assert counter is not None, "no server has been asked yet"
        return counter.count(text)

    def close(self) -> None:
        if self._remote is not None:
            self._remote.close()
            self._remote = None


def workload_of(args: argparse.Namespace, tokens: TokenCounter | None) -> Workload:
    """
    Raises:
        BenchmarkError: what is to be sent is missing, contradictory or out of range.
    """
    return Workload.from_options(
        workload=args.workload,
        prompt_lengths=args.prompt_lengths,
        output_lengths=args.output_lengths,
        arrivals=args.arrivals,
        prompt_scale=args.prompt_scale,
        output_scale=args.output_scale,
        max_prompt=args.max_prompt,
        max_output=args.max_output,
        turns=args.turns,
        tokens=tokens,
    )


def load_of(args: argparse.Namespace, num_requests: int, tokens: Tokens) -> Load:
    """
    Raises:
        BenchmarkError: what is to be sent is missing, contradictory or out of range.
    """
    workload = workload_of(args, tokens)
    salt = secrets.token_hex(4) if args.salt is None else args.salt
    return Load(workload, num_requests, args.warm_up, args.seed, salt)


def access_of(args: argparse.Namespace) -> Credentials:
    # `bench` starts nothing, but a server that it finds loading is given the same time.
    patience = getattr(args, "start_timeout", _PATIENCE)
    return Credentials(args.model, args.api, api_key(args), patience, not args.no_ignore_eos)


def terms_of(args: argparse.Namespace, targets: Targets | None = None) -> RunOptions:
    return RunOptions(args.timeout, args.max_client_lag, targets)


class Screen:
    """Standard error: progress on a terminal, and lines where it is none."""

    def __init__(self, quiet: bool) -> None:
        """
        Args:
            quiet: say nothing but errors.
        """
        self._console = Console(stderr=True, highlight=False, quiet=quiet)

    def warn(self, line: str) -> None:
        """What must not be missed, quiet or not."""
        print(line, file=sys.stderr)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def follow(
        self, title: str, total: int, others: Sequence[RunListener] = ()
    ) -> Iterator[RunListener]:
        """A watch that shows a run while the context lasts, and whatever else looks on."""
        if self._console.quiet or not self._console.is_terminal:
            yield RunListeners(others)
            return
        # Drawn from the client's own loop: a thread that redraws would hold it up at any time.
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            yield RunListeners([*others, ProgressLine(title, total, live)])


def visit(
    args: argparse.Namespace, contenders: Sequence[Target], screen: Screen
) -> list[ServerFacts]:
    """Ask each of them once, before an hour goes by: what they are, and whether they start at all.

    Raises:
        BenchmarkError: one cannot be measured.
    """
    facts = []
    for contender in contenders:
        screen.say(f"{contender.label}: looking whether it answers")
        with running_server(contender, access_of(args)) as subject:
            facts.append(subject.facts)
    return facts
