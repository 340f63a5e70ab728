"""The text of one request, put together from its tokens as they come.

It runs where the tokens are turned into text: in the HTTP process, or in that of `LLM`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from sarathi.engine.messages import TokenOutput
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import NO_TOKEN
from sarathi.scheduler import FinishReason


class TextDecoder(Protocol):
    """Incremental detokenization: text comes out once its bytes are complete."""

    def push(self, ids: Sequence[int], /) -> str: ...

    def flush(self) -> str: ...


class Detokenizer(Protocol):
    """The part of a tokenizer that `OutputText` uses."""

    def stream(
        self,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
        visible_ids: frozenset[int] = frozenset(),
    ) -> TextDecoder: ...

    def special_id(self, text: str, /) -> int | None: ...


class Delta(msgspec.Struct, frozen=True):
    """What one or several tokens added to a request.

    `text` lags behind `token_ids` while it may be the beginning of a stop string or of a
    character, and never holds anything that a stop string cuts off. It is plain text: a server's
    output parser may split it by meaning, into a subclass with more fields.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]  # one a token, empty unless asked for
    offsets: list[int]  # where each token's text begins, in characters; empty as `logprobs` is
    finish_reason: FinishReason | None
    stop_string: str | None = None  # that ended the text
    prompt_logprobs: Sequence[TokenLogprobs] = ()  # all of them, with the first token or the end


class StopStrings:
    """Finds stop strings in text that comes in pieces, and holds back what may begin one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._first_characters = frozenset(text[0] for text in stop)
        # Of each stop string, the length of its longest proper prefix that ends the text so far.
        self._partial = [0] * len(self._stop)
        self._held = ""  # as long as the longest of them
        self.found: str | None = None  # the one that ended the text

    def push(self, piece: str, *, include: bool, ignore: bool) -> tuple[str, bool]:
        """Return the text that can be released, and whether a stop string ended it.

        The stop string that is complete first ends the text; of several that end together, the
        longest. With `include` it is part of the text; with `ignore`, those that `piece` completes
        do not end it.
        """
        if not self._held and self._first_characters.isdisjoint(piece):
            return piece, False
        text = self._held + piece
        first_end, longest, found = len(text) + 1, 0, None
        held = 0
        for index, stop in enumerate(self._stop):
            # A match can begin no earlier than the prefix of it that the text already ended with.
            start = len(self._held) - self._partial[index]
            if not ignore and (at := text.find(stop, start)) >= 0:
                end = at + len(stop)
                if (end, -len(stop)) < (first_end, -longest):
                    first_end, longest, found = end, len(stop), stop
            at = max(start, len(text) - len(stop) + 1)
            while (at := text.find(stop[0], at)) >= 0 and not stop.startswith(text[at:]):
                at += 1
            self._partial[index] = 0 if at < 0 else len(text) - at
            held = max(held, self._partial[index])
        if found is not None:
            self.found = found
            return text[: first_end if include else first_end - longest], True
        certain = len(text) - held
        self._held = text[certain:]
        return text[:certain], False

    def flush(self) -> str:
        """Return what is held back, for text that ends otherwise."""
        held, self._held = self._held, ""
        return held


class OutputText:
    """Text, token count and finish reason of one request.

    A stop string ends the text before itself (after itself with `include_stop_str_in_output`) as
    soon as it is complete, unless it is complete before `min_tokens` tokens. The token that
    completes it is the last that counts, and the caller is to cancel the request when
    `finish_reason` is set. A stop or end-of-sequence token, which the engine returns last, adds no
    text. The text continues that of `prompt_ids`, which decides about a first space for example.
    Special tokens of `visible_ids` are part of the text even if the others are not. A stop string
    that is a special token counts even if the text does not show it.
    """

    def __init__(
        self,
        tokenizer: Detokenizer,
        params: SamplingParams,
        prompt_ids: Sequence[int] = (),
        visible_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._decoder = tokenizer.stream(params.skip_special_tokens, prompt_ids, visible_ids)
        self._stop = StopStrings(params.stop) if params.stop else None
        self._stop_tokens: dict[int, str] = {}  # stop strings that the text does not show
        if params.skip_special_tokens:
            for stop in params.stop:
                token = tokenizer.special_id(stop)
                if token is not None and token not in visible_ids:
                    self._stop_tokens[token] = stop
        self._stop_string: str | None = None  # that has ended the text
        self._include_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._with_logprobs = params.logprobs is not None
        self._length = 0  # characters decoded, those that are held back included
        self._prompt_logprobs: list[TokenLogprobs] = []

    def push(self, outputs: Sequence[TokenOutput]) -> Delta:
        """Add tokens and return the delta; tokens after the end are dropped."""
        text = ""
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        offsets: list[int] = []
        for output in outputs:
            if self.finish_reason is not None:
                break
            if output.prompt_logprobs is not None:
                self._prompt_logprobs += output.prompt_logprobs
            if output.token == NO_TOKEN:
                self.finish_reason = output.finish_reason
                continue
            self.num_tokens += 1
            tokens.append(output.token)
            if self._with_logprobs and output.logprobs is not None:
                logprobs.append(output.logprobs)
                offsets.append(self._length)
            piece = "" if output.finish_reason == "stop" else self._decoder.push([output.token])
            stop_token = self._stop_tokens.get(output.token) if self._stop_tokens else None
            if stop_token is not None and self.num_tokens < self._min_tokens:
                stop_token = None
            if stop_token is not None or output.finish_reason is not None:
                self.finish_reason = "stop" if stop_token else output.finish_reason
                piece += self._decoder.flush()
            self._length += len(piece)
            text += piece if self._stop is None else self._before_stop(piece, self._stop)
            if stop_token is not None and self._stop_string is None:
                self._stop_string = stop_token
                text += stop_token if self._include_stop else ""
        prompt_logprobs: Sequence[TokenLogprobs] = ()
        if self._prompt_logprobs and (tokens or self.finish_reason):
            prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, []
        return Delta(
            text,
            tokens,
            logprobs,
            offsets,
            self.finish_reason,
            self._stop_string,
            prompt_logprobs,
        )

    def _before_stop(self, piece: str, stop: StopStrings) -> str:
        """Return the text that is certain to come before any stop string."""
        early = self.num_tokens < self._min_tokens
        text, stopped = stop.push(piece, include=self._include_stop, ignore=early)
        if stopped:
            self.finish_reason = "stop"
            self._stop_string = stop.found
        elif self.finish_reason is not None:
            text += stop.flush()
        return text
