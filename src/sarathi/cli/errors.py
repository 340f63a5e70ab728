"""What is wrong with a command line beyond what argparse finds."""

from __future__ import annotations


class UsageError(ValueError):
    """The message says which argument is wrong and what is accepted."""
