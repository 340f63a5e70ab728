"""What cannot be simulated."""

from __future__ import annotations


class SimulationError(ValueError):
    """The message names the field that is wrong and what is accepted, or shows the arithmetic."""
