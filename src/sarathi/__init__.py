"""Sarathi: an LLM serving engine that keeps the time between tokens low."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sarathi.engine.llm import LLM
    from sarathi.sampling.params import SamplingParams

__all__ = ["LLM", "SamplingParams"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported when asked for: the server's process and the scheduler's users need no executor.
    if name == "LLM":
        from sarathi.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from sarathi.sampling.params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
