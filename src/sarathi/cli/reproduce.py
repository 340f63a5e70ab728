"""Repeat the paper's evaluation on the simulator: ours beside the published values."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sarathi.cli.engine_options import positive, utf8
from sarathi.errors import UsageError
from sarathi.simulator.reproduction.evaluation import STUDIES

_TRACES = Path("..") / "shared" / "traces"  # where they are looked for unasked
_REQUESTS = 1024
_FEWEST = 8  # of which figures can be made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="*",
        type=utf8,
        metavar="NAME",
        help=f"an experiment: {', '.join(STUDIES)}",
    )
    parser.add_argument("--all", action="store_true", help="all experiments")
    parser.add_argument(
        "--list", action="store_true", help="tell what experiments there are, and do none"
    )
    parser.add_argument(
        "--out",
        type=utf8,
        metavar="FOLDER",
        help="for index.html, which needs nothing else, figures and results.json",
    )
    parser.add_argument(
        "--requests",
        type=positive,
        default=_REQUESTS,
        metavar="N",
        help="of each simulated run (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of lengths and arrivals (default: 0)"
    )
    parser.add_argument(
        "--traces",
        type=utf8,
        metavar="FOLDER",
        help=f"with sharegpt_8k.csv, the paper's trace (default: {_TRACES} if it is there, or "
        "else lengths with the published statistics)",
    )
    parser.add_argument(
        "--json", action="store_true", help="all values as one JSON object, and nothing else"
    )


def run(args: argparse.Namespace) -> int:
    from sarathi.bench.report import check_reports_can_be_made
    from sarathi.cli.measuring import Screen
    from sarathi.cli.reporting import print_json
    from sarathi.cli.simulating import progress_bar
    from sarathi.simulator.reproduction.evaluation import reproduce
    from sarathi.simulator.reproduction.reproduction_report import fields, write
    from sarathi.simulator.reproduction.testbeds import Options

    if args.list:
        for name, study in STUDIES.items():
            print(f"{name:20} {study.summary}")
        return 0
    names = _names(args)
    folder = None if args.out is None else Path(args.out)
    if folder is None and not args.json:
        raise UsageError("--out is missing: the folder for the report; or --json")
    if folder is not None:
        check_reports_can_be_made()
        _prepare(folder)
    options = Options(args.requests, args.seed, _traces(args.traces))
    screen = Screen(quiet=args.json)
    began = time.monotonic()
    with progress_bar(args.json) as bar:
        task = bar.add_task("simulating", total=None)

        def on_progress(number: int, total: int, title: str) -> None:
            bar.update(task, completed=number, total=total, description=title)
            if bar.disable:
                screen.say(f"{number} of {total}: {title}")

        found = reproduce(names, options, on_progress=on_progress)
    took = time.monotonic() - began
    if folder is not None:
        screen.say(f"drawing, after {took:.0f} s")
        files = write(folder, found, options, took)
        screen.say(f"the report is {files[0]}, with {len(files) - 2} figures and results.json")
    if args.json:
        print_json(fields(found, options, took))
        return 0
    for one in (one for experiment in found for one in experiment.headline):
        ours = "none" if one.ours is None else f"{one.ours:.3g}x"
        print(f"{one.what}: {ours}, published {one.published.value:g}x ({one.note})")
    return 0


def _names(args: argparse.Namespace) -> list[str]:
    """
    Raises:
        UsageError: a name is unknown, or there is none.
    """
    known = f"expected some of {', '.join(STUDIES)}, or --all"
    for name in args.names:
        if name not in STUDIES:
            raise UsageError(f"{name} is no experiment, {known}")
    if args.requests < _FEWEST:
        raise UsageError(f"--requests {args.requests} must be at least {_FEWEST}")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} must be at least 0")
    if args.all:
        return list(STUDIES)
    if not args.names:
        raise UsageError(f"no experiment is named: {known}")
    return list(dict.fromkeys(args.names))


def _prepare(folder: Path) -> None:
    """Make the folder, before minutes go by.

    Raises:
        UsageError: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror}") from None


def _traces(given: str | None) -> str | None:
    """
    Raises:
        UsageError: there is no such folder, or no trace in it.
    """
    if given is None:
        return str(_TRACES.resolve()) if _TRACES.is_dir() else None
    from sarathi.simulator.reproduction.testbeds import SHAREGPT_FILE

    if not (Path(given) / SHAREGPT_FILE).is_file():
        raise UsageError(f"--traces {given} has no file {SHAREGPT_FILE}")
    return str(Path(given).resolve())
