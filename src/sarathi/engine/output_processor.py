"""The text of one request, put together from its tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import msgspec

from sarathi.engine.messages import TokenOutput
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import FinishReason


class TextDecoder(Protocol):
    """Incremental detokenisation: text comes out once its bytes are complete."""

    def push(self, ids: Sequence[int], /) -> str: ...

    def flush(self) -> str: ...


class Detokenizer(Protocol):
    """What assembling text needs of a tokenizer."""

    def stream(
        self, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()
    ) -> TextDecoder: ...


class Delta(msgspec.Struct, frozen=True):
    """What one or several tokens added to a request.

    `text` lags behind `token_ids` while it may be the beginning of a stop string or of a
    character, and never holds anything that a stop string cuts off.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]  # one a token, empty unless asked for
    offsets: list[int]  # where each token's text begins, in characters; empty as `logprobs` is
    finish_reason: FinishReason | None


class StopStrings:
    """Finds stop strings in text that comes in pieces.

    Knuth, Morris and Pratt's automaton, one a stop string: its state is the length of the
    longest suffix of the text that begins the stop string, which is also what must be held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple((text, _failures(text)) for text in stop)
        self._beginnings = frozenset(text[0] for text in stop)
        self._states = [0] * len(self._stop)

    @property
    def pending(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        return max(self._states, default=0)

    def find(self, text: str, barred: bool) -> tuple[int, int] | None:
        """The end within `text`, and the length, of the first stop string to be complete.

        Of several that end together it is the longest. While `barred`, complete stop strings are
        passed over.
        """
        states = self._states
        if self._beginnings.isdisjoint(text) and not any(states):
            return None
        for end, character in enumerate(text, 1):
            length = 0
            for index, (stop, failures) in enumerate(self._stop):
                state = states[index]
                while state and stop[state] != character:
                    state = failures[state - 1]
                if stop[state] == character:
                    state += 1
                if state == len(stop):
                    length = max(length, state)
                    state = failures[state - 1]
                states[index] = state
            if length and not barred:
                return end, length
        return None


class OutputText:
    """Text, token count and finish reason of one request.

    A stop string ends the text before itself (after itself with `include_stop_str_in_output`) as
    soon as it is complete, unless it is complete before `min_tokens` tokens. The token that
    completes it is the last that counts, and the caller is to cancel the request when
    `finish_reason` is set. The token for which the engine itself says "stop" has no text. The text
    continues that of `prompt_ids`, as to a first space for example.
    """

    def __init__(
        self, tokenizer: Detokenizer, params: SamplingParams, prompt_ids: Sequence[int] = ()
    ) -> None:
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._stream = tokenizer.stream(params.skip_special_tokens, prompt_ids)
        self._stop = StopStrings(params.stop) if params.stop else None
        self._include_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._with_logprobs = params.logprobs is not None
        self._held = ""
        self._length = 0  # characters detokenised, the held ones included

    def push(self, outputs: Sequence[TokenOutput]) -> Delta:
        """Add tokens; those after the end are dropped."""
        text = ""
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        offsets: list[int] = []
        for output in outputs:
            if self.finish_reason is not None:
                break
            self.num_tokens += 1
            tokens.append(output.token)
            if self._with_logprobs and output.logprobs is not None:
                logprobs.append(output.logprobs)
                offsets.append(self._length)
            piece = "" if output.finish_reason == "stop" else self._stream.push([output.token])
            if output.finish_reason is not None:
                self.finish_reason = output.finish_reason
                piece += self._stream.flush()
            self._length += len(piece)
            text += piece if self._stop is None else self._release(piece, self._stop)
        return Delta(text, tokens, logprobs, offsets, self.finish_reason)

    def _release(self, piece: str, stop: StopStrings) -> str:
        """The text that `piece` makes certain to come before any stop string."""
        text = self._held + piece
        found = stop.find(piece, barred=self.num_tokens < self._min_tokens)
        if found is not None:
            end, length = found
            self.finish_reason = "stop"
            self._held = ""
            return text[: len(text) - len(piece) + end - (0 if self._include_stop else length)]
        if self.finish_reason is not None:
            self._held = ""
            return text
        certain = len(text) - stop.pending
        self._held = text[certain:]
        return text[:certain]


@lru_cache(maxsize=256)  # a thousand choices may have the same stop strings
def _failures(text: str) -> Sequence[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is its suffix."""
    failures = [0] * len(text)
    state = 0
    for index in range(1, len(text)):
        while state and text[state] != text[index]:
            state = failures[state - 1]
        if text[state] == text[index]:
            state += 1
        failures[index] = state
    return tuple(failures)
