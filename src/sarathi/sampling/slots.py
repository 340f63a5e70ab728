"""The state of each open request of a sampler, as arrays indexed by slot."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sarathi.sampling.categorical import NO_TOP_K, stream_key
from sarathi.sampling.logits_processors import LogitsEdits
from sarathi.sampling.params import SamplingParams

# What a row needs besides the argmax of its logits, as bits; 0 for nothing.
CLOSED, EDITED, BARRED, LOGPROBS = 1, 2, 4, 8
CHANGED = EDITED | BARRED  # its logits are not those of the model
WHOLE, NUCLEUS, SHORT = (
    16,
    32,
    64,
)  # the method, if it is random: without truncation, by top_p, by top_k or min_p
RANDOM = WHOLE | NUCLEUS | SHORT

_FIELDS = np.dtype(
    [
        ("needs", np.int64),
        ("generated", np.int64),
        ("min_tokens", np.int64),
        ("key", np.uint64),
        ("inverse_temperature", np.float32),  # 1 / temperature
        ("top_k", np.int64),
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("alternatives", np.int64),
    ]
)
_MAX_SHARPNESS = 1e30  # finite in float32


class Slots:
    """Records with the fields above; `records[slots]` gathers those of a batch."""

    def __init__(self) -> None:
        self.records: NDArray[Any] = np.zeros(0, _FIELDS)
        self._free: list[int] = []

    def open(
        self, params: SamplingParams, edits: LogitsEdits, vocab_size: int, generated: int
    ) -> int:
        """Return a slot for a request that has generated `generated` tokens before."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        record = self.records[slot]
        has_k = 0 < params.top_k < vocab_size
        barred = generated < params.min_tokens and len(edits.barred_ids) > 0
        record["needs"] = (
            _method(params, has_k)
            | (EDITED if edits.lasting else 0)
            | (BARRED if barred else 0)
            | (LOGPROBS if params.logprobs is not None else 0)
        )
        record["generated"] = generated
        record["min_tokens"] = min(params.min_tokens, np.iinfo(np.int64).max)
        record["key"] = stream_key(secrets.randbits(64) if params.seed is None else params.seed)
        record["inverse_temperature"] = 1.0 / max(params.temperature, 1.0 / _MAX_SHARPNESS)
        record["top_k"] = params.top_k if has_k else NO_TOP_K
        record["top_p"] = params.top_p
        record["min_p"] = params.min_p
        record["alternatives"] = params.logprobs or 0
        return slot

    def close(self, slot: int) -> None:
        """Free the slot.

        Raises:
            ValueError: the slot is not open.
        """
        if not 0 <= slot < len(self.records) or self.records[slot]["needs"] & CLOSED:
            raise ValueError(f"slot {slot} is not open")
        self.records[slot]["needs"] = CLOSED
        self._free.append(slot)

    def advance(self, slots: NDArray[np.int64], needs: NDArray[np.int64]) -> None:
        """Count one more token for each slot, and end the barring of outputs of `min_tokens`.

        Args:
            needs: [len(slots)], of the slots' records.
        """
        self.records["generated"][slots] += 1
        barred = slots[(needs & BARRED) != 0]
        if len(barred):
            records = self.records[barred]
            done = barred[records["generated"] >= records["min_tokens"]]
            self.records["needs"][done] &= ~BARRED

    def _grow(self) -> None:
        size = len(self.records)
        added = np.zeros(max(size, 16), _FIELDS)
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
