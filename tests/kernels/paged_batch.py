"""Random sequences in a paged KV cache, and their attention in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sarathi.backends.torch.attention_plan import AttentionPlanner, AttentionShape, AttentionWork
from sarathi.backends.torch.kernels.attention_kernel import Workspace, launch_attention

# Largest accepted error; outputs are about 1.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class PagedBatch:
    """One step. Blocks are permuted; slots of no token and blocks of no sequence hold NaN."""

    def __init__(
        self,
        lengths: Sequence[tuple[int, int]],
        shape: AttentionShape,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        """
        Args:
            lengths: tokens new and cached of each sequence.
        """
        self.shape, self.device, self.dtype = shape, device, dtype
        rng = np.random.default_rng(seed)
        new, past = np.array(lengths, np.int32).T
        self.query_starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        self.contexts = new + past
        counts = -(-self.contexts // shape.block_size)
        mine = np.arange(counts.max()) < counts[:, None]
        tables = np.zeros(mine.shape, np.int32)
        tables[mine] = rng.permutation(counts.sum()) + 1  # block 0 is unused
        self._tables = tables

        def random(*size: int) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(size)).to(dtype)

        self._query = random(int(new.sum()), shape.num_heads, shape.head_dim)
        row = (shape.num_kv_heads, shape.head_dim)
        cache = (int(counts.sum()) + 1, shape.block_size, *row)
        keys, values = (torch.full(cache, torch.nan, dtype=dtype) for _ in range(2))
        self._sequences = []
        for context, table in zip(self.contexts.tolist(), tables, strict=True):
            key, value = random(context, *row), random(context, *row)
            position = np.arange(context)
            slots = table[position // shape.block_size] * shape.block_size
            slots += (position % shape.block_size).astype(np.int32)
            keys.flatten(0, 1)[slots] = key
            values.flatten(0, 1)[slots] = value
            self._sequences.append((key.double().numpy(), value.double().numpy()))
        self.query, self.keys, self.values = (x.to(device) for x in (self._query, keys, values))
        self.tables = torch.from_numpy(tables).to(device)

    def plan(self, planner: AttentionPlanner, window: int = 0) -> AttentionWork:
        return planner.plan(self.query_starts, self.contexts, window)

    def forget(self, sequence: int, num_blocks: int) -> None:
        """Fill the first blocks of a sequence with NaN."""
        blocks = self._tables[sequence, :num_blocks]
        self.keys[blocks] = torch.nan
        self.values[blocks] = torch.nan

    def compute(
        self,
        work: AttentionWork,
        *,
        soft_cap: float = 0.0,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Launch the kernels."""
        return launch_attention(
            self.query,
            self.keys,
            self.values,
            self.tables,
            work,
            torch.from_numpy(work.items).to(self.device),
            torch.from_numpy(work.merges).to(self.device),
            Workspace(work.num_partial_rows, self.shape, self.device),
            self.shape,
            soft_cap=soft_cap,
            sinks=None if sinks is None else sinks.to(self.device),
        )

    def reference(
        self, window: int = 0, soft_cap: float = 0.0, sinks: torch.Tensor | None = None
    ) -> npt.NDArray[np.float64]:
        """One sequence at a time, all scores at once."""
        outputs = []
        bounds = zip(self.query_starts[:-1], self.query_starts[1:], strict=True)
        for (start, end), (key, value) in zip(bounds, self._sequences, strict=True):
            query = self._query[start:end].double().numpy()
            key, value = (np.repeat(x, self.shape.group_size, axis=1) for x in (key, value))
            scores = np.einsum("qhd,khd->hqk", query, key) * self.shape.head_dim**-0.5
            if soft_cap:
                scores = soft_cap * np.tanh(scores / soft_cap)
            distance = np.arange(len(key))[-len(query) :, None] - np.arange(len(key))
            visible = (distance >= 0) & ((distance < window) if window else True)
            weights = np.exp(np.where(visible, scores, -np.inf))
            total = weights.sum(axis=2, keepdims=True)
            if sinks is not None:
                total += np.exp(sinks.double().numpy())[:, None, None]
            outputs.append(np.einsum("hqk,khd->qhd", weights / total, value))
        return np.concatenate(outputs)

    def check(
        self,
        output: torch.Tensor,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Assert that an output is right up to rounding."""
        expected = self.reference(window, soft_cap, sinks)
        error = np.abs(output.cpu().double().numpy() - expected).max()
        assert error <= TOLERANCE[self.dtype]
