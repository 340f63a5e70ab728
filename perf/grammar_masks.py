"""What do grammars cost: iterations of 32 streams with a JSON schema, against 32 without.

The engine's loop runs in this process. Both kinds alternate, with the same prompts and the same
sampling otherwise, and only iterations in which all of them decode are counted.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np

from perf.prompts import text_prompts
from perf.report import MODEL, Figure, rounds, show
from sarathi.engine.config import EngineConfig
from sarathi.engine.core import EngineCore
from sarathi.engine.startup.load import load_engine
from sarathi.models.locate import locate
from sarathi.sampling.grammar import json_schema
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import Request
from sarathi.telemetry.recorder import IterationRecord

TARGET = 0.05  # of an iteration
_STREAMS = 32
_PROMPT, _OUTPUT = 68, 65  # tokens
_ROUNDS = 5
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "job": {"enum": ["baker", "farmer", "teacher", "pilot"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["name", "age", "job", "tags"],
    "additionalProperties": False,
}
_GRAMMAR = json_schema({"type": "array", "items": _PERSON, "minItems": 60})
_KINDS = {"plain": None, "schema": _GRAMMAR}


class Iterations:
    """A recorder that keeps the seconds of iterations in which all requests decode."""

    def __init__(self) -> None:
        self.seconds: list[dict[str, float]] = []
        self.rows = self.deferred = 0

    def record(self, record: IterationRecord) -> None:
        """Keep the parts of an iteration."""
        if record.batch.num_decodes != _STREAMS or len(record.batch.slices) != _STREAMS:
            return
        self.rows += _STREAMS
        self.deferred += _STREAMS - len(record.outputs)
        parts, before = {"all": record.end - record.begin}, record.begin
        for name, end in record.parts:
            parts[name], before = end - before, end
        self.seconds.append(parts)

    def arrived(self, request: Request) -> None:
        """See `Recorder`."""

    def cancelled(self, request_id: int, now: float) -> None:
        """See `Recorder`."""

    def flush(self) -> None:
        """See `Recorder`."""

    def close(self) -> None:
        """See `Recorder`."""


def run(core: EngineCore, kind: str, seed: int) -> Iterations:
    """Decode all streams of one kind to their end."""
    iterations = Iterations()
    recorders: Any = core
    recorders._recorders = [iterations]
    params = SamplingParams(
        temperature=0, max_tokens=_OUTPUT, ignore_eos=True, grammar=_KINDS[kind]
    )
    for number, prompt in enumerate(text_prompts(_STREAMS, _PROMPT, seed)):
        core.submit(number, prompt, params, time.monotonic())
    while core.has_work:
        core.step()
    return iterations


def main() -> None:
    """Measure and print the share."""
    # So long a target that all prompts run in one iteration.
    core, _ = load_engine(locate(MODEL).path, EngineConfig(tbt_target=60.0), lambda line: None)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    ratios, deferred, rows = [], 0, 0
    for seed in rounds(range(_ROUNDS + 1), "masks of grammars"):
        medians = {}
        for kind in _KINDS:
            iterations = run(core, kind, seed)
            medians[kind] = float(np.median([one["all"] for one in iterations.seconds]))
            if seed:  # the first warms up
                found[kind] += iterations.seconds
                deferred += iterations.deferred
                rows += iterations.rows if kind == "schema" else 0
        if seed:
            ratios.append(medians["schema"] / medians["plain"])
    core.close()
    median = {
        (kind, part): 1000 * float(np.median([one.get(part, 0.0) for one in found[kind]]))
        for kind in _KINDS
        for part in ("all", "execute", "sample", "publish")
    }
    figures = [
        Figure(
            "iteration with a schema / without, less 1", float(np.median(ratios)) - 1, "%", TARGET
        ),
        Figure(
            "sampling with a schema, less that without, of an iteration",
            (median["schema", "sample"] - median["plain", "sample"]) / median["plain", "all"],
            "%",
            TARGET,
        ),
        *(
            Figure(f"  {part}, {kind}", median[kind, part], "ms")
            for part in ("all", "execute", "sample", "publish")
            for kind in _KINDS
        ),
        Figure("rows that were deferred", deferred / max(1, rows), "%"),
    ]
    show(f"Masks of grammars: {_STREAMS} streams", figures)


if __name__ == "__main__":
    main()
