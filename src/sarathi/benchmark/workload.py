"""What is sent, and when: requests as lengths and times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Planned:
    """A request to be sent."""

    at: float  # seconds after the run begins
    prompt_tokens: int
    output_tokens: int
    conversation: int  # requests of one conversation share a prefix
    turn: int  # counts from 0
