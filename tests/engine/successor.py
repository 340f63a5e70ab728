"""An executor that counts up, and helpers for an engine that uses it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from sarathi.backends.step import Step
from sarathi.engine.core import EngineCore
from sarathi.engine.messages import TokenOutput
from sarathi.sampling.params import SamplingParams

VOCAB = 50
EOS = 49


class Successor:
    """After token t comes t + 1; after a prompt's last token, too."""

    config = SimpleNamespace(vocab_size=VOCAB)

    def __init__(self) -> None:
        self.spoil: Callable[[np.ndarray], None] = lambda logits: None

    def pooled(self) -> np.ndarray:
        raise AssertionError("no request asks for an embedding")

    def execute(self, step: Step) -> np.ndarray:
        logits = np.zeros((len(step.sample_rows), VOCAB), np.float32)
        following = (step.token_ids[step.sample_rows] + 1) % VOCAB
        logits[np.arange(len(following)), following] = 9.0
        self.spoil(logits)
        return logits


def greedy(**options: object) -> SamplingParams:
    return SamplingParams(temperature=0, **options)  # type: ignore[arg-type]


def drain(core: EngineCore) -> dict[int, list[TokenOutput]]:
    outputs: dict[int, list[TokenOutput]] = {}
    while core.has_work:
        for output in core.step().outputs:
            outputs.setdefault(output.id, []).append(output)
    return outputs


def tokens(outputs: list[TokenOutput]) -> list[int]:
    return [output.token for output in outputs]
