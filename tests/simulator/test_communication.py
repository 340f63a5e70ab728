from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.simulator.devices import DEVICES, Link
from sarathi.simulator.gpu_cost import (
    all_reduce_seconds,
    all_reduces,
    hop_seconds,
    ring_seconds,
)
from tests.simulator.deployments import deployment

MIB = 2**20


def test_one_worker_sends_no_messages() -> None:
    assert all_reduce_seconds(deployment(), 2048) == 0
    assert hop_seconds(deployment(), 2048) == 0


def test_a_ring_moves_twice_what_the_others_hold() -> None:
    link = Link(latency=1e-5, bandwidth=1e9)
    assert ring_seconds(link, 4, 1e6) == pytest.approx(1e-5 + 1.5e-3)
    assert ring_seconds(link, 2, 1e6) == pytest.approx(1e-5 + 1e-3)


def test_a_message_beyond_the_buffer_slows_down() -> None:
    link = Link(latency=0, bandwidth=8e9, buffer=2e6, beyond=2e9)
    assert link.seconds(1e6) == pytest.approx(1e6 / 8e9)
    assert link.seconds(4e6) == pytest.approx(2e6 / 8e9 + 2e6 / 2e9)


def test_streams_share_a_port() -> None:
    link = Link(latency=0, bandwidth=8e9)
    assert link.seconds(1e6, streams=4, together=8e9) == pytest.approx(4 * link.seconds(1e6))
    assert link.seconds(1e6, streams=4, together=80e9) == link.seconds(1e6)


@given(st.sampled_from(sorted(DEVICES)), st.integers(1, 100_000))
def test_more_takes_longer_and_never_less_than_the_latency(name: str, tokens: int) -> None:
    two = deployment(device=name, tp=2)
    assert all_reduce_seconds(two, tokens + 1) > all_reduce_seconds(two, tokens)
    assert all_reduce_seconds(two, tokens) > two.device.node.ring(2, False).latency


def test_a_parallel_block_has_one_all_reduce() -> None:
    assert all_reduces(deployment("llama2-70b", tp=2)) == 2
    assert all_reduces(deployment("falcon-180b", tp=2)) == 1


def test_pairs_are_fast_and_four_go_over_pcie() -> None:
    ring = DEVICES["a100-pairwise"].node.ring
    assert ring(2, False).bandwidth > 5 * ring(4, False).bandwidth


def test_across_nodes_is_slower_than_within() -> None:
    across = deployment("falcon-180b", "a100-pairwise", tp=8)
    within = deployment("falcon-180b", "a100-pairwise", tp=4)
    assert across.tp_crosses
    assert not within.tp_crosses
    assert all_reduce_seconds(across, 512) > 5 * all_reduce_seconds(within, 512)
    near = deployment("llama2-70b", "a40", tp=2, pp=2)
    far = deployment("llama2-70b", "a40", tp=2, pp=2, nodes=2)
    assert hop_seconds(far, 512) > hop_seconds(near, 512)


def test_known_measurements() -> None:
    """Of the published profiles, 16 MiB each."""
    for device, tp, measured in (("a100", 2, 139e-6), ("a100-pairwise", 4, 1118e-6)):
        link = DEVICES[device].node.ring(tp, False)
        assert ring_seconds(link, tp, 16 * MIB) == pytest.approx(measured, rel=0.1)
    assert DEVICES["a40"].node.peer.seconds(16 * MIB) == pytest.approx(4116e-6, rel=0.1)
