"""What a request asks of sampling, validated once where it enters the system."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized

import msgspec

MAX_LOGPROBS = 20
MAX_N = 128
# Every choice is checked where it enters each process, and others wait meanwhile.
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 1024


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

    max_tokens: int | None = 16  # None: as many as the model's length allows
    min_tokens: int = 0  # end-of-sequence and stop tokens are barred before
    temperature: float = 1.0  # 0 is greedy: the exact argmax
    top_p: float = 1.0
    top_k: int = 0  # 0 is off, as is -1
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0  # over the output so far
    frequency_penalty: float = 0.0  # over the output so far
    repetition_penalty: float = 1.0  # over prompt and output
    logit_bias: Mapping[int, float] = msgspec.field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # alternatives beside the sampled token; None for no logprobs
    n: int = 1

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, 1, None, whole=True, optional=True)
        _check("min_tokens", self.min_tokens, 0, self.max_tokens, whole=True)
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check("top_k", self.top_k, -1, None, whole=True)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("seed", self.seed, -(2**63), 2**63 - 1, whole=True, optional=True)
        _check("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _check("logprobs", self.logprobs, 0, MAX_LOGPROBS, whole=True, optional=True)
        _check("n", self.n, 1, MAX_N, whole=True)
        if self.n > 1 and self.temperature == 0:
            raise SamplingError("n", "must be 1 when temperature is 0: all choices would be equal")
        if not isinstance(self.logit_bias, Mapping):
            raise SamplingError("logit_bias", "must map token ids to numbers")
        _check_length("logit_bias", self.logit_bias, MAX_LOGIT_BIAS)
        for token, bias in self.logit_bias.items():
            if type(token) is not int or token < 0:
                raise SamplingError("logit_bias", f"has the key {token!r}, expected a token id")
            _check("logit_bias", bias, -100.0, 100.0)
        # A string is a sequence too: its characters would be taken for stop strings.
        if not isinstance(self.stop, (tuple, list)):
            raise SamplingError("stop", "must be a sequence of strings")
        for text in self.stop:
            if not (isinstance(text, str) and text):
                raise SamplingError("stop", "must hold non-empty strings")
        if not isinstance(self.stop_token_ids, (tuple, list)):
            raise SamplingError("stop_token_ids", "must be a sequence of token ids")
        _check_length("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        for token in self.stop_token_ids:
            _check("stop_token_ids", token, 0, None, whole=True)
        for field in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if type(getattr(self, field)) is not bool:
                raise SamplingError(field, "must be true or false")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def choices(self) -> list[SamplingParams]:
        """One for each of the n outputs; seeded ones differ by their seed."""
        if self.n == 1:
            return [self]
        if self.seed is None:
            return [msgspec.structs.replace(self, n=1)] * self.n
        seeds = [(self.seed + index + 2**63) % 2**64 - 2**63 for index in range(self.n)]
        return [msgspec.structs.replace(self, n=1, seed=seed) for seed in seeds]


def _check_length(field: str, value: Sized, most: int) -> None:
    if len(value) > most:
        raise SamplingError(field, f"has {len(value)} entries, expected at most {most}")


def _check(
    field: str,
    value: float | None,
    low: float,
    high: float | None,
    *,
    open_low: bool = False,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Raise `SamplingError` unless `value` is a finite number in `[low, high]`, `whole` an int."""
    if value is None and optional:
        return
    # type() and not isinstance: True is an int by inheritance only. Integers are always finite,
    # but too large ones cannot be asked by math.isfinite.
    fits = (
        (type(value) is int or (isinstance(value, float) and not whole and math.isfinite(value)))
        and (value > low if open_low else value >= low)
        and (high is None or value <= high)
    )
    if not fits:
        bound = f"{'greater than' if open_low else 'at least'} {low}"
        if high is not None:
            bound += f" and at most {high}"
        kind = "an integer" if whole else "a number"
        raise SamplingError(field, f"is {value!r}, expected {kind} {bound}")
