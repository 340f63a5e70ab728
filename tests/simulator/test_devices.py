from __future__ import annotations

import pytest

from sarathi.simulator.devices import DEVICES, Device, Link

NAMES = ["a100", "a100-pairwise", "a40", "h100", "h200", "l4", "l40s", "rtx4090", "b200", "mi300x"]
every = pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)


def test_all_are_there_by_their_names() -> None:
    assert list(DEVICES) == NAMES
    assert all(device.name == name for name, device in DEVICES.items())


@every
def test_figures_are_plausible(device: Device) -> None:
    assert 1e14 < device.peak_flops < 3e15
    assert 2e11 < device.bandwidth < 1e13
    assert 20 * 2**30 < device.memory < 200 * 2**30
    assert 50 < device.processors < 400
    achieved = device.achieved
    for fraction in (
        achieved.gemm_compute,
        achieved.gemm_bandwidth,
        achieved.prefill_compute,
        achieved.decode_bandwidth,
        achieved.elementwise_bandwidth,
    ):
        assert 0.3 < fraction < 1
    for seconds in (
        achieved.gemm_launch,
        achieved.prefill_launch,
        achieved.decode_launch,
        achieved.elementwise_launch,
    ):
        assert 1e-6 < seconds < 1e-4


@every
def test_all_have_a_source(device: Device) -> None:
    assert device.achieved.source.startswith(("fitted", "borrowed"))
    assert device.node.source


@every
def test_rings_cover_a_node(device: Device) -> None:
    node = device.node
    sizes = [most for most, _ in node.rings]
    assert sizes == sorted(sizes)
    assert sizes[-1] == node.gpus
    for workers in range(2, node.gpus + 1):
        assert isinstance(node.ring(workers, crosses=False), Link)
    assert node.ring(2, crosses=True) == node.ring(2 * node.gpus, False) == node.between


def test_the_papers_nodes() -> None:
    assert DEVICES["a100-pairwise"].node.gpus == 4
    assert DEVICES["a100-pairwise"].node.port == 100e9 / 8
    assert DEVICES["a40"].node.gpus == 8
