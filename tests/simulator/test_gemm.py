from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.simulator.devices import DEVICES
from sarathi.simulator.gpu_cost import gemm_seconds, moved_bytes, overlapped, padded_flops

A100 = DEVICES["a100"]
UP = (28672, 4096)  # Mistral-7B's projection up


def up(tokens: int) -> float:
    return gemm_seconds(A100, tokens, *UP)


sizes = st.integers(1, 20000)
devices = st.sampled_from(sorted(DEVICES))


@given(devices, sizes, sizes, sizes)
def test_no_faster_than_the_hardware(name: str, rows: int, outputs: int, depth: int) -> None:
    device = DEVICES[name]
    seconds = gemm_seconds(device, rows, outputs, depth)
    assert seconds > 2 * rows * outputs * depth / device.peak_flops
    assert seconds > (rows * depth + depth * outputs + rows * outputs) * 2 / device.bandwidth


@given(devices, sizes, sizes, sizes, st.integers(1, 1000))
def test_more_rows_never_take_less(
    name: str, rows: int, outputs: int, depth: int, more: int
) -> None:
    device = DEVICES[name]
    few = gemm_seconds(device, rows, outputs, depth)
    assert gemm_seconds(device, rows + more, outputs, depth) >= few


def test_one_token_more_than_whole_tiles_costs_visibly_more() -> None:
    assert up(257) > 1.25 * up(256)
    assert up(256) == pytest.approx(up(250), rel=0.01)


def test_steps_grow_relatively_smaller() -> None:
    assert up(257) / up(256) > up(1025) / up(1024) > 1


def test_few_rows_wait_for_memory_and_many_for_the_processors() -> None:
    assert up(32) < 1.1 * up(1)
    assert up(8192) == pytest.approx(2 * up(4096), rel=0.05)


def test_weights_of_half_the_size_are_read_sooner() -> None:
    launch = A100.achieved.gemm_launch
    whole, half = gemm_seconds(A100, 1, *UP, 2) - launch, gemm_seconds(A100, 1, *UP, 1) - launch
    assert whole / 2 <= half < 0.8 * whole


def test_a_small_result_is_split_to_occupy_all_processors() -> None:
    # 4096 columns are 32 tiles of 128: without splitting, 76 of 108 processors would have nothing.
    one_wave = 2 * 108 * 128 * 128 * 14336
    assert padded_flops(108, 128, 4096, 14336) < 0.5 * one_wave


@given(st.integers(1, 300), sizes, sizes, sizes)
def test_padding_only_adds(processors: int, rows: int, outputs: int, depth: int) -> None:
    assert padded_flops(processors, rows, outputs, depth) >= 2 * rows * outputs * depth


def test_bytes_are_those_of_weights_and_activations() -> None:
    assert moved_bytes(3, 5, 7, bytes_per_weight=1) == 5 * 7 + 2 * 3 * (5 + 7)


@given(st.floats(0, 1), st.floats(0, 1))
def test_overlap_lies_between_the_longer_and_the_sum(reading: float, computing: float) -> None:
    both = overlapped(reading, computing)
    assert max(reading, computing) * 0.999 <= both <= (reading + computing) * 1.001
