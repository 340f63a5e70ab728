"""Searches for the capacities of one or several contenders, told as they go."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sarathi import __version__
from sarathi.bench.capacity.capacity_search import CapacitySearch
from sarathi.bench.capacity.early_stopping import EarlyStopping
from sarathi.bench.capacity.rate_search import Search, Try
from sarathi.bench.capacity.search_store import SearchStore
from sarathi.bench.capacity.verdict import CapacityTargets, Verdict
from sarathi.bench.client.server_probe import ServerFacts
from sarathi.bench.measure import measure, prepare
from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import Run, describe_machine
from sarathi.bench.target import RunningServer, Target, running_server
from sarathi.cli.load_options import SearchOptions, given_search_options
from sarathi.cli.measuring import Screen, Tokens, access_of, load_of, terms_of, visit
from sarathi.errors import BenchmarkError

_HALVINGS = 4  # of the first rate: a search may take long, but not for ever


class Searches:
    """One search for each contender, a point of each in turn."""

    def __init__(self, args: argparse.Namespace, contenders: Sequence[Target]) -> None:
        """
        Raises:
            BenchmarkError: what is to be sent is missing, contradictory or out of range.
        """
        self.screen = Screen(quiet=args.json)
        self._attempts: Counter[tuple[Target, float, int]] = Counter()
        self._began = time.time()
        self._args = args
        self._contenders = contenders
        self._tokens = Tokens(args)
        self._load = load_of(args, args.requests_per_point, self._tokens)
        self._options = SearchOptions(**given_search_options(args))
        self._facts = self._asked()
        # What a server says of itself cannot be compared with what another keeps to itself.
        by_ttft = not all(facts.tells_delay for facts in self._facts)
        self._targets = CapacityTargets(
            args.tbt_target, self._options.delay_target, self._options.tail_delay_target, by_ttft
        )

    def run(self) -> list[CapacityWithRuns]:
        """
        Raises:
            BenchmarkError: a server cannot be measured. What has been is kept.
        """
        with contextlib.ExitStack() as stack:
            searches = [self._search(contender, stack) for contender in self._contenders]
            going = searches
            try:
                while going:
                    going = [search for search in going if search.step()]
            except KeyboardInterrupt:
                self.screen.warn("interrupted: finished runs are kept, the same command goes on")
                raise
            return [self._finished(search) for search in searches]

    def _finished(self, search: CapacitySearch) -> CapacityWithRuns:
        result = search.result(self._options.resolution, self._args.requests_per_point)
        search.store.finish(result)
        self.screen.say(f"{result.label}: kept in {search.store.folder}")
        return CapacityWithRuns(result, search.runs)

    def _search(self, contender: Target, stack: contextlib.ExitStack) -> CapacitySearch:
        name = f"capacity-{contender.label}"
        store = SearchStore(self._args.results, name, self._configuration(contender))
        if self._args.fresh:
            _set_aside(store.folder)
        stack.enter_context(store.opened())
        server = _Server(contender, self._args, store.log, self._tokens)
        if len(self._contenders) == 1:
            # Several take turns, and most machines hold one of them at a time.
            server.keep_in(stack)

        dates: list[float] = []  # of runs from before

        def tell(attempt: Try, run: Run, verdict: Verdict) -> None:
            if run.began < self._began:
                dates.append(run.began)
                return
            outcome = "meets the target" if verdict.met else "misses it"
            sure = "" if verdict.certain else " (not for certain)"
            self.screen.say(
                f"{contender.label}: {attempt.rate:g}/s {outcome}{sure}: {verdict.reason}"
            )

        search = CapacitySearch(
            Search(self._options.start_rate, self._options.resolution, max_halvings=_HALVINGS),
            store,
            self._targets,
            lambda attempt: self._measure(server, attempt),
            tell,
        )
        if dates:
            since = datetime.fromtimestamp(min(dates)).strftime("%Y-%m-%d %H:%M")
            self.screen.warn(
                f"{contender.label}: {len(dates)} runs from {since} on are taken from "
                f"{store.folder}; --fresh measures anew"
            )
        return search

    def _asked(self) -> list[ServerFacts]:
        """What the servers are, where that can be had without starting one for nothing."""
        only = self._contenders[0]
        if len(self._contenders) == 1 and only.command is not None:
            return []
        return visit(self._args, self._contenders, self.screen)

    def _measure(self, server: _Server, attempt: Try) -> Run:
        rate, repeat = attempt.rate, attempt.repeat
        # Fast servers need many requests: in a short burst, no queue grows for long.
        number = max(self._load.num_requests, math.ceil(rate * self._options.point_duration))
        # A run that was invalid is made again with other texts, which no prefix cache knows.
        which = server.contender, rate, repeat
        self._attempts[which] += 1
        salt = f"{self._load.salt}/{rate:g}/{repeat}/{self._attempts[which]}"
        seed = self._load.seed + repeat
        load = replace(self._load, num_requests=number, seed=seed, salt=salt)
        with server.subject() as subject:
            subject.check()
            requests = prepare(load, rate, self._tokens, subject.facts.max_model_len)
            hopeless = EarlyStopping(
                [call.output_tokens for call in requests.calls],
                load.warm_up,
                self._targets,
                subject.facts.tells_delay,
            )
            title = f"{subject.label} at {rate:g}/s"
            with self.screen.follow(title, len(requests.calls), [hopeless]) as watch:
                return measure(subject, requests, terms_of(self._args), watch)

    def _configuration(self, contender: Target) -> dict[str, Any]:
        """All that a point depends on."""
        args, load = self._args, self._load
        return {
            "version": __version__,
            "machine": describe_machine(),
            "server": contender.server,
            "url": contender.url,
            "model": args.model,
            "facts": [dataclasses.asdict(facts) for facts in self._facts],
            "no_ignore_eos": args.no_ignore_eos,
            "api": args.api,
            "tokenizer": args.tokenizer,
            "workload": load.workload.describe(),
            "file": _digest(args.workload),
            "requests": load.num_requests,
            "point_duration": self._options.point_duration,
            "warm_up": load.warm_up,
            "seed": load.seed,
            "salt": args.salt,
            "tbt_target": self._targets.tbt,
            "delay_target": self._targets.delay,
            "tail_delay_target": self._targets.tail_delay,
            "timeout": args.timeout,
            "max_client_lag": args.max_client_lag,
        }


@dataclass
class _Server:
    """A contender, started when it is first needed: points of an earlier search need none."""

    contender: Target
    args: argparse.Namespace
    log: Path
    tokens: Tokens
    _stack: contextlib.ExitStack | None = None
    _subject: RunningServer | None = None

    def keep_in(self, stack: contextlib.ExitStack) -> None:
        """Once started, it runs until the stack is closed."""
        self._stack = stack

    @contextlib.contextmanager
    def subject(self) -> Iterator[RunningServer]:
        if self._subject is not None:
            yield self._subject
            return
        starting = running_server(self.contender, access_of(self.args), self.log)
        if self._stack is not None:
            self._subject = self._stack.enter_context(starting)
            self.tokens.ask(self._subject)
            yield self._subject
            return
        with starting as subject:
            self.tokens.ask(subject)
            yield subject


def _set_aside(folder: Path) -> None:
    """
    Raises:
        BenchmarkError: it cannot be renamed.
    """
    if folder.exists():
        aside = folder.with_name(f"{folder.name}-until-{datetime.now():%Y%m%d-%H%M%S}")
        try:
            folder.rename(aside)
        except OSError as error:
            reason = error.strerror or error
            raise BenchmarkError(f"{folder} cannot be renamed: {reason}") from None


def _digest(workload: str | None) -> str | None:
    """Of a trace's content: another file of the same name is another workload."""
    if workload is None or not Path(workload).is_file():
        return None
    return hashlib.sha256(Path(workload).read_bytes()).hexdigest()
