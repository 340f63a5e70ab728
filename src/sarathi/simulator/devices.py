"""GPUs as data: published peak figures, and the fractions of them that kernels achieve.

Peaks are the makers' data sheets: dense bfloat16 matrix products with float32 sums, and memory
bandwidth. Memory is what a program sees, a little less than what is sold. Prices are those of
Vidur's configuration explorer, in dollars an hour for one GPU, and None where it has none.

The fractions of A100, A40 and H100 are fitted to Vidur's profiles by `sarathi calibrate`. Attention
was profiled on the A100 alone; what was not measured on a device is borrowed, as its source says,
and its error is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sarathi.simulator.interconnect import (
    A40_NODE,
    A100_DGX,
    A100_PAIRWISE,
    B200_NODE,
    H100_DGX,
    MI300X_NODE,
    PCIE_NODE,
    NodeLinks,
)

TERA, GIB = 1e12, 2**30


@dataclass(frozen=True)
class Achieved:
    """Parts of the peak, and seconds that every kernel of a kind takes however little it does."""

    gemm_compute: float  # of peak_flops, in a matrix product's full tiles
    gemm_bandwidth: float  # of bandwidth, reading weights
    gemm_launch: float
    prefill_compute: float  # of peak_flops, prompt attention to tokens in the cache
    prefill_new: float  # how many times as much attention to the chunk's own tokens takes
    prefill_keys: float  # cached tokens that the beginning and end of a block of rows amount to
    prefill_launch: float
    decode_bandwidth: float  # of bandwidth, reading the KV cache
    decode_launch: float
    elementwise_bandwidth: float  # of bandwidth
    elementwise_launch: float
    source: str


@dataclass(frozen=True)
class Device:
    """One GPU, and the node in which it comes."""

    name: str
    title: str
    peak_flops: float  # dense bfloat16 operations a second
    bandwidth: float  # bytes a second
    memory: int  # bytes
    processors: int  # streaming multiprocessors or compute units, each with a tile at a time
    achieved: Achieved
    node: NodeLinks
    price: float | None = None  # dollars an hour


_A100 = Achieved(
    gemm_compute=0.764,
    gemm_bandwidth=0.792,
    gemm_launch=2.60e-6,
    prefill_compute=0.544,
    prefill_new=2.46,
    prefill_keys=831,
    prefill_launch=14.0e-6,
    decode_bandwidth=0.777,
    decode_launch=16.4e-6,
    elementwise_bandwidth=0.504,
    elementwise_launch=1.35e-6,
    source="fitted to Vidur's profiles of Llama-3-8B (matrix products, elementwise) and of "
    "attention with 32 query and 4 key heads",
)
_A40 = replace(
    _A100,
    gemm_compute=0.818,
    gemm_bandwidth=0.790,
    gemm_launch=3.47e-6,
    elementwise_bandwidth=0.857,
    elementwise_launch=1.54e-6,
    source="fitted to Vidur's profile of LLaMA2-70B at TP 1 and 4; attention borrowed from A100",
)
_H100 = replace(
    _A100,
    gemm_compute=0.742,
    gemm_bandwidth=0.958,
    gemm_launch=7.06e-6,
    elementwise_bandwidth=0.586,
    elementwise_launch=1.95e-6,
    source="fitted to Vidur's profile of LLaMA2-70B at TP 1 and 4; attention borrowed from A100",
)


def _like(achieved: Achieved, name: str) -> Achieved:
    return replace(achieved, source=f"borrowed from the {name}")


def _gpu(
    name: str, title: str, teraflops: float, terabytes: float, gib: float, processors: int,
    achieved: Achieved, node: NodeLinks, price: float | None = None,
) -> Device:  # fmt: skip
    peak, bandwidth, memory = teraflops * TERA, terabytes * TERA, int(gib * GIB)
    return Device(name, title, peak, bandwidth, memory, processors, achieved, node, price)


A100 = _gpu("a100", "A100-80G SXM", 312, 2.039, 79.15, 108, _A100, A100_DGX, 2.21)
_AS_A40, _AS_H100 = _like(_A40, "A40"), _like(_H100, "H100")

DEVICES = {
    device.name: device
    for device in (
        A100,
        # The profiles do not say on which of the two they were made; the PCIe card's bandwidth is
        # 5 % less.
        replace(
            A100,
            name="a100-pairwise",
            title="A100-80G PCIe, NVLink in pairs, 4 a node",
            bandwidth=1.935 * TERA,
            node=A100_PAIRWISE,
        ),
        _gpu("a40", "A40-48G", 149.7, 0.696, 44.4, 84, _A40, A40_NODE, 1.28),
        _gpu("h100", "H100-80G SXM", 989.4, 3.35, 79.1, 132, _H100, H100_DGX, 4.25),
        _gpu("h200", "H200-141G SXM", 989.4, 4.8, 139.8, 132, _AS_H100, H100_DGX),
        _gpu("l4", "L4-24G", 121, 0.3, 22.0, 58, _AS_A40, PCIE_NODE),
        _gpu("l40s", "L40S-48G", 362, 0.864, 44.4, 142, _AS_A40, PCIE_NODE),
        _gpu("rtx4090", "GeForce RTX 4090", 165.2, 1.008, 23.5, 128, _AS_A40, PCIE_NODE),
        _gpu("b200", "B200-180G SXM", 2250, 8, 178, 148, _AS_H100, B200_NODE),
        _gpu("mi300x", "Instinct MI300X", 1307.4, 5.3, 191.9, 304, _AS_H100, MI300X_NODE),
    )
}
