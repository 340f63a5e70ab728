"""The command: options, the device, the parts, the exit code."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from perf.gpu_check.deadline import Deadline

DEFAULT_TIME_LIMIT = 420.0  # seconds
_HANGING = 60.0  # seconds beyond the limit, after which the process ends itself
_KEYS = "abcdef"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a check.

    Returns:
        0 if all parts ran, 1 if one failed or was skipped, 2 without a GPU or for a bad option.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu needs --tiny: a processor takes hours for the real shapes")
    total = Deadline(args.time_limit)
    try:
        import torch
    except ImportError:
        print("gpu_check: error: torch is not installed", file=sys.stderr)
        return 2
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu_check: error: torch finds no NVIDIA GPU here; --tiny --device cpu tries the "
            "command itself on a processor",
            file=sys.stderr,
        )
        return 2
    if find_spec("triton") is None:
        print("gpu_check: error: triton is not installed", file=sys.stderr)
        return 2
    # As Ctrl-C: part processes are ended, and what has been measured is kept.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _check(args, total)
    except ModuleNotFoundError as error:
        print(f"gpu_check: error: {error}: see `make gpu-wheels`", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


def _check(args: argparse.Namespace, total: Deadline) -> int:
    # Imported here: they take seconds, and need libraries that may not be there.
    import torch

    from perf.gpu_check import environment, report
    from perf.gpu_check.context import Context
    from perf.gpu_check.parts import PARTS, run_parts
    from perf.gpu_check.results import PartResult, Results
    from perf.gpu_check.settings import FULL, TINY

    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)  # as the engine
    settings = TINY if args.tiny else FULL
    parts = [part for part in PARTS if part.key in args.parts]
    results = Results(
        path=args.output,
        environment=environment.describe(device),
        settings=asdict(settings) | {"time_limit": args.time_limit},
        parts=[PartResult(part.key, part.title) for part in parts],
        began=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    log = args.output.with_suffix(".log")
    try:
        results.save()
        log.write_bytes(b"")
    except OSError as error:
        print(f"gpu_check: error: {args.output}: {error.strerror}", file=sys.stderr)
        return 2
    context = Context(settings, device, results, log)
    with log.open("ab") as file:
        # A kernel that never ends cannot be interrupted.
        faulthandler.dump_traceback_later(args.time_limit + _HANGING, exit=True, file=file)
        try:
            run_parts(parts, results.parts, context, total)
        finally:
            faulthandler.cancel_dump_traceback_later()
    report.show(results, context.findings)
    return 0 if all(part.status == "done" for part in results.parts) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description="Check the engine on a GPU; see docs/gpu.md."
    )
    parser.add_argument(
        "--tiny", action="store_true", help="tiny shapes, to try the command itself in seconds"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--output",
        type=_json_file,
        default=Path("gpu-check.json"),
        metavar="FILE.json",
        help="all figures; tracebacks go to FILE.log (default: %(default)s)",
    )
    parser.add_argument(
        "--parts",
        type=_parts,
        default=_KEYS,
        metavar="a,b,...",
        help="a tests, b ceilings, c attention, d engine, e experiment, f predictions "
        "(default: all)",
    )
    parser.add_argument(
        "--time-limit",
        type=_seconds,
        default=DEFAULT_TIME_LIMIT,
        metavar="SECONDS",
        help="parts that would exceed it are shortened or skipped (default: %(default)g)",
    )
    return parser


def _json_file(text: str) -> Path:
    if Path(text).suffix != ".json":  # the log has the same name with another ending
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json")
    return Path(text)


def _parts(text: str) -> str:
    keys = "".join(text.split(","))
    if not keys or set(keys) - set(_KEYS):
        raise argparse.ArgumentTypeError(f"{text!r} does not name parts: expected some of a to f")
    return keys


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 up to 86400 seconds")
    return value
