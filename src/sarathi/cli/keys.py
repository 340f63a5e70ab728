"""Keys from the command line, the environment, `--config` and files of their own.

A key on a command line can be read by every user of the machine (`ps`); the others cannot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from sarathi.cli.arguments import parse_options
from sarathi.errors import UsageError
from sarathi.options import LAYERED, Option, TextForm, parse_text


def _parse_key(text: str) -> str:
    text = parse_text(text)
    if not text.strip():
        # An empty variable mostly means a secret that is missing: without this error the server
        # would be open to every client.
        raise ValueError("the key is empty, expected at least one character; unset it for no key")
    if not text.isprintable():
        raise ValueError("the key has characters that no header can have")
    return text


Key = Annotated[str, TextForm(_parse_key, "KEY", accepted="printable characters, at least one")]
_FILE_HELP = "the same from a file, which `ps` does not show"


class ClientKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key that a client sends."""

    api_key: Annotated[
        Key | None,
        Option(
            "the server's key",
            default="SARATHI_API_KEY from the environment",
            alternative="api_key_file",
        ),
    ] = None
    api_key_file: Annotated[Path | None, Option(_FILE_HELP, alternative="api_key")] = None

    def read(self) -> str | None:
        """Return the key, None for none; where no option is given, that of the environment."""
        used = self if self != ClientKey() else parse_options(_Environment, ()).key
        given = () if used.api_key is None else (used.api_key,)
        keys = _keys(given, used.api_key_file, "--api-key-file")
        if len(keys) > 1:
            raise UsageError(f"{used.api_key_file} has {len(keys)} keys, expected one")
        return keys[0] if keys else None


class _Environment(msgspec.Struct, frozen=True):
    key: Annotated[ClientKey, LAYERED]


class ServerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that a server accepts."""

    api_key: Annotated[
        tuple[Key, ...],
        Option(
            "a key that clients must send as a bearer token; may be given several times",
            alternative="api_key_file",
        ),
    ] = ()
    api_key_file: Annotated[
        Path | None, Option(f"{_FILE_HELP}; a key a line", alternative="api_key")
    ] = None
    admin_key: Annotated[
        tuple[Key, ...],
        Option(
            "a key for what changes the server, such as POST /scale; may be given several times",
            alternative="admin_key_file",
        ),
    ] = ()
    admin_key_file: Annotated[
        Path | None, Option(f"{_FILE_HELP}; a key a line", alternative="admin_key")
    ] = None

    def api_keys(self) -> tuple[str, ...]:
        """Return the distinct keys that open the API; raise `UsageError` for a file without one."""
        return _keys(self.api_key, self.api_key_file, "--api-key-file")

    def admin_keys(self) -> tuple[str, ...]:
        """Return the distinct keys for what changes the server; raises as `api_keys`."""
        return _keys(self.admin_key, self.admin_key_file, "--admin-key-file")


def _keys(given: tuple[str, ...], file: Path | None, option: str) -> tuple[str, ...]:
    """Return distinct keys; raise `UsageError` for a file that cannot be read or has none."""
    if file is None:
        return tuple(dict.fromkeys(given))
    try:
        with file.open("rb") as opened:  # may be a pipe, or something without an end
            lines = opened.read(2**20).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{option} {file} cannot be read: {reason}") from None
    try:
        keys = [_parse_key(line.strip()) for line in lines if line.strip()]
    except ValueError as error:
        raise UsageError(f"{option} {file}: {error}") from None
    if not keys:
        raise UsageError(f"{option} {file} has no key, expected one a line")
    return tuple(dict.fromkeys((*given, *keys)))
