"""Why an executor cannot do its work."""

from __future__ import annotations


class ExecutorError(RuntimeError):
    """This machine cannot run the model as asked; the message says what would help."""
