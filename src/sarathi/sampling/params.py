"""The sampling parameters of a request, validated where they enter a process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sarathi.bounds import check_bounds
from sarathi.sampling.grammar import Grammar

MAX_LOGPROBS = 20
MAX_N = 128
# These are checked in every process that a request passes through, one request at a time.
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 1024

Pooling = Literal["last", "mean"]
TokenId = Annotated[int, Meta(ge=0)]


class SamplingError(ValueError):
    """A sampling parameter is out of range; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of one request are chosen and when it ends.

    Names and meanings are those of the OpenAI API and of vLLM. Logprobs are those of the model
    itself: before temperature, penalties and truncation.
    """

    # None: as many as the model's length allows. 0: the prompt is computed and nothing is sampled
    max_tokens: Annotated[int, Meta(ge=0)] | None = 16
    # before these, end-of-sequence and stop tokens are not sampled; at most max_tokens
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.0  # 0 is greedy: the exact argmax
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=-1)] = 0  # 0 is off, as is -1
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0  # over the output so far
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0  # over the output so far
    # over prompt and output
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0
    logit_bias: Annotated[
        Mapping[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]],
        Meta(max_length=MAX_LOGIT_BIAS),
    ] = msgspec.field(default_factory=dict)
    stop: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKEN_IDS)] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    # alternatives besides the sampled token; None for no logprobs
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    # likewise of the prompt's tokens, which are then computed even if they are in the prefix cache
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    # instead of an output: an embedding of the prompt, from the hidden state of its last token, or
    # from the mean of all
    pooling: Pooling | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] = 1
    grammar: Grammar | None = None  # that the output has to follow

    def __post_init__(self) -> None:
        check_bounds(self, SamplingError)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise SamplingError(
                "min_tokens",
                f"is {self.min_tokens}, expected an integer at least 0 and at most "
                f"{self.max_tokens}",
            )
        if self.pooling is not None and (self.max_tokens != 0 or self.prompt_logprobs is not None):
            raise SamplingError("pooling", "needs max_tokens 0, and no prompt_logprobs")

    @property
    def greedy(self) -> bool:
        """Whether every token is the argmax."""
        return self.temperature == 0

    def choices(self) -> list[SamplingParams]:
        """Return the parameters of each of the n outputs; seeded ones differ in their seed."""
        if self.n == 1:
            return [self]
        if self.seed is None:
            return [msgspec.structs.replace(self, n=1)] * self.n
        seeds = [(self.seed + index + 2**63) % 2**64 - 2**63 for index in range(self.n)]
        return [msgspec.structs.replace(self, n=1, seed=seed) for seed in seeds]
