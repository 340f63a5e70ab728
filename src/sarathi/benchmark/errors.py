"""What keeps a measurement from being made."""

from __future__ import annotations


class BenchmarkError(ValueError):
    """The message names the option or the server that is wrong, and what is accepted."""
