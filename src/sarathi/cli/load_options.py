"""Arguments of the commands that measure servers: whom to ask, what to send, what to write."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, fields
from pathlib import Path

from sarathi.cli.engine_options import duration, new_file, positive, utf8
from sarathi.cli.keys import add_api_key_arguments

DEFAULT_URL = "http://localhost:8000"


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """What is sent, and how it is asked for."""
    add_workload_arguments(parser)
    _add_asking(parser.add_argument_group("asking"))


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """What is sent, but for its text."""
    group = parser.add_argument_group("workload")
    group.add_argument(
        "--workload",
        type=utf8,
        metavar="NAME|FILE",
        help="sharegpt or arxiv (lengths as published of the paper's datasets), a .csv file with "
        "num_prefill_tokens, num_decode_tokens and perhaps arrived_at, or conversations in the "
        "ShareGPT .json format",
    )
    lengths = "fixed:N, uniform:LOW,HIGH, lognormal:MEDIAN,P90 or zipf:EXPONENT,MAX, in tokens"
    group.add_argument("--prompt-lengths", type=utf8, metavar="LENGTHS", help=lengths)
    group.add_argument("--output-lengths", type=utf8, metavar="LENGTHS", help="likewise")
    group.add_argument(
        "--arrivals",
        type=utf8,
        default="poisson",
        metavar="KIND",
        help="poisson, gamma:CV, constant or trace (the times of the file); they never wait for "
        "answers (default: %(default)s)",
    )
    group.add_argument("--max-prompt", type=positive, metavar="TOKENS", help="cut longer prompts")
    group.add_argument("--max-output", type=positive, metavar="TOKENS", help="cut longer outputs")
    group.add_argument(
        "--prompt-scale", type=factor, default=1.0, metavar="X", help="multiply prompt lengths"
    )
    group.add_argument(
        "--output-scale", type=factor, default=1.0, metavar="X", help="multiply output lengths"
    )
    group.add_argument(
        "--turns",
        type=positive,
        default=1,
        metavar="N",
        help="requests of a conversation: each begins with all that was said before "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--warm-up",
        type=count,
        default=8,
        metavar="N",
        help="requests that come first and are not counted (default: %(default)s)",
    )
    group.add_argument("--seed", type=count, default=0, metavar="N", help="(default: %(default)s)")
    group.add_argument(
        "--tokenizer",
        type=utf8,
        metavar="MODEL",
        help="counts the tokens of prompts: a folder, a .gguf file or a hub id (default: the "
        "server's own POST /tokenize)",
    )


def _add_asking(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--salt",
        type=utf8,
        metavar="TEXT",
        help="what the texts of prompts depend on beside the seed (default: new in every run, so "
        "that no prefix cache knows them from an earlier one)",
    )
    group.add_argument(
        "--model", type=utf8, metavar="NAME", help="as the server calls it (default: its first)"
    )
    group.add_argument(
        "--api",
        choices=("completions", "chat"),
        default="completions",
        help="the endpoint to measure (default: %(default)s)",
    )
    group.add_argument(
        "--no-ignore-eos",
        action="store_true",
        help="let answers end where the model ends them: for servers that take the field "
        "ignore_eos without heeding it",
    )
    add_api_key_arguments(group)
    group.add_argument(
        "--timeout",
        type=duration,
        default=120.0,
        metavar="DURATION",
        help="a request that has got no token for so long has failed (default: 120s)",
    )
    group.add_argument(
        "--max-client-lag",
        type=duration,
        default=0.02,
        metavar="DURATION",
        help="how late the client itself may be at P99 before a run is invalid (default: 20ms)",
    )


def add_start_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--start-timeout",
        type=duration,
        default=600.0,
        metavar="DURATION",
        help="for a server to load its model (default: 600s)",
    )


@dataclass(frozen=True)
class SearchOptions:
    """How a search for a capacity goes."""

    delay_target: float = 2.0  # seconds, for the median scheduling delay
    tail_delay_target: float = 10.0  # seconds, for its 90th percentile
    point_duration: float = 90.0  # seconds
    resolution: float = 0.1  # relative
    start_rate: float = 1.0  # requests per second


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `SearchOptions`, None where they are not given."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--delay-target",
        type=duration,
        metavar="DURATION",
        help="the median scheduling delay must meet it; where the server does not tell it, the "
        f"median time to the first token must (default: {SearchOptions.delay_target:g}s)",
    )
    group.add_argument(
        "--tail-delay-target",
        type=duration,
        metavar="DURATION",
        help="likewise for its 90th percentile: who lets short prompts pass meets any median while "
        f"long ones starve (default: {SearchOptions.tail_delay_target:g}s)",
    )
    group.add_argument(
        "--point-duration",
        type=duration,
        metavar="DURATION",
        help="each rate is kept up for at least so long, with more requests if need be: a server "
        "that is too slow shows it by a queue that grows "
        f"(default: {SearchOptions.point_duration:g}s)",
    )
    group.add_argument(
        "--resolution",
        type=resolution,
        metavar="SHARE",
        help="how far apart the rates that meet and miss the target may be in the end, relative "
        f"to one another (default: {SearchOptions.resolution})",
    )
    group.add_argument(
        "--start-rate",
        type=request_rate,
        metavar="N",
        help=f"requests per second to try first (default: {SearchOptions.start_rate:g})",
    )


def add_fresh_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="measure all anew; otherwise runs of an earlier search with the same options count",
    )


def given_search_options(args: argparse.Namespace) -> dict[str, float]:
    """Those of `SearchOptions` that the user has typed."""
    names = [option.name for option in fields(SearchOptions)]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def add_requests_argument(
    parser: argparse.ArgumentParser, default: int | None, told: str = "%(default)s"
) -> None:
    """
    Args:
        told: the default in words.
    """
    parser.add_argument(
        "--requests-per-point",
        type=positive,
        default=default,
        metavar="N",
        help=f"to measure at each rate, at least; more make the result surer (default: {told})",
    )


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("sarathi-results"),
        metavar="FOLDER",
        help="keeps every finished run (default: %(default)s)",
    )


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object on standard output")
    group.add_argument(
        "--report",
        type=new_file,
        metavar="FILE.html",
        help="a page with figures, which are also written as PNG files beside it",
    )


def add_iteration_log_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--iteration-log",
        type=readable_file,
        metavar="FILE.jsonl",
        help="what the server wrote with its own --iteration-log, for the report",
    )


def label(text: str) -> str:
    """An argparse type: a name for people, on one line."""
    name = " ".join(utf8(text).split())
    if not (name and name.isprintable()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name")
    return name


def count(text: str) -> int:
    """An argparse type: a whole number from 0."""
    return 0 if text.strip() == "0" else positive(text)


def factor(text: str) -> float:
    """An argparse type: a number above 0, up to 1000."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1000")
    return value


def request_rate(text: str) -> float:
    """An argparse type: requests per second."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-4 <= value <= 1e5:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a rate, expected 0.0001 to 100000 requests per second"
        )
    return value


def request_rates(text: str) -> list[float]:
    """An argparse type: rates with commas between them."""
    rates = [request_rate(part) for part in text.split(",")]
    if len(set(rates)) < len(rates):
        raise argparse.ArgumentTypeError(f"{text!r} names a rate twice")
    return rates


def resolution(text: str) -> float:
    """An argparse type: a relative distance, as `Search` takes it."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0.01 to 1")
    return value


def readable_file(text: str) -> Path:
    """An argparse type: a file that is there."""
    path = Path(text)
    try:
        readable = path.is_file() and os.access(path, os.R_OK)
    except (OSError, ValueError):  # such as a name that is too long
        readable = False
    if not readable:
        raise argparse.ArgumentTypeError(f"{text!r} is not a file that can be read")
    return path
