"""Errors that a user of the command line can mend; `sarathi` prints their message and exits with 2.

Every message names the option, field, file or server that is wrong, and what is accepted.
"""

from __future__ import annotations


class UserError(Exception):
    """An error of any of the kinds below."""


class UsageError(UserError, ValueError):
    """An argument of a command is wrong in a way that argparse does not find."""


class ConfigError(UserError, ValueError):
    """An option of the engine is out of range."""


class ModelError(UserError, ValueError):
    """A model cannot be read, or is of a kind that is not supported."""


class ExecutorError(UserError, RuntimeError):
    """This machine cannot run the model as asked; the message has what would help."""


class BenchmarkError(UserError, ValueError):
    """A measurement cannot be made."""


class SimulationError(UserError, ValueError):
    """Something cannot be simulated; for lack of memory, the message shows the arithmetic."""
