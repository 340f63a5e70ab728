"""How the libraries of GPUs are called, against stand-ins that do what their documentation says."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from test_torch_attention import config

from sarathi.executors.step import Part, join_parts
from sarathi.executors.torch.attention import Attention, Cache
from sarathi.executors.torch.attention_check import check_attention
from sarathi.executors.torch.flashinfer_attention import FlashInferAttention
from sarathi.executors.torch.inputs import Carrier, StepArrays, padded, step_arrays
from sarathi.executors.torch.varlen_attention import VarlenAttention

CPU = torch.device("cpu")
F32 = torch.float32


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, left: int) -> torch.Tensor:
    """The last rows of one sequence; `left` tokens before each are seen, all of them if -1."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * query.shape[2] ** -0.5
    keys = torch.arange(len(key))
    distance = keys[len(key) - len(query) :, None] - keys
    hidden = (distance < 0) | ((distance > left) if left >= 0 else False)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)


def paged(cached: torch.Tensor, blocks: torch.Tensor, length: int) -> torch.Tensor:
    return cached[blocks.long()].flatten(0, 1)[:length]


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
    num_splits: int,
) -> torch.Tensor:
    assert key.shape[1] % 256 == 0
    assert {tensor.dtype for tensor in (cu_seq_q, cu_seq_k, seqused_k, block_table)} == {
        torch.int32
    }
    assert torch.equal(cu_seq_k.diff(), seqused_k)
    assert max_q == cu_seq_q.diff().max()
    assert max_k >= seqused_k.max()
    assert window_size[1] == 0
    rows = []
    for i, length in enumerate(seqused_k.tolist()):
        k, v = (paged(cached, block_table[i], length) for cached in (key, value))
        rows.append(attend(query[cu_seq_q[i] : cu_seq_q[i + 1]], k, v, window_size[0]))
    return torch.cat(rows)


class Wrapper:
    """Both of FlashInfer's: `plan` once a step, `run` once a layer."""

    def __init__(self, workspace: torch.Tensor, layout: str, **buffers: Any) -> None:
        assert layout == "NHD"
        self._buffers = buffers

    def run(self, query: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        assert self._sizes["num_qo_heads"] == query.shape[1]
        assert self._sizes["num_kv_heads"] == cache[0].shape[2]
        assert self._sizes["page_size"] == cache[0].shape[1]
        rows = []
        for i, last in enumerate(self._last.tolist()):
            blocks = self._blocks[self._starts[i] : self._starts[i + 1]]
            length = (len(blocks) - 1) * cache[0].shape[1] + last
            k, v = (paged(cached, blocks, length) for cached in cache)
            mine = query[self._queries[i] : self._queries[i + 1]]
            rows.append(attend(mine, k, v, self._sizes["window_left"]))
        return torch.cat(rows)


class Prefill(Wrapper):
    def plan(self, queries, starts, blocks, last, *, head_dim_qk, causal, **sizes: Any) -> None:
        assert causal
        self._queries, self._starts, self._blocks, self._last = queries, starts, blocks, last
        self._sizes = sizes


class Decode(Wrapper):
    def plan(self, starts, blocks, last, *, head_dim, **sizes: Any) -> None:
        buffers = self._buffers
        assert len(last) == len(buffers["paged_kv_last_page_len_buffer"])
        assert len(starts) == len(buffers["paged_kv_indptr_buffer"])
        assert len(blocks) <= len(buffers["paged_kv_indices_buffer"])
        self._queries = torch.arange(len(last) + 1)
        self._starts, self._blocks, self._last = starts, blocks, last
        self._sizes = sizes


@pytest.fixture(params=["varlen", "flashinfer"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attention:
    if request.param == "varlen":
        monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_attn)
        return VarlenAttention(config(), F32, CPU)
    library = SimpleNamespace(
        BatchPrefillWithPagedKVCacheWrapper=Prefill, BatchDecodeWithPagedKVCacheWrapper=Decode
    )
    monkeypatch.setitem(sys.modules, "flashinfer", library)
    return FlashInferAttention(config(), F32, CPU)


def test_the_check_passes(attention: Attention) -> None:
    check_attention(attention, config(windows=(0, 1, 20)), F32, CPU)


def test_recorded_decodes_are_updated(attention: Attention) -> None:
    """As by a graph: the arrays of a step go where those of the one before were."""
    size, sizes = attention.block_size, config()
    torch.manual_seed(0)
    cache = Cache(*(torch.randn(12, size, 2, 8) for _ in range(2)))
    query = torch.randn(4, 6, 8)

    def filled(*contexts: int) -> StepArrays:
        parts = [
            Part([1], context - 1, range(3 * i, 3 * i + 3), samples=True)
            for i, context in enumerate(contexts)
        ]
        arrays = step_arrays(join_parts(parts, size), size)
        return padded(arrays, size=4, width=3, block_size=size, spare_block=11)

    first, second = filled(3, 2 * size), filled(size + 1, 5, 2 * size + 4)
    inputs = Carrier(CPU).send(first)
    recorded = attention.record(first, inputs)
    for name, tensor in vars(inputs).items():
        tensor.copy_(torch.from_numpy(getattr(second, name)))
    recorded.update(second)
    planned = attention.plan(second, Carrier(CPU).send(second))
    for window in sizes.sliding_windows:
        found = recorded.attend(query, cache, window)
        assert torch.equal(found, planned.attend(query, cache, window))
