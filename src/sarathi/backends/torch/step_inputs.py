"""The inputs of a step as the operations need them: prepared once, for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from sarathi.backends.step import I32, I64, Step
from sarathi.backends.torch.attention_plan import AttentionWork
from sarathi.models.weights import Array

_ALIGNMENT = 16  # bytes, of each array in a buffer


@dataclass(frozen=True)
class StepArrays:
    """T tokens of B sequences whose longest block table has W entries; S sampled rows."""

    token_ids: I64  # [T]
    positions: I64  # [T]
    slots: I64  # [T], block * block_size + offset in the block: where keys and values go
    query_starts: I32  # [B + 1]
    contexts: I32  # [B], tokens cached and new
    tables: I32  # [B, W], each sequence's blocks, padded with zeros
    sample_rows: I64  # [S]
    work: tuple[AttentionWork, ...] = ()  # what `Attention.prepare` adds

    @property
    def only_decodes(self) -> bool:
        """Whether every sequence has one token."""
        return len(self.token_ids) == len(self.contexts)


class WorkTensors(NamedTuple):
    """The arrays of an `AttentionWork` on the device."""

    items: torch.Tensor
    merges: torch.Tensor


@dataclass(frozen=True)
class StepInputs:
    """The arrays of a step on the device; see `StepArrays`."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_starts: torch.Tensor
    contexts: torch.Tensor
    tables: torch.Tensor
    sample_rows: torch.Tensor
    work: tuple[WorkTensors, ...] = ()


_NAMES = [each.name for each in fields(StepInputs) if each.name != "work"]


def step_arrays(step: Step, block_size: int) -> StepArrays:
    """Derive the arrays that the operations need from a checked step."""
    queries = np.diff(step.query_starts)
    contexts = (step.past_lens + queries).astype(np.int32)
    counts = np.diff(step.block_starts)
    tables = np.zeros((len(counts), counts.max()), np.int32)
    tables[np.arange(counts.max()) < counts[:, None]] = step.block_ids
    sequence = np.repeat(np.arange(len(queries)), queries)
    # From the lengths, which have been checked against the block tables, unlike the positions.
    index = np.arange(len(sequence)) + np.repeat(step.past_lens - step.query_starts[:-1], queries)
    blocks = tables[sequence, index // block_size].astype(np.int64)
    return StepArrays(
        token_ids=np.asarray(step.token_ids, np.int64),
        positions=np.asarray(step.positions, np.int64),
        slots=blocks * block_size + index % block_size,
        query_starts=np.asarray(step.query_starts, np.int32),
        contexts=contexts,
        tables=tables,
        sample_rows=np.asarray(step.sample_rows, np.int64),
    )


def resolve_tokens(token_ids: torch.Tensor, last_tokens: torch.Tensor) -> None:
    """Replace those of `token_ids` that refer to a slot by its last token; see `Step.token_ids`."""
    slots = (-1 - token_ids).clamp_(min=0)
    torch.where(token_ids < 0, last_tokens[slots], token_ids, out=token_ids)


def no_decodes() -> StepArrays:
    """Return a step of no sequences, to be `padded`."""
    none64, none32 = np.zeros(0, np.int64), np.zeros(0, np.int32)
    start, tables = np.zeros(1, np.int32), np.zeros((0, 0), np.int32)
    return StepArrays(none64, none64, none64, start, none32, tables, none64)


def padded(
    arrays: StepArrays, *, size: int, width: int, block_size: int, spare_block: int
) -> StepArrays:
    """Pad decodes to `size` sequences, with block tables of `width` entries.

    The padding sequences have one token each, all in the same slot of `spare_block`, which belongs
    to no sequence. All rows are sampled, in order.
    """
    count, used = arrays.tables.shape
    more = size - count
    tables = np.zeros((size, width), np.int32)
    tables[:count, :used] = arrays.tables
    tables[count:, 0] = spare_block
    return StepArrays(
        token_ids=np.append(arrays.token_ids, np.zeros(more, np.int64)),
        positions=np.append(arrays.positions, np.zeros(more, np.int64)),
        slots=np.append(arrays.slots, np.full(more, spare_block * block_size, np.int64)),
        query_starts=np.arange(size + 1, dtype=np.int32),
        contexts=np.append(arrays.contexts, np.ones(more, np.int32)),
        tables=tables,
        sample_rows=np.arange(size, dtype=np.int64),
    )


def upload(
    arrays: StepArrays, device: torch.device, into: torch.Tensor | None = None
) -> StepInputs:
    """Copy the arrays of a step to a device, all in one copy, into new memory, or into `num_bytes`
    there, where they keep their addresses.

    On a GPU the copy is asynchronous, and several may be in flight: torch reuses pinned memory
    only once the copies out of it are done.
    """
    if device.type == "cpu":
        return _inputs([torch.from_numpy(array) for array in _flat(arrays)])
    size = num_bytes(arrays)
    if into is None:
        into = torch.empty(size, dtype=torch.uint8, device=device)
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    pack(arrays, pinned)
    into[:size].copy_(pinned, non_blocking=True)
    return unpack(arrays, into)


def pack(arrays: StepArrays, target: torch.Tensor) -> None:
    """Write the arrays one after the other into bytes on the CPU."""
    host, offset = target.numpy(), 0
    for array in _flat(arrays):
        end = offset + array.nbytes
        host[offset:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        offset = _aligned(end)


def unpack(arrays: StepArrays, packed: torch.Tensor) -> StepInputs:
    """View packed bytes as inputs that are shaped as `arrays`."""
    tensors, offset = [], 0
    for array in _flat(arrays):
        end = offset + array.nbytes
        dtype = torch.int64 if array.dtype == np.int64 else torch.int32
        tensors.append(packed[offset:end].view(dtype).view(array.shape))
        offset = _aligned(end)
    return _inputs(tensors)


def num_bytes(arrays: StepArrays) -> int:
    """Size of arrays of these shapes when they are packed."""
    return sum(_aligned(array.nbytes) for array in _flat(arrays))


def _flat(arrays: StepArrays) -> list[Array]:
    """All arrays, those of `work` last."""
    own = [getattr(arrays, name) for name in _NAMES]
    return own + [array for work in arrays.work for array in (work.items, work.merges)]


def _inputs(tensors: Sequence[torch.Tensor]) -> StepInputs:
    """Name the tensors of the arrays that `_flat` returns."""
    own, rest = tensors[: len(_NAMES)], tensors[len(_NAMES) :]
    work = tuple(WorkTensors(*pair) for pair in zip(rest[::2], rest[1::2], strict=True))
    return StepInputs(**dict(zip(_NAMES, own, strict=True)), work=work)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
