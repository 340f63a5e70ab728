"""`sarathi reproduce`: the paper's evaluation on the simulator, beside the published values."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec

from sarathi.bench.report import check_reports_can_be_made
from sarathi.cli.measurement import Screen, print_json
from sarathi.cli.simulation import progress_bar
from sarathi.errors import UsageError
from sarathi.options import MAX_NUMBER, CountOrZero, Option
from sarathi.simulator.reproduction.evaluation import STUDIES, fields, reproduce, write
from sarathi.simulator.reproduction.experiment import WORDS
from sarathi.simulator.reproduction.jobs import SHAREGPT_FILE, Options

_TRACES = Path("..") / "shared" / "traces"  # the default, where it exists
_FEWEST = 8  # requests of which figures can be made


class ReproduceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    names: Annotated[
        tuple[str, ...],
        Option(f"an experiment: {', '.join(STUDIES)}", metavar="NAME", positional=True),
    ] = ()
    all: Annotated[bool, Option("all experiments")] = False
    list: Annotated[bool, Option("list the experiments, and run none")] = False
    out: Annotated[
        str | None,
        Option(
            "for index.html, which needs nothing else, figures and results.json", metavar="FOLDER"
        ),
    ] = None
    requests: Annotated[
        int, msgspec.Meta(ge=_FEWEST, le=MAX_NUMBER), Option("requests of each simulated run")
    ] = 1024
    seed: Annotated[CountOrZero, Option("seed of lengths and arrivals")] = 0
    traces: Annotated[
        str | None,
        Option(
            "with sharegpt_8k.csv, the paper's trace",
            default=f"{_TRACES} if it exists, or else lengths with the published statistics",
            metavar="FOLDER",
        ),
    ] = None
    json: Annotated[bool, Option("all values as one JSON object, and nothing else")] = False


def run(options: ReproduceOptions) -> int:
    """Run experiments and write the report; return the exit code."""
    if options.list:
        for name in STUDIES:
            print(f"{name:20} {WORDS[name].summary}")
        return 0
    names = _names(options.names, options.all)
    folder = None if options.out is None else Path(options.out)
    if folder is None and not options.json:
        raise UsageError("--out is missing: the folder for the report; or --json")
    if folder is not None:
        check_reports_can_be_made()
        try:  # before the experiments, which take minutes
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {folder} cannot be made: {error.strerror}") from None
    settings = Options(options.requests, options.seed, _traces(options.traces))
    screen = Screen(quiet=options.json)
    started = time.monotonic()
    with progress_bar(options.json) as bar:
        task = bar.add_task("simulating", total=None)

        def on_progress(number: int, total: int, title: str) -> None:
            bar.update(task, completed=number, total=total, description=title)
            if bar.disable:
                screen.log(f"{number} of {total}: {title}")

        found = reproduce(names, settings, on_progress=on_progress)
    duration = time.monotonic() - started
    if folder is not None:
        screen.log(f"drawing, after {duration:.0f} s")
        files = write(folder, found, settings, duration)
        screen.log(f"the report is {files[0]}, with {len(files) - 2} figures and results.json")
    if options.json:
        print_json(fields(found, settings, duration))
        return 0
    for one in (one for experiment in found for one in experiment.headline):
        ours = "none" if one.ours is None else f"{one.ours:.3g}x"
        print(f"{one.what}: {ours}, published {one.published.value:g}x ({one.note})")
    return 0


def _names(given: tuple[str, ...], every: bool) -> list[str]:
    """Return the experiments to run; raise UsageError where one is unknown, or there is none."""
    known = f"expected some of {', '.join(STUDIES)}, or --all"
    for name in given:
        if name not in STUDIES:
            raise UsageError(f"{name} is no experiment, {known}")
    if every:
        return list(STUDIES)
    if not given:
        raise UsageError(f"no experiment is named: {known}")
    return list(dict.fromkeys(given))


def _traces(given: str | None) -> str | None:
    """Return the folder of traces; raise UsageError where a given one does not have the trace."""
    if given is None:
        return str(_TRACES.resolve()) if _TRACES.is_dir() else None
    if not (Path(given) / SHAREGPT_FILE).is_file():
        raise UsageError(f"--traces {given} has no file {SHAREGPT_FILE}")
    return str(Path(given).resolve())
