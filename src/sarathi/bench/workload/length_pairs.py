"""Where the lengths of prompts and of their answers come from, as pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sarathi.bench.workload.lengths import Lengths, Tokens, lengths_from
from sarathi.bench.workload.presets import PRESETS
from sarathi.bench.workload.token_counter import TokenCounter
from sarathi.bench.workload.traces import read_dialogues, read_trace
from sarathi.errors import BenchmarkError


class Pairs(Protocol):
    """Where lengths of prompts and their answers come from."""

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Those of `count` requests; of the first of them the same, however many there are."""
        ...

    def options(self) -> dict[str, str]:
        """As typed."""
        ...


@dataclass(frozen=True)
class Independent:
    """Prompts and answers that have nothing to do with each other."""

    prompts: Lengths
    outputs: Lengths
    prompt_text: str  # as typed
    output_text: str

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        for_prompts, for_outputs = rng.spawn(2)
        return self.prompts.draw(count, for_prompts), self.outputs.draw(count, for_outputs)

    def options(self) -> dict[str, str]:
        return {"prompt-lengths": self.prompt_text, "output-lengths": self.output_text}


def pairs_from(
    workload: str | None,
    prompt_lengths: str | None,
    output_lengths: str | None,
    tokens: TokenCounter | None,
) -> Pairs:
    """Pairs of a preset or file, or of two distributions.

    Raises:
        BenchmarkError: an option is wrong, missing, or one too many.
    """
    if workload is not None:
        for option, text in (("prompt", prompt_lengths), ("output", output_lengths)):
            if text is not None:
                raise BenchmarkError(
                    f"--{option}-lengths {text} cannot be had with --workload {workload}, "
                    "which has lengths of its own"
                )
        return _preset_or_file(workload, tokens)
    if prompt_lengths is None or output_lengths is None:
        raise BenchmarkError(
            f"lengths are missing: give --workload ({', '.join(PRESETS)}, FILE.csv or FILE.json), "
            "or both --prompt-lengths and --output-lengths, such as lognormal:430,1400 and "
            "lognormal:60,130"
        )
    return Independent(
        lengths_from(prompt_lengths, "--prompt-lengths"),
        lengths_from(output_lengths, "--output-lengths"),
        prompt_lengths,
        output_lengths,
    )


def _preset_or_file(workload: str, tokens: TokenCounter | None) -> Pairs:
    if workload in PRESETS:
        return PRESETS[workload]
    name = workload.lower()
    if name.endswith(".csv"):
        return read_trace(workload)
    if name.endswith(".json"):
        if tokens is None:
            raise BenchmarkError(
                f"--workload {workload} needs a tokenizer: name one with --tokenizer"
            )
        return read_dialogues(workload, tokens.count)
    raise BenchmarkError(
        f"--workload {workload} is unknown; accepted are {', '.join(PRESETS)}, FILE.csv and "
        "FILE.json"
    )
