"""The time that an engine adds to that of the GPU in every iteration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineOverhead:
    """Seconds in which no stage computes for the iteration."""

    name: str
    iteration: float = 0.0
    distributed: float = 0.0  # more for each iteration, from two workers on
    sequence: float = 0.0
    prompt_token: float = 0.0
    source: str = ""

    def seconds(self, sequences: int, prompt_tokens: int, workers: int) -> float:
        """Return the overhead of one iteration."""
        fixed = self.iteration + (self.distributed if workers > 1 else 0.0)
        return fixed + self.sequence * sequences + self.prompt_token * prompt_tokens


OVERHEADS = {
    overhead.name: overhead
    for overhead in (
        EngineOverhead("none", source="an engine that takes no time"),
        EngineOverhead(
            "sarathi",
            iteration=0.66e-3,
            sequence=10e-6,
            source="this project's loop, all but the model, greedy: 0.98 ms with 32 running "
            "requests, 1.95 ms with 128 (docs/perf.md, on two cores of a server processor); "
            "its share with several workers is unknown",
        ),
        EngineOverhead(
            "paper",
            iteration=1.0e-3,
            distributed=6.3e-3,
            sequence=50e-6,
            source="profiles of the processor's time published with Vidur, of an engine in Python "
            "that reaches its workers through Ray: 1.0 ms and 0.05 ms a sequence, 6.3 ms with two "
            "workers and more",
        ),
    )
}
