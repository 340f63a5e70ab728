"""Samples tokens on the device that computed the logits, without waiting for it.

Imported only where Triton kernels are used (`kernels.uses_triton`): elsewhere the logits are in
the host's memory, which is what `sampling.sampler.Sampler` is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from sarathi.backends.torch import torch_devices as devices
from sarathi.backends.torch.kernels import MASS_BITS, check_vocabulary
from sarathi.backends.torch.kernels import sampling_kernels as kernels
from sarathi.sampling import sampler
from sarathi.sampling.categorical import NO_TOP_K, uniforms
from sarathi.sampling.grammar_masks import GrammarMasks
from sarathi.sampling.logits_processors import LogitsEdits, RequestTokens
from sarathi.sampling.logprobs import ScoredRows, TokenLogprobs, assemble, unknown_logprobs
from sarathi.sampling.params import MAX_LOGPROBS, SamplingParams

I64 = NDArray[np.int64]

_EDIT_BLOCK = 1024
_GPU_TILES = kernels.Tiles()
_MASK_SECONDS = 1.0  # that a launch waits for the masks of grammars before their requests fail

# The edits of a slot on the device.
_EDITS = (
    ("marks", np.int64),  # rows of the tables, -1 for none
    ("biases", np.int64),
    ("repetition", np.float32),
    ("frequency", np.float32),
    ("presence", np.float32),
)
_WARM_UP = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, presence_penalty=1.0),
    SamplingParams(temperature=0, logprobs=1),
)


class TorchSampler:
    """Samples one token for each row of logits on the device; see `sampling.sampler.RequestSlots`.

    Results are those of `sampling.sampler.Sampler` up to rounding: the same seed gives the same
    tokens wherever a sampled value or a truncation is not at a boundary. A row's token and log
    probabilities depend only on its logits, its parameters and the tokens generated before.

    All calls use the current stream, which must be the same one. `launch` never waits for the
    device, so the next one may follow before the first result is read; only the requests whose
    logits processors observe the tokens wait for their last one.

    Memory on the device: 4 bytes * vocab_size for each open slot with penalties or with tokens
    barred by min_tokens, and again for each one with a logit_bias (tables double when they are
    full, and do not shrink); while a launch runs, 4 bytes * vocab_size for each row with edits and
    32 KiB for each row that truncates or lists log probabilities.
    """

    def __init__(
        self, vocab_size: int, device: torch.device, tiles: kernels.Tiles = _GPU_TILES
    ) -> None:
        """Allocate nothing yet: memory grows with the requests. The default tiles suit GPUs.

        Raises:
            ExecutorError: the vocabulary is larger than the kernels' sums allow.
            ValueError: the block is too small for the log probabilities that may be requested.
        """
        check_vocabulary(vocab_size)
        if tiles.block < MAX_LOGPROBS:
            raise ValueError(f"block is {tiles.block}, expected at least {MAX_LOGPROBS}")
        self._tiles = tiles
        self.vocab_size = vocab_size
        self._launch_options = {
            "VOCAB": vocab_size,
            "BLOCK": tiles.block,
            "WAYS": tiles.ways,
            "num_warps": tiles.num_warps,
            "enable_fp_fusion": False,
        }
        self._device = device
        self._slots = sampler.Slots(_EDITS)
        self._observing: dict[int, LogitsEdits] = {}  # whose processors get the tokens, by slot
        self._previous: _Unobserved | None = None  # the launch before, if it has such requests
        self.grammars: GrammarMasks | None = None
        self._marks = _RowTable(vocab_size, torch.int32, device)
        self._biases = _RowTable(vocab_size, torch.float32, device)
        self.last_tokens = torch.zeros(0, dtype=torch.int64, device=device)
        """[slots], int64, the token sampled last for each slot; 0 where there was none.

        `open` may replace the tensor by a longer one with the same content.
        """

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
        record = self._slots.records[slot]
        record["marks"] = record["biases"] = -1
        record["repetition"], record["frequency"], record["presence"] = 1, 0, 0
        if (penalties := edits.penalties) is not None:
            record["repetition"] = penalties.repetition
            record["frequency"] = penalties.frequency
            record["presence"] = penalties.presence
        with devices.computing(self._device):
            more = len(self._slots.records) - len(self.last_tokens)
            if more:
                self.last_tokens = torch.cat([self.last_tokens, self.last_tokens.new_zeros(more)])
            if record["needs"] & sampler.CHANGED:
                record["marks"] = self._marks.add(_token_marks(edits, self.vocab_size))
                record["biases"] = self._biases.add(_dense_bias(edits, self.vocab_size))
        if edits.observers:
            self._observing[slot] = edits
        return slot

    def close(self, slot: int) -> None:
        self._slots.close(slot)
        edits = self._observing.pop(slot, None)
        if edits is not None and edits.mask is not None:
            edits.mask.closed = True
        if not self._observing:
            self._previous = None  # an idle engine keeps no request
        record = self._slots.records[slot]
        self._marks.remove(int(record["marks"]))
        self._biases.remove(int(record["biases"]))

    def failure(self, slot: int) -> str | None:
        """See `RequestSlots`."""
        edits = self._observing.get(slot)
        return None if edits is None or edits.mask is None else edits.mask.failure

    def warm_up(self) -> None:
        """Compile all kernels, with synthetic requests of every kind."""
        logits = torch.zeros((len(_WARM_UP), self.vocab_size), device=self._device)
        slots = np.array([self.open(params, (), ()) for params in _WARM_UP])
        self.sample(logits, slots)
        for slot in slots.tolist():
            self.close(slot)

    def sample(self, logits: torch.Tensor, slots: I64) -> sampler.SamplerOutput:
        """Launch, and wait for the result."""
        return self.launch(logits, slots).result()

    def launch(self, logits: torch.Tensor, slots: I64) -> PendingSample:
        """Start to sample one token for each row, which from then on counts as generated, even if
        none can be chosen.

        Args:
            logits: [rows, vocab_size], float32, on the device; rows may be any number of
                elements apart. Never written to, and read until the result is there.
            slots: [rows], the open slot of each row, no slot twice.

        Raises:
            ValueError: the logits are not as described, or a slot is not open.
        """
        self._check(logits, slots)
        if self._previous is not None:
            self._observe(self._previous)
        state = self._slots.records.take(slots)  # much faster than indexing, of structures
        needs: I64 = state["needs"]
        if (needs & sampler.CLOSED).any():
            raise ValueError("a slot is not open")
        masks: NDArray[np.int32] | None = None
        counted = needs
        if (needs & sampler.MASKED).any():
            counted = needs.copy()
            masks = self._masks(slots, needs)
        changed = (needs & sampler.CHANGED) != 0
        num_changed = int(np.count_nonzero(changed))
        # Rows with edits come last: they are sampled from edited copies.
        order = np.argsort(changed, kind="stable")
        table = self._table(state.take(order), slots[order], order, num_changed)
        if masks is not None:
            table["mask"][(table["needs"] & sampler.MASKED) != 0] = range(len(masks))
        asked = np.flatnonzero(needs & sampler.LOGPROBS)
        requests = np.zeros(len(asked), kernels.LOGPROBS_ROW)
        requests["row"] = asked
        requests["alternatives"] = np.minimum(state["alternatives"][asked], self.vocab_size)
        with devices.computing(self._device):
            uploaded = devices.to_device(
                np.concatenate([table.view(np.int64), requests.view(np.int64)]), self._device
            )
            rows = uploaded[: table.nbytes // 8].view(len(table), kernels.ROW.itemsize // 8)
            tokens = torch.empty(len(slots), dtype=torch.int64, device=self._device)
            plain = len(slots) - num_changed
            self._sample(
                logits, rows[:plain], tokens, bool((needs[~changed] & sampler.RANDOM).any())
            )
            if num_changed:
                edited = self._edit(logits, rows[plain:], masks)
                self._sample(edited, rows[plain:], tokens, True)
            results = None
            if len(asked):
                width = int(requests["alternatives"].max())
                results = self._logprobs(logits, uploaded[table.nbytes // 8 :], tokens, width)
            self._slots.advance(slots, counted)
            pending = PendingSample(
                devices.to_host(tokens),
                None if results is None else devices.to_host(results),
                requests,
                devices.record_event(self._device),
            )
        if self._observing:
            edits = [(slot, self._observing.get(slot)) for slot in slots.tolist()]
            self._previous = _Unobserved(pending, edits)
        return pending

    def score(self, logits: torch.Tensor, scored: ScoredRows) -> list[TokenLogprobs]:
        """Launch, and wait for the result."""
        return self.launch_scores(logits, scored).result()

    def launch_scores(self, logits: torch.Tensor, scored: ScoredRows) -> PendingScores:
        """Start to compute the log probabilities of known tokens; see `launch` for the logits."""
        requests = np.zeros(len(logits), kernels.LOGPROBS_ROW)
        requests["row"] = np.arange(len(logits))
        requests["alternatives"] = np.minimum(scored.alternatives, self.vocab_size)
        with devices.computing(self._device):
            rows = devices.to_device(requests.view(np.int64), self._device)
            # The kernel skips rows of -1, and does not take what is not finite.
            tokens = devices.to_device(scored.tokens, self._device)
            tokens = torch.where(logits.amax(dim=1).isfinite(), tokens, -1)
            results = self._logprobs(logits, rows, tokens, int(requests["alternatives"].max()))
            return PendingScores(
                devices.to_host(results),
                requests["alternatives"],
                devices.record_event(self._device),
            )

    def _observe(self, previous: _Unobserved) -> None:
        """Give logits processors the tokens of the launch before, and copy their biases to the
        device.

        This waits for that launch alone, not for the logits that are being computed: masks of
        grammars are computed meanwhile.
        """
        self._previous = None
        tokens = previous.pending.tokens().tolist()
        for (slot, edits), token in zip(previous.edits, tokens, strict=True):
            if edits is None or self._observing.get(slot) is not edits or token < 0:
                continue  # nothing observes, it has been closed, or there is no token
            for observe in edits.observers:
                observe(token)
            if edits.mask is not None and edits.token_bias is None:
                continue  # the bias is as it was
            bias = _dense_bias(edits, self.vocab_size)
            row = int(self._slots.records[slot]["biases"])
            with devices.computing(self._device):
                if row < 0 or bias is None:
                    self._biases.remove(row)
                    self._slots.records["biases"][slot] = self._biases.add(bias)
                else:
                    self._biases.rows[row] = devices.to_device(bias, self._device)

    def _masks(self, slots: I64, needs: I64) -> NDArray[np.int32]:
        """Wait for the masks of the rows that have one, and return them; those that have failed
        allow no token.

        Rows where a mask only allows tokens that are barred do not need to bar them any more.
        """
        assert self.grammars is not None
        rows = np.flatnonzero(needs & sampler.MASKED).tolist()
        edits = [self._observing[slot] for slot in slots[rows].tolist()]
        self.grammars.wait([e.mask for e in edits if e.mask], _MASK_SECONDS, slow=True)
        words = np.zeros((len(rows), -(-self.vocab_size // 32)), np.int32)
        for own, row, edit in zip(words, rows, edits, strict=True):
            assert edit.mask is not None
            if not edit.mask.ready:
                edit.mask.error = f"what may come next was not known within {_MASK_SECONDS:g} s"
            if edit.mask.error is not None:
                continue
            found = edit.mask.words[: len(own)]  # fewer or more than a padded vocabulary has
            own[: len(found)] = found
            if needs[row] & sampler.BARRED and edit.mask.only_allows(edit.barred_ids):
                needs[row] &= ~sampler.BARRED
        return words

    def _check(self, logits: torch.Tensor, slots: I64) -> None:
        if tuple(logits.shape) != (len(slots), self.vocab_size):
            raise ValueError(
                f"logits have the shape {tuple(logits.shape)}, "
                f"expected {(len(slots), self.vocab_size)}: a row per slot"
            )
        if logits.dtype != torch.float32 or logits.device.type != self._device.type:
            raise ValueError(
                f"logits are {logits.dtype} on {logits.device}, "
                f"expected torch.float32 on {self._device}"
            )
        if len(slots) and logits.stride(1) != 1:
            raise ValueError(f"logits have elements {logits.stride(1)} apart in a row, expected 1")

    def _table(self, state: NDArray[Any], slots: I64, order: I64, num_changed: int) -> NDArray[Any]:
        """Make what the kernels read of each row, [rows] of `ROW`."""
        table = np.zeros(len(slots), kernels.ROW)
        table["source"] = table["row"] = order
        table["slot"] = slots
        table["needs"] = state["needs"]
        table["marks"] = table["biases"] = table["mask"] = -1
        if (state["needs"] & sampler.RANDOM).any():
            table["uniform"] = uniforms(state["key"], state["generated"])
            table["inverse_temperature"] = state["inverse_temperature"]
            table["top_k"] = np.where(state["top_k"] == NO_TOP_K, 0, state["top_k"])
            table["top_p"] = state["top_p"]
            with np.errstate(divide="ignore"):
                table["max_gap"] = np.log(1.0 / state["min_p"])
        if num_changed:
            last = table[len(table) - num_changed :]
            last["source"] = np.arange(num_changed)
            for name, _ in _EDITS:
                last[name] = state[name][len(table) - num_changed :]
        return table

    def _edit(
        self, logits: torch.Tensor, rows: torch.Tensor, masks: NDArray[np.int32] | None
    ) -> torch.Tensor:
        """Make edited copies of the logits, [rows, vocab_size]."""
        edited = torch.empty((len(rows), self.vocab_size), dtype=torch.float32, device=self._device)
        words = np.zeros((1, 1), np.int32) if masks is None else masks
        kernels.edit[len(rows), triton.cdiv(self.vocab_size, _EDIT_BLOCK)](
            logits, logits.stride(0), rows, self._marks.rows, self._biases.rows,
            devices.to_device(words, self._device), edited,
            VOCAB=self.vocab_size, BLOCK=_EDIT_BLOCK,
            enable_fp_fusion=False,  # so that edits are those of numpy
        )  # fmt: skip
        return edited

    def _sample(
        self, logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, random: bool
    ) -> None:
        if not len(rows):
            return
        kernels.sample[(len(rows),)](
            logits, logits.stride(0), rows, self._marks.rows,
            *self._scratch(len(rows) if random else 0), tokens, self.last_tokens,
            **self._launch_options,
        )  # fmt: skip

    def _logprobs(
        self, logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, width: int
    ) -> torch.Tensor:
        """Compute the results of `kernels.logprobs`."""
        count = len(rows) // (kernels.LOGPROBS_ROW.itemsize // 8)
        # Zeros, since rows have fewer alternatives than others.
        shape = (count, len(kernels.LOGPROBS_RESULT) + 2 * width)
        results = torch.zeros(shape, dtype=torch.float64, device=self._device)
        kernels.logprobs[(count,)](
            logits, logits.stride(0), rows, tokens,
            *self._scratch(count if width else 0), results, width,
            **self._launch_options,
        )  # fmt: skip
        return results

    def _scratch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Allocate the candidates of each row, values and columns."""
        shape = (rows, self._tiles.block)
        return (
            torch.empty(shape, dtype=torch.float32, device=self._device),
            torch.empty(shape, dtype=torch.int32, device=self._device),
        )


@dataclass(frozen=True)
class PendingSample:
    """Holds the result of a launch while it is copied to the host."""

    _tokens: torch.Tensor  # [rows]
    _results: torch.Tensor | None  # of the rows that requested log probabilities
    _requests: NDArray[Any]  # [rows that requested them] of `LOGPROBS_ROW`
    _event: devices.DeviceEvent

    def tokens(self) -> I64:
        """Wait for the sampled tokens and return them, [rows]."""
        self._event.synchronize()
        tokens: I64 = self._tokens.numpy()
        return tokens

    def result(self) -> sampler.SamplerOutput:
        """Wait for the tokens, and for the log probabilities of rows that requested them."""
        tokens = self.tokens()
        logprobs: list[TokenLogprobs | None] = [None] * len(tokens)
        asked = self._requests["row"]
        sampled = tokens[asked] != sampler.NO_TOKEN
        if self._results is None or not sampled.any():
            return sampler.SamplerOutput(tokens, None)
        entries = _logprobs(self._results.numpy()[sampled], self._requests["alternatives"][sampled])
        for row, entry in zip(asked[sampled].tolist(), entries, strict=True):
            logprobs[row] = entry
        return sampler.SamplerOutput(tokens, logprobs)


class _Unobserved(NamedTuple):
    """A launch whose tokens the logits processors have not got."""

    pending: PendingSample
    edits: list[tuple[int, LogitsEdits | None]]  # slot and edits of each row; None: not observed


@dataclass(frozen=True)
class PendingScores:
    """Holds the log probabilities of known tokens while they are copied to the host."""

    _results: torch.Tensor  # [rows], as `kernels.logprobs` gives them
    _alternatives: I64  # [rows]
    _event: devices.DeviceEvent

    def result(self) -> list[TokenLogprobs]:
        """Wait for them."""
        self._event.synchronize()
        results = self._results.numpy()
        skipped = results[:, kernels.LOGPROBS_RESULT.index("mass")] == 0
        with np.errstate(divide="ignore"):
            entries = _logprobs(results, self._alternatives)
        for row in np.flatnonzero(skipped).tolist():
            entries[row] = unknown_logprobs()
        return entries


class _RowTable:
    """Allocates the rows of one tensor on the device to slots."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = torch.empty((0, width), dtype=dtype, device=device)
        self._free: list[int] = []

    def add(self, values: NDArray[Any] | None) -> int:
        """Copy values of the table's type, [width], into a row; return which, -1 for no values."""
        if values is None:
            return -1
        if not self._free:
            size = len(self.rows)
            more = max(size, 4)
            added = self.rows.new_empty((more, self.rows.shape[1]))
            self.rows = torch.cat([self.rows, added])
            self._free.extend(reversed(range(size, size + more)))
        row = self._free.pop()
        self.rows[row] = devices.to_device(values, self.rows.device)
        return row

    def remove(self, row: int) -> None:
        """Let a row be used again; harmless for -1."""
        if row >= 0:
            self._free.append(row)


def _token_marks(edits: LogitsEdits, vocab_size: int) -> NDArray[np.int32] | None:
    """Make the marks of each token, see `kernels.SEEN`; None where edits need none."""
    if edits.penalties is None and not len(edits.barred_ids):
        return None
    marks = np.zeros(vocab_size, np.int32)
    if edits.penalties is not None:
        counts = edits.penalties.seen_counts.astype(np.int32)
        marks[edits.penalties.seen_ids] = (counts << kernels.COUNT_SHIFT) | kernels.SEEN
    marks[edits.barred_ids] |= kernels.ENDS
    return marks


def _dense_bias(edits: LogitsEdits, vocab_size: int) -> NDArray[np.float32] | None:
    """Make the bias of each token; None where there is none."""
    if edits.token_bias is not None:
        bias = edits.token_bias.copy()
    elif len(edits.bias_ids):
        bias = np.zeros(vocab_size, np.float32)
    else:
        return None
    bias[edits.bias_ids] += edits.bias
    return bias


def _logprobs(results: NDArray[np.float64], alternatives: I64) -> list[TokenLogprobs]:
    """Make the entries of rows out of what the kernel computed of each."""
    logit, peak, mass, rank = results.T[: len(kernels.LOGPROBS_RESULT)]
    top_ids, top_logits = np.split(results[:, len(kernels.LOGPROBS_RESULT) :], 2, axis=1)
    normaliser = peak + np.log(mass * 2.0**-MASS_BITS)
    return assemble(
        logit - normaliser,
        rank.astype(np.int64),
        top_ids.astype(np.int64),
        top_logits - normaliser[:, None],
        alternatives,
    )
