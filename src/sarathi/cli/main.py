"""The command `sarathi`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from sarathi import __version__
from sarathi.cli import (
    bench,
    calibrate,
    capacity,
    chat,
    compare,
    generate,
    plan,
    report,
    reproduce,
    serve,
    simulate,
)
from sarathi.errors import (
    BenchmarkError,
    ConfigError,
    ExecutorError,
    ModelError,
    SimulationError,
    UsageError,
)
from sarathi.sampling.params import SamplingError
from sarathi.scheduler import AdmissionError

_COMMANDS = {
    "serve": serve,
    "generate": generate,
    "chat": chat,
    "bench": bench,
    "capacity": capacity,
    "compare": compare,
    "report": report,
    "simulate": simulate,
    "plan": plan,
    "reproduce": reproduce,
    "calibrate": calibrate,
}
# Whatever the user can mend is told in one line, with the exit code that argparse uses.
_BAD_INPUT = (
    UsageError,
    ModelError,
    ConfigError,
    SamplingError,
    AdmissionError,
    ExecutorError,
    BenchmarkError,
    SimulationError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 2 for bad input, 128 and the number for a signal."""
    if sys.stdout is None:  # closed by the parent process
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    args = _parser().parse_args(argv)
    try:
        code = int(_COMMANDS[args.command].run(args))
        sys.stdout.flush()
        return code
    except _BAD_INPUT as error:
        print(f"sarathi {args.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has ended, such as `head`
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:  # a path or a place for output that cannot be used
        _drop_output()
        about = "" if error.filename is None else f"{str(error.filename)[:200]}: "
        print(f"sarathi {args.command}: error: {about}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _drop_output() -> None:
    """Or the interpreter would try to write the rest of it at its end."""
    with suppress(OSError, ValueError):  # it has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sarathi",
        description="Serve language models with a low time between tokens.",
    )
    parser.add_argument("--version", action="version", version=f"sarathi {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        help_text = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(name, help=help_text, description=help_text)
        module.add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
