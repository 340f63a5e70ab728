from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.simulator.devices import DEVICES
from sarathi.simulator.gpu_cost import decode_attention, prefill_attention

A100 = DEVICES["a100"]
lengths = st.integers(1, 16384)


def chunk(rows: int, before: int = 0) -> float:
    fixed, each = prefill_attention(A100, 32, 128, rows)
    return fixed + each * before


def batch(context: int) -> float:
    fixed, each = decode_attention(A100, 8, 128, 2)
    return fixed + each * context


@given(lengths, lengths)
def test_no_faster_than_the_processors(rows: int, before: int) -> None:
    flops = 4 * 32 * 128 * rows * (before + rows / 2)
    assert chunk(rows, before) > flops / A100.peak_flops


@given(st.integers(1, 2**21))
def test_no_faster_than_memory(context: int) -> None:
    assert batch(context) > context * 2 * 8 * 128 * 2 / A100.bandwidth


@given(lengths, lengths, st.integers(1, 1000))
def test_longer_and_deeper_take_longer(rows: int, before: int, more: int) -> None:
    assert chunk(rows + more, before) >= chunk(rows, before)
    assert chunk(rows, before + more) > chunk(rows, before)


def test_rows_come_in_blocks_of_64() -> None:
    assert prefill_attention(A100, 32, 128, 65).each == prefill_attention(A100, 32, 128, 128).each
    assert prefill_attention(A100, 32, 128, 129).each > prefill_attention(A100, 32, 128, 128).each


def test_a_prompt_is_quadratic_in_its_length() -> None:
    assert 3.4 < chunk(16384) / chunk(8192) < 4


def test_heads_count_for_prompts_and_key_value_heads_for_decodes() -> None:
    assert (
        prefill_attention(A100, 64, 128, 512).each == 2 * prefill_attention(A100, 32, 128, 512).each
    )
    assert decode_attention(A100, 4, 128, 2).each == decode_attention(A100, 8, 128, 2).each / 2
    assert decode_attention(A100, 8, 128, 1).each == decode_attention(A100, 8, 128, 2).each / 2


def test_known_measurements() -> None:
    """Of a worker with 32 query and 4 key-value heads, in the published profile."""
    assert chunk(512, 1024) == pytest.approx(148e-6, rel=0.15)
    assert chunk(2048, 2048) == pytest.approx(1027e-6, rel=0.1)
    assert chunk(4096) == pytest.approx(2315e-6, rel=0.1)
    fixed, each = decode_attention(A100, 4, 128, 2)
    assert fixed + each * 128 * 4032 == pytest.approx(667e-6, rel=0.1)
    assert fixed + each * 32 * 4032 == pytest.approx(192e-6, rel=0.1)
