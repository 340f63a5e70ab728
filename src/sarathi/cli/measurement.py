"""What the commands that measure servers share: options, progress on the terminal, and output."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import asdict
from rich.console import Console
from rich.live import Live

from sarathi.bench.capacity.verdict import CapacityTargets
from sarathi.bench.client.open_loop import RunListener
from sarathi.bench.client.server_probe import ServerFacts
from sarathi.bench.measure import RunOptions
from sarathi.bench.report import CapacityWithRuns, check_reports_can_be_made, write_report
from sarathi.bench.results import Run, save
from sarathi.bench.target import Credentials, RunningServer, Target, running_server
from sarathi.bench.terminal import ProgressLine, print_run, run_fields
from sarathi.bench.workload.presets import PRESETS
from sarathi.bench.workload.token_counter import LocalTokens, ServerTokens, TokenCounter
from sarathi.bench.workload.workload import Load, Workload
from sarathi.cli.keys import ClientKey
from sarathi.errors import UsageError
from sarathi.options import (
    Count,
    CountOrZero,
    ExistingFile,
    NewFile,
    Option,
    Seconds,
    TextForm,
    parse_text,
)
from sarathi.telemetry import Targets
from sarathi.telemetry.iteration_log import IterationLine

DEFAULT_URL = "http://localhost:8000"
_LENGTHS = "fixed:N, uniform:LOW,HIGH, lognormal:MEDIAN,P90 or zipf:EXPONENT,MAX, in tokens"


def _parse_label(text: str) -> str:
    label = " ".join(parse_text(text).split())
    if not (label and label.isprintable()):
        raise ValueError(f"{text!r} is not a name")
    return label


Label = Annotated[str, TextForm(_parse_label, "TEXT", accepted="a name, on one line")]
Rate = Annotated[float, Meta(ge=1e-4, le=1e5)]  # requests per second
Factor = Annotated[float, Meta(gt=0, le=1000)]
# Options of several commands.
RateOption = Annotated[
    Rate | None, Option("requests per second; needed except with --arrivals trace", metavar="N")
]
IterationLogOption = Annotated[
    ExistingFile | None,
    Option(
        "what the server wrote with its own --iteration-log, for the report", metavar="FILE.jsonl"
    ),
]
REQUESTS_PER_POINT = Option("to measure at each rate, at least; more make the result surer")


class WorkloadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The lengths and arrival times of the requests."""

    workload: Annotated[
        str | None,
        Option(
            f"{' or '.join(PRESETS)} (lengths as published of the paper's datasets), a "
            ".csv file with num_prefill_tokens, num_decode_tokens and perhaps arrived_at, or "
            "conversations in the ShareGPT .json format",
            group="workload",
            metavar="NAME|FILE",
        ),
    ] = None
    prompt_lengths: Annotated[str | None, Option(_LENGTHS, metavar="LENGTHS")] = None
    output_lengths: Annotated[
        str | None, Option("lengths of outputs, in the same forms", metavar="LENGTHS")
    ] = None
    arrivals: Annotated[
        str,
        Option(
            "poisson, gamma:CV, constant or trace (the times of the file); they never wait for "
            "answers",
            metavar="KIND",
        ),
    ] = "poisson"
    max_prompt: Annotated[Count | None, Option("cut longer prompts", metavar="TOKENS")] = None
    max_output: Annotated[Count | None, Option("cut longer outputs", metavar="TOKENS")] = None
    prompt_scale: Annotated[Factor, Option("multiply prompt lengths")] = 1.0
    output_scale: Annotated[Factor, Option("multiply output lengths")] = 1.0
    turns: Annotated[
        Count,
        Option("requests of a conversation: each begins with the whole conversation before it"),
    ] = 1
    warm_up: Annotated[CountOrZero, Option("requests that come first and are not counted")] = 8
    seed: Annotated[CountOrZero, Option("seed of lengths and arrivals")] = 0
    tokenizer: Annotated[
        str | None,
        Option(
            "counts the tokens of prompts: a folder, a .gguf file or a hub id",
            default="the server's own POST /tokenize",
            metavar="MODEL",
        ),
    ] = None

    def build(self, tokens: TokenCounter | None) -> Workload:
        """Return the workload; `tokens` counts those of conversations in a file.

        Raises:
            BenchmarkError: an option is missing, contradictory or out of range.
        """
        unrelated = ("warm_up", "seed", "tokenizer")
        options = {name: value for name, value in asdict(self).items() if name not in unrelated}
        return Workload.from_options(**options, tokens=tokens)


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent to a server, and how."""

    workload: WorkloadOptions
    salt: Annotated[
        str | None,
        Option(
            "what the texts of prompts depend on beside the seed",
            default="new in every run, so that no prefix cache has them from an earlier one",
            group="requests",
        ),
    ] = None
    model: Annotated[
        str | None, Option("name of the model at the server", default="the first", metavar="NAME")
    ] = None
    api: Annotated[Literal["completions", "chat"], Option("the endpoint to measure")] = (
        "completions"
    )
    ignore_eos: Annotated[
        bool,
        Option(
            "request outputs of an exact length; --no-ignore-eos lets them end where the model "
            "ends them, for servers that accept the field ignore_eos without applying it"
        ),
    ] = True
    timeout: Annotated[Seconds, Option("a request without a token for this long has failed")] = (
        120.0
    )
    max_client_lag: Annotated[
        Seconds, Option("how late the client itself may be at P99 before a run is invalid")
    ] = 0.02
    key: ClientKey

    def load(self, num_requests: int, tokens: Tokens) -> Load:
        """Return what is sent; raises as `WorkloadOptions.build`."""
        options = self.workload
        salt = secrets.token_hex(4) if self.salt is None else self.salt
        return Load(options.build(tokens), num_requests, options.warm_up, options.seed, salt)

    def credentials(self, ready_timeout: float) -> Credentials:
        """Return how servers are accessed, which have `ready_timeout` seconds to load a model.

        Raises:
            UsageError: the file with the key cannot be used.
        """
        return Credentials(self.model, self.api, self.key.read(), ready_timeout, self.ignore_eos)

    def evaluation(self, targets: Targets | None = None) -> RunOptions:
        """Return how runs are evaluated; `targets` are those of goodput."""
        return RunOptions(self.timeout, self.max_client_lag, targets)


class ServerStart(msgspec.Struct, frozen=True, kw_only=True):
    """How servers are started."""

    start_timeout: Annotated[Seconds, Option("most time for a server to load its model")] = 600.0


class SearchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a search for a capacity proceeds."""

    delay_target: Annotated[
        Seconds,
        Option(
            "the median scheduling delay must meet it; where the server does not report it, the "
            "median time to the first token must",
            group="search",
        ),
    ] = 2.0
    tail_delay_target: Annotated[
        Seconds,
        Option(
            "the 90th percentile of the same must meet it: a server that prefers short prompts "
            "meets any median while long ones starve"
        ),
    ] = 10.0
    point_duration: Annotated[
        Seconds,
        Option(
            "each rate is kept up for at least this long, with more requests if necessary: the "
            "queue of a server that is too slow grows"
        ),
    ] = 90.0
    resolution: Annotated[
        float,
        Meta(ge=0.01, le=1),
        Option(
            "how far apart the rates that meet and miss the target may be in the end, relative "
            "to one another",
            metavar="SHARE",
        ),
    ] = 0.1
    start_rate: Annotated[Rate, Option("requests per second to try first", metavar="N")] = 1.0

    def targets(self, tbt_target: float, by_ttft: bool = False) -> CapacityTargets:
        """Return the latency targets, with that of the time between tokens."""
        return CapacityTargets(tbt_target, self.delay_target, self.tail_delay_target, by_ttft)


class ResultOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where finished runs are kept."""

    results: Annotated[Path, Option("keeps every finished run", metavar="FOLDER")] = Path(
        "sarathi-results"
    )
    fresh: Annotated[
        bool,
        Option(
            "measure all again; otherwise runs of an earlier search with the same options count"
        ),
    ] = False


class OutputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a command prints and writes."""

    json: Annotated[bool, Option("one JSON object on standard output", group="output")] = False
    report: Annotated[
        NewFile | None,
        Option(
            "a page with figures, which are also written as PNG files beside it",
            metavar="FILE.html",
        ),
    ] = None

    def check(self) -> None:
        """Raise UsageError or BenchmarkError, before a long run, where it cannot be written."""
        if self.report is not None:
            check_reports_can_be_made()


class RunOutput(OutputOptions, frozen=True, kw_only=True):
    """What a command prints and writes of a single run."""

    save: Annotated[
        NewFile | None, Option("file for all times, for `sarathi report`", metavar="FILE.json")
    ] = None

    def check(self) -> None:
        """Raise as `OutputOptions`, or where both files are the same."""
        if self.report is not None and self.report == self.save:
            raise UsageError("--save and --report are the same file")
        super().check()

    def publish(self, run: Run, screen: Screen, iterations: Sequence[IterationLine]) -> None:
        """Print and write a run; raise BenchmarkError where a file cannot be written."""
        if self.json:
            print_json(run_fields(run))
        else:
            print_run(run)
        if self.save is not None:
            save(Path(self.save), run)
        save_report(self.report, [run], [], screen, iterations)


class ServerMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a command that measures servers at several rates."""

    results: ResultOptions
    search: SearchOptions
    requests: RequestOptions
    start: ServerStart
    output: OutputOptions

    @property
    def credentials(self) -> Credentials:
        """How servers are accessed; raises as `RequestOptions.credentials`."""
        return self.requests.credentials(self.start.start_timeout)

    def probe(self, targets: Sequence[Target], screen: Screen) -> list[ServerFacts]:
        """Return the facts of each target; this shows early whether all of them start.

        Raises:
            BenchmarkError: one cannot be measured.
        """
        facts = []
        for target in targets:
            screen.log(f"{target.label}: checking whether it answers")
            with running_server(target, self.credentials) as server:
                facts.append(server.facts)
        return facts


class Tokens:
    """Counts tokens with `--tokenizer`, or else with the server that is measured."""

    def __init__(self, options: RequestOptions) -> None:
        """Load the tokenizer; raise BenchmarkError where there is none."""
        name = options.workload.tokenizer
        self._local = None if name is None else LocalTokens(name, options.api == "chat")
        self._remote: ServerTokens | None = None

    def use(self, server: RunningServer) -> None:
        """Count with a server that is running."""
        self.close()
        self._remote = ServerTokens(server.endpoint)

    def count(self, text: str) -> int:
        """Return the number of tokens of a prompt."""
        counter: TokenCounter | None = self._local or self._remote
        assert counter is not None, "no server has been set yet"
        return counter.count(text)

    def close(self) -> None:
        """Close the connection to the server."""
        if self._remote is not None:
            self._remote.close()
            self._remote = None


class Screen:
    """Standard error: progress on a terminal, and lines where it is none."""

    def __init__(self, quiet: bool) -> None:
        """Open it; `quiet` leaves only warnings."""
        self._console = Console(stderr=True, highlight=False, quiet=quiet)

    def warn(self, line: str) -> None:
        """Print a line that must not be missed, quiet or not."""
        print(line, file=sys.stderr)

    def log(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def follow(self, title: str, total: int) -> Iterator[Sequence[RunListener]]:
        """Yield what shows the progress of a run, which is nothing where that is not wanted."""
        if self._console.quiet or not self._console.is_terminal:
            yield ()
            return
        # Drawn from the client's own loop: a thread that redraws would delay it at any time.
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            yield (ProgressLine(title, total, live),)


def print_json(value: Any) -> None:
    """Print one object on one line."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.flush()


def save_report(
    path: str | None,
    runs: Sequence[Run],
    capacities: Sequence[CapacityWithRuns],
    screen: Screen,
    iterations: Sequence[IterationLine] = (),
) -> None:
    """Write a page, if it is asked for; raise BenchmarkError where it cannot be written."""
    if path is None:
        return
    files = write_report(Path(path), runs, capacities, iterations)
    screen.log(f"the report is {files[0]}, with {len(files) - 1} figures beside it")
