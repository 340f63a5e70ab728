"""Sample one token for each row of logits, for requests with different parameters at once.

The state of each open request is kept in arrays that are indexed by its slot.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sarathi.models.weights import Array
from sarathi.sampling.categorical import (
    BLOCK,
    NO_TOP_K,
    TruncationLimits,
    nucleus_floor,
    sample_truncated,
    sample_whole,
    select,
    short_floor,
    stream_key,
    uniforms,
)
from sarathi.sampling.grammar_masks import GrammarMask, GrammarMasks
from sarathi.sampling.logits_processors import LogitsEdits, RequestTokens, apply_edits
from sarathi.sampling.logprobs import (
    ScoredRows,
    TokenLogprobs,
    token_logprobs,
    unknown_logprobs,
)
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import DEFERRED

# What a row needs besides the argmax of its logits, as bits; 0 for nothing.
CLOSED, EDITED, BARRED, LOGPROBS, MASKED = 1, 2, 4, 8, 128
CHANGED = EDITED | BARRED | MASKED  # its logits are not those of the model
# The method, if it is random: without truncation, by top_p, by top_k or min_p.
WHOLE, NUCLEUS, SHORT = 16, 32, 64
RANDOM = WHOLE | NUCLEUS | SHORT

_FIELDS = (
    ("needs", np.int64),
    ("generated", np.int64),
    ("min_tokens", np.int64),
    ("key", np.uint64),
    ("inverse_temperature", np.float32),  # 1 / temperature
    ("top_k", np.int64),
    ("top_p", np.float64),
    ("min_p", np.float64),
    ("alternatives", np.int64),
)
_MAX_SHARPNESS = 1e30  # finite in float32


class Slots:
    """Records with the fields above; `records[slots]` gathers those of a batch."""

    def __init__(self, more_fields: Sequence[tuple[str, Any]] = ()) -> None:
        """Make no slot yet; a sampler sets `more_fields` itself, where a request is opened."""
        self.records: NDArray[Any] = np.zeros(0, [*_FIELDS, *more_fields])
        self._free: list[int] = []

    def open(self, params: SamplingParams, tokens: RequestTokens) -> tuple[int, LogitsEdits]:
        """Return a slot for a request, and its edits; for errors see `RequestSlots`."""
        edits = LogitsEdits(params, tokens)
        generated = len(tokens.output_ids)
        if not self._free:
            self._grow()
        slot = self._free.pop()
        record = self.records[slot]
        has_k = 0 < params.top_k < tokens.vocab_size
        barred = generated < params.min_tokens and len(edits.barred_ids) > 0
        record["needs"] = (
            _method(params, has_k)
            | (EDITED if edits.lasting else 0)
            | (BARRED if barred else 0)
            | (LOGPROBS if params.logprobs is not None else 0)
            | (MASKED if edits.mask is not None else 0)
        )
        record["generated"] = generated
        record["min_tokens"] = min(params.min_tokens, np.iinfo(np.int64).max)
        record["key"] = stream_key(secrets.randbits(64) if params.seed is None else params.seed)
        record["inverse_temperature"] = 1.0 / max(params.temperature, 1.0 / _MAX_SHARPNESS)
        record["top_k"] = params.top_k if has_k else NO_TOP_K
        record["top_p"] = params.top_p
        record["min_p"] = params.min_p
        record["alternatives"] = params.logprobs or 0
        return slot, edits

    def close(self, slot: int) -> None:
        """Free the slot; `ValueError` if it is not open."""
        if not 0 <= slot < len(self.records) or self.records[slot]["needs"] & CLOSED:
            raise ValueError(f"slot {slot} is not open")
        self.records[slot]["needs"] = CLOSED
        self._free.append(slot)

    def advance(self, slots: NDArray[np.int64], needs: NDArray[np.int64]) -> None:
        """Count one more token for each slot, whose records have `needs`, and end the barring of
        outputs of `min_tokens`."""
        self.records["generated"][slots] += 1
        barred = slots[(needs & BARRED) != 0]
        if len(barred):
            records = self.records[barred]
            done = barred[records["generated"] >= records["min_tokens"]]
            self.records["needs"][done] &= ~BARRED

    def _grow(self) -> None:
        size = len(self.records)
        added = np.zeros(max(size, 16), self.records.dtype)
        added["needs"] = CLOSED
        self.records = np.concatenate([self.records, added])
        self._free.extend(reversed(range(size, len(self.records))))


def _method(params: SamplingParams, has_k: bool) -> int:
    if params.greedy:
        return 0
    if has_k:
        return SHORT
    if params.top_p < 1:
        return NUCLEUS
    return SHORT if params.min_p > 0 else WHOLE


_CHUNK_ELEMENTS = 1 << 19  # two float32 buffers of this size stay in a core's cache

_MASK_SECONDS = 0.002  # that a step waits for masks at the most
NO_TOKEN = -1  # of a row whose logits are NaN or infinite, or that has every token barred


class SamplerOutput(NamedTuple):
    """The result of one call, by row."""

    # [rows]; `NO_TOKEN` where none can be chosen, `DEFERRED` where that is not known yet
    tokens: NDArray[np.int64]
    logprobs: list[TokenLogprobs | None] | None  # None if no row asked for them
    waited: float = 0.0  # seconds for masks of grammars


class RequestSlots(Protocol):
    """The requests that a sampler has open, each in a slot."""

    vocab_size: int
    grammars: GrammarMasks | None  # None: requests with a grammar are refused

    def open(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        eos_ids: Sequence[int],
        output_ids: Sequence[int] = (),
    ) -> int:
        """Add a request, which has `output_ids` already if it is resumed, and return its slot, an
        index below the largest number of requests open at a time.

        Raises:
            SamplingError: a token id in `params` is outside the vocabulary.
            ValueError: a token id of the prompt or output is, and a penalty has to count it.
        """

    def close(self, slot: int) -> None:
        """Remove a request; its slot is used again. `ValueError` if the slot is not open."""

    def failure(self, slot: int) -> str | None:
        """Return why no token can be chosen for a request, if its grammar is the reason."""


class StepSampler(RequestSlots, Protocol):
    """Samples from the logits of one kind of executor."""

    def sample(self, logits: Any, slots: NDArray[np.int64]) -> SamplerOutput:
        """Sample one token for each row, which from then on counts as generated.

        Args:
            logits: [rows, vocabulary], as the executor gives them; never written to.
            slots: [rows], the open slot of each row, no slot twice.
        """

    def score(self, logits: Any, scored: ScoredRows) -> list[TokenLogprobs]:
        """Return the log probabilities of known tokens, with the same `logits`. They are not a
        number where the logits are not finite."""


class Sampler:
    """Samples tokens from logits in the host's memory; see `RequestSlots`.

    A row's token and log probabilities depend only on its logits, its parameters and the tokens
    generated before: the other rows, their order and resuming a request change no bit.
    Temperature, then top_k, top_p and min_p shape the distribution. Ties go to the lower token
    id. A random token uses one uniform, a function of the seed and the number of tokens generated.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.grammars: GrammarMasks | None = None
        self._slots = Slots()
        self._edits: dict[int, LogitsEdits] = {}
        self._width = -(-vocab_size // BLOCK) * BLOCK
        self._chunk_rows = max(1, _CHUNK_ELEMENTS // self._width)
        self._buffers: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def open(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        eos_ids: Sequence[int],
        output_ids: Sequence[int] = (),
    ) -> int:
        """See `RequestSlots`."""
        tokens = RequestTokens(prompt_ids, output_ids, eos_ids, self.vocab_size, self.grammars)
        slot, edits = self._slots.open(params, tokens)
        if self._slots.records[slot]["needs"] & CHANGED:
            self._edits[slot] = edits
        return slot

    def close(self, slot: int) -> None:
        """See `RequestSlots`."""
        self._slots.close(slot)
        edits = self._edits.pop(slot, None)
        if edits is not None and edits.mask is not None:
            edits.mask.closed = True

    def failure(self, slot: int) -> str | None:
        """See `RequestSlots`."""
        edits = self._edits.get(slot)
        return None if edits is None or edits.mask is None else edits.mask.failure

    def sample(self, logits: Array, slots: NDArray[np.int64]) -> SamplerOutput:
        """See `StepSampler`; `ValueError` if the shapes do not fit, or a slot is not open."""
        values: NDArray[np.float32] = np.asarray(logits, np.float32)
        if values.shape != (len(slots), self.vocab_size):
            raise ValueError(
                f"logits have the shape {values.shape}, "
                f"expected {(len(slots), self.vocab_size)}: a row per slot"
            )
        needs = self._slots.records["needs"][slots]
        # NaN wins an argmax, so the chosen logit alone shows whether a row is valid.
        tokens = values.argmax(axis=1)
        peaks = values[np.arange(len(slots)), tokens]
        finite = np.isfinite(peaks)
        invalid = np.flatnonzero(~finite).tolist()
        if invalid:
            # Go on with zeros to find the rows that edits make invalid, too: one error names all.
            values = np.where(finite[:, None], values, np.float32(0))
            peaks = np.where(finite, peaks, np.float32(0))
        logprobs, waited = None, 0.0
        if invalid or needs.any():
            if (needs & CLOSED).any():
                raise ValueError("a slot is not open")
            batch = _Batch(values, slots, self._slots.records[slots], invalid, [])
            if (needs & MASKED).any():
                waited = self._wait_for_masks(batch)
            # Weights may underflow to 0 and edited logits overflow; both are intended.
            with np.errstate(all="ignore"):
                logprobs = self._refine(batch, peaks, tokens)
            if batch.invalid or batch.deferred:
                tokens[batch.deferred] = DEFERRED
                tokens[batch.invalid] = NO_TOKEN
                sampled = tokens >= 0
                self._count(slots[sampled], needs[sampled], tokens[sampled])
                return SamplerOutput(tokens, logprobs, waited)
        self._count(slots, needs, tokens)
        return SamplerOutput(tokens, logprobs, waited)

    def _wait_for_masks(self, batch: _Batch) -> float:
        """Wait a little for the masks of rows, and exclude rows without one; return the seconds."""
        assert self.grammars is not None
        needs = batch.state["needs"]
        rows = np.flatnonzero(needs & MASKED).tolist()
        edits = [self._edits[slot] for slot in batch.slots[rows].tolist()]
        waited = self.grammars.wait([e.mask for e in edits if e.mask], _MASK_SECONDS, slow=False)
        for row, edit in zip(rows, edits, strict=True):
            assert edit.mask is not None
            if not edit.mask.ready:
                batch.deferred.append(row)
            elif edit.mask.error is not None:
                batch.invalid.append(row)
            elif needs[row] & BARRED and edit.mask.only_allows(edit.barred_ids):
                needs[row] &= ~BARRED
        needs[batch.deferred] = needs[batch.invalid] = 0
        return waited

    def score(self, logits: Array, scored: ScoredRows) -> list[TokenLogprobs]:
        """See `StepSampler`."""
        values: NDArray[np.float32] = np.asarray(logits, np.float32)
        peaks = values.max(axis=1)
        finite = np.isfinite(peaks)
        entries = [unknown_logprobs()] * len(values)
        for rows in self._chunks(finite):
            found = self._logprobs(
                _take(values, rows), peaks[rows], scored.tokens[rows], scored.alternatives[rows]
            )
            for row, entry in zip(rows.tolist(), found, strict=True):
                entries[row] = entry
        return entries

    def _logprobs(
        self,
        logits: NDArray[np.float32],
        peaks: NDArray[np.float32],
        tokens: NDArray[np.int64],
        alternatives: NDArray[np.int64],
    ) -> list[TokenLogprobs]:
        """See `token_logprobs`; no more rows than the buffers hold."""
        scaled, weights = self._work(len(logits))
        np.subtract(logits, peaks[:, None], out=scaled[:, : self.vocab_size])
        np.exp(scaled, out=weights)
        return token_logprobs(logits, peaks, weights, tokens, alternatives)

    def _refine(
        self, batch: _Batch, peaks: NDArray[np.float32], tokens: NDArray[np.int64]
    ) -> list[TokenLogprobs | None] | None:
        """Replace the tokens of rows that need more than an argmax; return log probabilities."""
        needs = batch.state["needs"]
        greedy = (needs & RANDOM) == 0
        highest = peaks
        if (needs & MASKED).any():
            highest = self._follow_masks(batch, peaks, tokens)
        for rows in self._chunks(greedy & ((needs & (EDITED | BARRED)) != 0)):
            edited, _ = self._edited(batch, rows)
            tokens[rows] = edited.argmax(axis=1)
        for method in (WHOLE, NUCLEUS, SHORT):
            for rows in self._chunks((needs & method) != 0):
                tokens[rows] = self._sample_random(method, batch, rows, highest)
        asked = (needs & LOGPROBS) != 0
        asked[batch.invalid] = False
        if not asked.any():
            return None
        logprobs: list[TokenLogprobs | None] = [None] * len(tokens)
        for rows in self._chunks(asked):
            alternatives = batch.state["alternatives"][rows]
            found = self._logprobs(
                _take(batch.logits, rows), peaks[rows], tokens[rows], alternatives
            )
            for row, entry in zip(rows.tolist(), found, strict=True):
                logprobs[row] = entry
        return logprobs

    def _follow_masks(
        self, batch: _Batch, peaks: NDArray[np.float32], tokens: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Replace the tokens of rows with a mask and no other edits by the best that are allowed;
        return the logits of all."""
        peaks = peaks.copy()
        needs = batch.state["needs"]
        for row in np.flatnonzero((needs & CHANGED) == MASKED).tolist():
            mask = self._mask(batch, row)
            if mask.allows(int(tokens[row])):
                continue  # mostly: models follow a grammar by themselves
            allowed = np.minimum(batch.logits[row], mask.bounds(self.vocab_size))
            tokens[row] = allowed.argmax()
            peaks[row] = allowed[tokens[row]]
            if not np.isfinite(peaks[row]):
                batch.invalid.append(row)
                needs[row] = 0
        return peaks

    def _mask(self, batch: _Batch, row: int) -> GrammarMask:
        """Return the mask of a row that has one."""
        mask = self._edits[int(batch.slots[row])].mask
        assert mask is not None
        return mask

    def _sample_random(
        self,
        method: int,
        batch: _Batch,
        rows: NDArray[np.int64],
        peaks: NDArray[np.float32],
    ) -> NDArray[np.int64]:
        """Sample random tokens for rows of the same method."""
        state = batch.state[rows]
        scaled, weights = self._work(len(rows))
        inside = scaled[:, : self.vocab_size]
        if (state["needs"] & (EDITED | BARRED)).any():
            _, highest = self._edited(batch, rows)
            np.subtract(inside, highest[:, None], out=inside)
        else:
            np.subtract(_take(batch.logits, rows), peaks[rows, None], out=inside)
            for index in np.flatnonzero(state["needs"] & MASKED).tolist():
                bounds = self._mask(batch, int(rows[index])).bounds(self.vocab_size)
                np.minimum(inside[index], bounds, out=inside[index])
        if (state["inverse_temperature"] != 1).any():
            np.multiply(scaled, state["inverse_temperature"][:, None], out=scaled)
        uniform = uniforms(state["key"], state["generated"])
        if method == WHOLE:
            np.exp(scaled, out=weights)
            return sample_whole(weights, uniform)
        limits = TruncationLimits(state["top_k"], state["top_p"], state["min_p"])
        if method == NUCLEUS:
            np.exp(scaled, out=weights)
            floor, total = nucleus_floor(weights, self.vocab_size, limits)
            return sample_truncated(select(scaled, floor), limits, total, uniform)
        floor = short_floor(scaled, limits)
        return sample_truncated(select(scaled, floor), limits, None, uniform)

    def _edited(
        self, batch: _Batch, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the rows' edited logits, in the first buffer, and their maxima."""
        copies, _ = self._work(len(rows))
        copies[:, : self.vocab_size] = _take(batch.logits, rows)
        needs = batch.state["needs"][rows]
        some = np.flatnonzero(needs & CHANGED)
        slots = batch.slots[rows[some]].tolist()
        apply_edits(
            [self._edits[slot] for slot in slots],
            (needs[some] & BARRED) != 0,
            some * copies.shape[1],
            copies.reshape(-1),
        )
        for row, slot in zip(some.tolist(), slots, strict=True):
            if (mask := self._edits[slot].mask) is not None:
                inside = copies[row, : self.vocab_size]
                np.minimum(inside, mask.bounds(self.vocab_size), out=inside)
        highest = copies.max(axis=1)
        invalid = ~np.isfinite(highest)
        if invalid.any():
            copies[invalid] = highest[invalid] = 0.0
            batch.invalid.extend(rows[invalid].tolist())
        return copies, highest

    def _count(
        self, slots: NDArray[np.int64], needs: NDArray[np.int64], tokens: NDArray[np.int64]
    ) -> None:
        """Count the new tokens."""
        self._slots.advance(slots, needs)
        edited = np.flatnonzero(needs & (EDITED | MASKED))
        for slot, token in zip(slots[edited].tolist(), tokens[edited].tolist(), strict=True):
            edits = self._edits[slot]
            if edits.penalties is not None:
                edits.penalties.append(token)
            for observe in edits.observers:
                observe(token)

    def _chunks(self, wanted: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
        """Yield the indices of the wanted rows, as many at a time as the buffers hold."""
        rows = np.flatnonzero(wanted)
        for start in range(0, len(rows), self._chunk_rows):
            yield rows[start : start + self._chunk_rows]

    def _work(self, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return two buffers, [rows, vocabulary rounded up]; the first has -inf as padding."""
        if self._buffers is None:
            shape = self._chunk_rows, self._width
            self._buffers = np.full(shape, -np.inf, np.float32), np.empty(shape, np.float32)
        scaled, weights = self._buffers
        return scaled[:rows], weights[:rows]


class _Batch(NamedTuple):
    logits: NDArray[np.float32]  # [rows, vocabulary]
    slots: NDArray[np.int64]  # [rows]
    state: NDArray[Any]  # [rows] of Slots.records, as before the call
    invalid: list[int]  # rows found to have no token to choose
    deferred: list[int]  # rows whose masks are not ready


def _take(logits: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the rows, as a view where they are consecutive."""
    first, last = int(rows[0]), int(rows[-1])
    return logits[first : last + 1] if last - first == len(rows) - 1 else logits[rows]
