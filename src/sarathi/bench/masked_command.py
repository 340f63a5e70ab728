"""What of a command line is nobody's business."""

from __future__ import annotations

import re

_HIDDEN = "***"

_NAME = r"(?:api[-_]?key|token|secret|password)"
_VALUE = r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s"'\\])+"""  # as a shell takes it for one word
_SECRET = re.compile(
    rf"(?<![\w-])(?P<name>-[\w-]*{_NAME}(?:=|\s+)|\w*{_NAME}=){_VALUE}",
    re.IGNORECASE | re.ASCII,
)


def shown_command(command: str) -> str:
    """A command as results, reports and messages have it: keys in it are masked.

    Those are the values of options whose names end in api-key, token, secret or password, such as
    `--api-key` and `--hf-token`, and of variables before the command, such as `HF_TOKEN=`.
    """
    return _SECRET.sub(rf"\g<name>{_HIDDEN}", command)
