"""Runs of several contenders in turns."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from sarathi.benchmark.compare import turns
from sarathi.benchmark.contender import Contender, answering
from sarathi.benchmark.files import save
from sarathi.benchmark.measure import Requests, measure, prepare
from sarathi.benchmark.results import Run
from sarathi.cli.measuring import Screen, Tokens, access_of, load_of, terms_of


def measure_in_turns(
    args: argparse.Namespace, contenders: Sequence[Contender], rounds: int, screen: Screen
) -> list[Run]:
    """Every run is saved as soon as it is done.

    Raises:
        BenchmarkError: a server cannot be measured.
    """
    tokens = Tokens(args)
    load = load_of(args, args.requests_per_point, tokens)
    folder = args.results / f"compare-{load.salt}"
    folder.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    for number, rate, order in turns(args.rates, len(contenders), rounds):
        # The first contender of a turn has them written; the others are sent the same.
        requests: Requests | None = None
        for place in order:
            contender = contenders[place]
            with answering(contender, access_of(args), folder / "server.log") as subject:
                if requests is None:
                    tokens.ask(subject)
                    of_round = replace(
                        load, seed=load.seed + number, salt=f"{load.salt}/{rate:g}/{number}"
                    )
                    requests = prepare(of_round, rate, tokens, subject.facts.max_model_len)
                title = f"{contender.label} at {rate:g}/s, round {number + 1}"
                with screen.follow(title, len(requests.calls)) as watch:
                    run = measure(subject, requests, terms_of(args), watch)
            save(folder / f"run-{len(runs):03}.json.gz", run)
            runs.append(run)
            screen.say(f"{title}: P99 TBT {1000 * (run.summary.tbt.p99 or 0):.0f} ms")
    screen.say(f"all runs are in {folder}")
    return runs
