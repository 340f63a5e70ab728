"""The command `sarathi`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any, get_type_hints

from sarathi import __version__
from sarathi.cli.arguments import add_options, read_options
from sarathi.errors import UserError
from sarathi.sampling.params import SamplingError
from sarathi.scheduler import AdmissionError

# Each is a module of this package, imported when it is chosen, with a function `run`. The type of
# its parameter `options` declares the arguments.
_COMMANDS = {
    "serve": "Serve a model over the OpenAI API.",
    "generate": "Complete prompts offline, without a server.",
    "chat": "Talk to a model in the terminal, through a server or in this process.",
    "evaluate": "Measure how well a model predicts a text, and what its precision costs.",
    "bench": "Measure the latencies of a server at a given load.",
    "capacity": "Find the highest request rate that a server takes within a latency target.",
    "compare": "Measure several servers with the same requests, in turns, and print ratios.",
    "report": "Make a page with figures of what bench, capacity and compare have saved.",
    "simulate": "Simulate a load on hardware that need not be there.",
    "plan": "Find the cheapest hardware that serves a load within latency targets, by simulation.",
    "reproduce": "Repeat the paper's evaluation on the simulator, beside the published values.",
    "calibrate": "Measure this machine for the simulator, or check its cost model of GPUs against "
    "measurements.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 2 for bad input, and 128 plus its number after a signal."""
    if sys.stdout is None:  # closed by the parent process
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv).parse_args(argv)
    try:
        code: int = _module(args.command).run(read_options(_options(args.command), args))
        sys.stdout.flush()
        return code
    except (UserError, SamplingError, AdmissionError) as error:
        print(f"sarathi {args.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has ended, such as `head`
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:  # a path or an output that cannot be used
        _drop_output()
        about = "" if error.filename is None else f"{str(error.filename)[:200]}: "
        print(f"sarathi {args.command}: error: {about}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _drop_output() -> None:
    """Keep the interpreter from writing the rest of the output when it exits."""
    with suppress(OSError, ValueError):  # it has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sarathi", description="Serve language models with a low time between tokens."
    )
    parser.add_argument("--version", action="version", version=f"sarathi {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in argv:
            add_options(command, _options(name))
    return parser


def _options(command: str) -> type[Any]:
    hints: dict[str, type] = get_type_hints(_module(command).run)
    return hints["options"]


def _module(command: str) -> ModuleType:
    return import_module(f"sarathi.cli.{command}")


if __name__ == "__main__":
    sys.exit(main())
