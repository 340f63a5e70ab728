"""Runs of several contenders in turns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sarathi.bench.comparison import measurement_order
from sarathi.bench.measure import Requests, measure, prepare
from sarathi.bench.number_format import milliseconds
from sarathi.bench.results import Run, save
from sarathi.bench.target import Target, running_server
from sarathi.cli.measuring import Screen, Tokens, access_of, load_of, terms_of, visit
from sarathi.errors import BenchmarkError


def measure_in_turns(
    args: argparse.Namespace, contenders: Sequence[Target], rounds: int, screen: Screen
) -> list[Run]:
    """Every run is saved as soon as it is done.

    Raises:
        BenchmarkError: a server cannot be measured.
    """
    tokens = Tokens(args)
    load = load_of(args, args.requests_per_point, tokens)
    known = [found.max_model_len for found in visit(args, contenders, screen)]
    longest = min((length for length in known if length is not None), default=None)
    folder = _new_folder(args.results)
    screen.say(f"runs are kept in {folder}")
    runs: list[Run] = []
    for number, rate, order in measurement_order(args.rates, len(contenders), rounds):
        # The first contender of a turn counts their tokens; the others are sent the same.
        requests: Requests | None = None
        for place in order:
            contender = contenders[place]
            log = folder / f"server-{place + 1}.log"
            with running_server(contender, access_of(args), log) as subject:
                if requests is None:
                    tokens.ask(subject)
                    salt = f"{load.salt}/{rate:g}/{number}"
                    of_round = replace(load, seed=load.seed + number, salt=salt)
                    requests = prepare(of_round, rate, tokens, longest)
                title = f"{contender.label} at {rate:g}/s, round {number + 1}"
                with screen.follow(title, len(requests.calls)) as watch:
                    run = measure(subject, requests, terms_of(args), watch)
            save(folder / f"run-{len(runs):03}.json.gz", run)
            runs.append(run)
            screen.say(f"{title}: P99 TBT {milliseconds(run.summary.tbt.p99)}")
    tokens.close()
    return runs


def _new_folder(results: Path) -> Path:
    """
    Raises:
        BenchmarkError: it cannot be made.
    """
    folder = results / time.strftime("compare-%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise BenchmarkError(f"{folder} cannot be made: {error.strerror or error}") from None
    return folder
