"""What a request changes in its logits before a token is sampled: bias, barred tokens, penalties.

To add a logits processor, write a function like those in `PROCESSORS`, list it there, and give
`SamplingParams` the field that asks for it (and `GenerationRequest`, for requests over HTTP). It
writes its changes into the request's `LogitsEdits`, which every sampler applies. If they depend on
the tokens sampled, it returns a function that gets each of them: that of a grammar has a thread
compute the mask of the next token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sarathi.sampling.grammar_masks import GrammarMask, GrammarMasks
from sarathi.sampling.params import SamplingError, SamplingParams

_LARGEST = np.finfo(np.float32).max
_NO_IDS = np.empty(0, np.int64)
_NO_VALUES = np.empty(0, np.float32)


class RequestTokens(NamedTuple):
    """What a processor may need of a request besides its parameters."""

    prompt_ids: Sequence[int]
    output_ids: Sequence[int]  # that it has already, if it is resumed
    eos_ids: Sequence[int]
    vocab_size: int
    grammars: GrammarMasks | None = None  # of the engine


class LogitsEdits:
    """The changes of one request, applied in this order: bias, barred tokens, penalties, mask.

    Raises:
        SamplingError: a token id of the parameters is outside the vocabulary.
        ValueError: a token id of the prompt or of the output is, and a penalty counts it.
    """

    def __init__(self, params: SamplingParams, tokens: RequestTokens) -> None:
        self.bias_ids = _NO_IDS
        self.bias = _NO_VALUES  # of each of `bias_ids`, for all tokens of the output
        # [vocab_size], added to the logits of the next token; -inf excludes a token. Replace the
        # array to change it.
        self.token_bias: NDArray[np.float32] | None = None
        self.barred_ids = _NO_IDS  # excluded until the output has `min_tokens`
        self.penalties: Penalties | None = None
        self.mask: GrammarMask | None = None  # where it excludes all but barred tokens, it counts
        observers = [process(params, tokens, self) for process in PROCESSORS]
        # Called with each token sampled, before the edits for the one after it are read.
        self.observers = [observer for observer in observers if observer is not None]

    @property
    def lasting(self) -> bool:
        """Whether there is anything to do besides masks and barring tokens at the start."""
        return bool(
            len(self.bias_ids)
            or self.penalties is not None
            or self.token_bias is not None
            or len(self.observers) > (self.mask is not None)  # a mask has one, too
        )


LogitsProcessor = Callable[
    [SamplingParams, RequestTokens, LogitsEdits], Callable[[int], None] | None
]


class Penalties:
    """The different tokens that the penalties of a request apply to, with their counts.

    Only the repetition penalty considers the prompt.
    """

    def __init__(self, params: SamplingParams, tokens: RequestTokens) -> None:
        self.repetition = np.float32(params.repetition_penalty)
        self.frequency = np.float32(params.frequency_penalty)
        self.presence = np.float32(params.presence_penalty)
        prompt = np.asarray(tokens.prompt_ids if self.repetition != 1 else (), np.int64)
        output = np.asarray(tokens.output_ids, np.int64)
        every = np.concatenate([prompt, output])
        if len(every) and not 0 <= every.min() <= every.max() < tokens.vocab_size:
            raise ValueError(f"a token id lies outside the vocabulary of {tokens.vocab_size}")
        self._ids, index = np.unique(every, return_inverse=True)
        counts = np.bincount(index[len(prompt) :], minlength=len(self._ids))
        self._counts = counts.astype(np.float32)
        self._index_of = {token: index for index, token in enumerate(self._ids.tolist())}

    @property
    def seen_ids(self) -> NDArray[np.int64]:
        """The different tokens."""
        return self._ids[: len(self._index_of)]

    @property
    def seen_counts(self) -> NDArray[np.float32]:
        """How often each of `seen_ids` is in the output; 0 for one of the prompt alone."""
        return self._counts[: len(self._index_of)]

    def append(self, token: int) -> None:
        """Count a token that was sampled."""
        index = self._index_of.setdefault(token, len(self._index_of))
        if index == len(self._ids):
            more = max(16, index)
            self._ids = np.concatenate([self._ids, np.zeros(more, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(more, np.float32)])
        self._ids[index] = token
        self._counts[index] += 1


def logit_bias(params: SamplingParams, tokens: RequestTokens, edits: LogitsEdits) -> None:
    """Add the request's `logit_bias`."""
    _check_vocabulary("logit_bias", params.logit_bias, tokens.vocab_size)
    if params.logit_bias:
        edits.bias_ids = np.array(list(params.logit_bias), np.int64)
        edits.bias = np.array(list(params.logit_bias.values()), np.float32)


def min_tokens(params: SamplingParams, tokens: RequestTokens, edits: LogitsEdits) -> None:
    """Bar the tokens that end the request until its output has `min_tokens`."""
    _check_vocabulary("stop_token_ids", params.stop_token_ids, tokens.vocab_size)
    ending = set(params.stop_token_ids)
    if not params.ignore_eos:
        # An end-of-sequence id the model has no logit for can never be generated.
        ending.update(token for token in tokens.eos_ids if 0 <= token < tokens.vocab_size)
    edits.barred_ids = np.array(sorted(ending), np.int64)


def penalties(params: SamplingParams, tokens: RequestTokens, edits: LogitsEdits) -> None:
    """Count tokens if a penalty needs it."""
    if (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0):
        edits.penalties = Penalties(params, tokens)


def grammar(
    params: SamplingParams, tokens: RequestTokens, edits: LogitsEdits
) -> Callable[[int], None] | None:
    """Exclude what the grammar does not allow; a thread computes that after each token."""
    if params.grammar is None:
        return None
    if tokens.grammars is None:
        raise SamplingError("grammar", "is not supported: the engine has no tokenizer")
    # After its end, an output that follows a grammar cannot go on.
    barred = tokens.eos_ids if params.ignore_eos else ()
    mask = tokens.grammars.open(params.grammar, tokens.output_ids, barred)
    edits.mask = mask
    return partial(tokens.grammars.append, mask)


PROCESSORS: tuple[LogitsProcessor, ...] = (logit_bias, min_tokens, penalties, grammar)


def apply_edits(
    edits: Sequence[LogitsEdits],
    barred: NDArray[np.bool_],
    starts: NDArray[np.int64],
    logits: NDArray[np.float32],
) -> None:
    """Change `logits` in place: bias, then barred tokens, then penalties, as vLLM does.

    Args:
        edits: one per edited row.
        barred: [len(edits)], whether the tokens that end the request are barred now.
        starts: [len(edits)], where the row starts in `logits`.
        logits: flat.
    """
    rows = list(zip(starts.tolist(), edits, barred.tolist(), strict=True))

    biased = [(start, e) for start, e, _ in rows if len(e.bias_ids)]
    if biased:
        indices, _ = _flat_indices((start, e.bias_ids) for start, e in biased)
        logits[indices] += np.concatenate([e.bias for _, e in biased])
    for start, e, _ in rows:
        if e.token_bias is not None:
            logits[start : start + len(e.token_bias)] += e.token_bias

    stopped = [(start, e.barred_ids) for start, e, bar in rows if bar]
    if stopped:
        indices, _ = _flat_indices(stopped)
        logits[indices] = -np.inf

    counted = [(start, e.penalties) for start, e, _ in rows if e.penalties is not None]
    if counted:
        indices, lengths = _flat_indices((start, p.seen_ids) for start, p in counted)
        counts = np.concatenate([p.seen_counts for _, p in counted])
        factors = np.array(
            [(p.repetition, p.frequency, p.presence) for _, p in counted], np.float32
        )
        repetition, frequency, presence = np.repeat(factors.T, lengths, axis=1)
        values = logits[indices]
        values = np.where(values > 0, values / repetition, values * repetition)
        values -= frequency * counts + presence * (counts > 0)
        # A tiny repetition penalty may overflow; the token is then the likeliest, not an error.
        logits[indices] = np.minimum(values, _LARGEST)


def _flat_indices(
    rows: Iterable[tuple[int, NDArray[np.int64]]],
) -> tuple[NDArray[np.int64], list[int]]:
    """Return the ids of all rows as indices of the flat matrix, and how many each row has."""
    starts, ids = zip(*rows, strict=True)
    lengths = [len(part) for part in ids]
    return np.concatenate(ids) + np.repeat(np.array(starts, np.int64), lengths), lengths


def _check_vocabulary(field: str, ids: Iterable[int], vocab_size: int) -> None:
    outside = [token for token in ids if token >= vocab_size]
    if outside:
        raise SamplingError(
            field, f"has the token id {outside[0]}, expected at most {vocab_size - 1}"
        )
