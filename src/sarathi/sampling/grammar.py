"""A grammar that the output of a request has to follow."""

from __future__ import annotations

import msgspec


class Grammar(msgspec.Struct, frozen=True):
    """What an output may be, in the dialect of Lark that llguidance reads."""

    lark: str  # its start rule is `start`
    after: str = ""  # the grammar begins after the first occurrence of this text, if not empty
