"""Keys from the command line, from files and from the environment, in that order.

A key on a command line can be read by everyone on the machine (`ps`); the other two cannot.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from sarathi.cli.engine_options import utf8
from sarathi.errors import UsageError

_MAX_FILE = 2**20  # bytes


def add_api_key_arguments(parser: argparse._ActionsContainer) -> None:
    """Add those of a client, which sends one key; `api_key` reads them."""
    _add(parser, "api", "the server's key", several=False)


def add_server_key_arguments(parser: argparse._ActionsContainer) -> None:
    """Add those of a server, which accepts several; `api_keys` and `admin_keys` read them."""
    _add(parser, "api", "a key that clients must send as a bearer token", several=True)
    _add(parser, "admin", "a key for what changes the server, such as POST /scale", several=True)


def api_key(args: argparse.Namespace) -> str | None:
    """Return the key to send, None for none.

    Raises:
        UsageError: the file cannot be read or has not exactly one key.
    """
    keys = api_keys(args)
    if len(keys) > 1:
        raise UsageError(f"{args.api_key_file} has {len(keys)} keys, expected one")
    return keys[0] if keys else None


def api_keys(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the distinct keys that open the API.

    Raises:
        UsageError: a file cannot be read, or a key is missing where one was announced.
    """
    return _keys("api", args.api_key, args.api_key_file)


def admin_keys(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the distinct keys for what changes the server; raises as `api_keys`."""
    return _keys("admin", args.admin_key, args.admin_key_file)


def _add(parser: argparse._ActionsContainer, kind: str, what: str, several: bool) -> None:
    again = "; may be given several times" if several else ""
    parser.add_argument(
        f"--{kind}-key",
        type=_key,
        action="append" if several else "store",
        metavar="KEY",
        help=f"{what}{again} (default: {_variable(kind)} from the environment)",
    )
    parser.add_argument(
        f"--{kind}-key-file",
        type=Path,
        metavar="FILE",
        help="the same from a file, which `ps` does not show" + ("; a key a line" * several),
    )


def _keys(kind: str, given: str | list[str] | None, file: Path | None) -> tuple[str, ...]:
    keys = [given] if isinstance(given, str) else list(given or [])
    if file is not None:
        keys += _read(file, f"--{kind}-key-file")
    elif not keys and (value := os.environ.get(_variable(kind))) is not None:
        # An empty variable mostly means a secret that has gone missing: without this message the
        # server would be open to everybody.
        try:
            keys = [_key(value)]
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{_variable(kind)}: {error}; unset it to use no key") from None
    return tuple(dict.fromkeys(keys))


def _read(file: Path, option: str) -> list[str]:
    try:
        with file.open("rb") as opened:  # may be a pipe, or something without an end
            lines = opened.read(_MAX_FILE).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{option} {file} cannot be read: {reason}") from None
    try:
        keys = [_key(line.strip()) for line in lines if line.strip()]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{option} {file}: {error}") from None
    if not keys:
        raise UsageError(f"{option} {file} has no key, expected one a line")
    return keys


def _variable(kind: str) -> str:
    return f"SARATHI_{kind.upper()}_KEY"


def _key(text: str) -> str:
    text = utf8(text)
    if not text.strip():
        raise argparse.ArgumentTypeError("the key is empty, expected at least one character")
    if not text.isprintable():
        raise argparse.ArgumentTypeError("the key has characters that no header can have")
    return text
