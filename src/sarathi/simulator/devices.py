"""GPUs and the links between them as data: published peaks, and what is achieved of them.

Peaks are the makers' data sheets: dense bfloat16 matrix products with float32 sums, and memory
bandwidth. Memory is what a program sees, a little less than what is sold. Prices are those of
Vidur's configuration explorer, in dollars an hour for one GPU, and None where it has none.

What is achieved on A100, A40 and H100 and on their networks is fitted to the profiles published
with Vidur (Agrawal et al., MLSys 2024) by `sarathi calibrate`; the errors of each fit are in
docs/cost-model.md. Attention was profiled on the A100 alone; what was not measured on a device is
borrowed, as its source says, and its error is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

GIGA, TERA, GIB = 1e9, 1e12, 2**30


@dataclass(frozen=True)
class Link:
    """What a message costs: a latency, then bytes at a bandwidth.

    A connection over sockets takes the first bytes of a message at the speed of its buffers, and
    those beyond at the speed of the transport.
    """

    latency: float  # seconds
    bandwidth: float  # bytes per second
    buffer: float = inf  # bytes that go at `bandwidth`
    beyond: float = inf  # bytes per second of those after

    def seconds(self, size: float, streams: int = 1, together: float = inf) -> float:
        """Return the time of a message.

        Args:
            size: bytes of one message.
            streams: messages of this size that are in flight at once.
            together: bytes per second of all streams; no limit where they share nothing.
        """
        share = together / streams
        first = min(size, self.buffer)
        rest = size - first
        spent = self.latency + first / min(self.bandwidth, share)
        return spent + rest / min(self.beyond, share) if rest > 0 else spent


@dataclass(frozen=True)
class NodeLinks:
    """GPUs of one machine, and the network between machines of its kind.

    The bandwidth of a ring is what each GPU sends: an all-reduce of `size` bytes among `n` of them
    moves 2 (n - 1) / n times as much over the slowest link of the ring.
    """

    gpus: int
    rings: tuple[tuple[int, Link], ...]  # all-reduce among up to so many GPUs of a node; ascending
    between: Link  # all-reduce among GPUs of several nodes
    peer: Link  # from one GPU to another of the node
    network: Link  # from a GPU to one of another node
    port: float  # bytes per second of a node's network in all
    source: str

    def ring(self, workers: int, crosses: bool) -> Link:
        """Return the link that an all-reduce among `workers` waits for."""
        if crosses or workers > self.gpus:
            return self.between
        return next(link for most, link in self.rings if workers <= most)


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
    price: float | None  # dollars an hour


_NVLINK_PEER = Link(8.74e-6, 363 * GIGA)
_SOCKETS = Link(13.8e-6, 8.18 * GIGA, 2.54e6, 2.01 * GIGA)
_MESH = 0.68 * 64 * GIGA


def _rings(*groups: tuple[int, float, float]) -> tuple[tuple[int, Link], ...]:
    """Return links by the size of a group of GPUs: its latency, and gigabytes per second."""
    return tuple((most, Link(latency, speed * GIGA)) for most, latency, speed in groups)


_A100_DGX = NodeLinks(
    gpus=8,
    rings=_rings((2, 45.0e-6, 172), (4, 41.4e-6, 164), (8, 37.3e-6, 133)),
    between=Link(102e-6, 7.37 * GIGA),
    peer=_NVLINK_PEER,
    network=_SOCKETS,
    port=100 * GIGA,
    source="fitted to Vidur's profiles a100_dgx; send and receive borrowed from "
    "a100_pairwise_nvlink",
)
_A100_PAIRWISE = replace(
    _A100_DGX,
    gpus=4,
    rings=_rings((2, 45.0e-6, 172), (4, 58.2e-6, 23.6)),
    # No all-reduce between such nodes was measured: the latency of the others, the bandwidth of a
    # long message.
    between=Link(102e-6, 2.01 * GIGA),
    port=12.5 * GIGA,
    source="fitted to Vidur's profiles a100_pairwise_nvlink, pairs to those of the DGX; 100 Gb/s "
    "Ethernet between nodes",
)
_A40_NODE = NodeLinks(
    gpus=8,
    rings=_rings((2, 10.6e-6, 4.72), (4, 18.5e-6, 5.29), (8, 17.9e-6, 1.68)),
    between=Link(102e-6, 2.54 * GIGA),
    peer=Link(2.65e-6, 4.23 * GIGA),
    network=Link(59.9e-6, 2.54 * GIGA),
    port=12.5 * GIGA,
    source="fitted to Vidur's profiles a40; none of it reaches the speed of NVLink",
)
_PCIE_NODE = replace(
    _A40_NODE, source="borrowed from the A40's node, whose GPUs communicate over PCIe 4.0, too"
)
_H100_DGX = replace(
    _A100_DGX,
    rings=_rings((2, 34.4e-6, 359), (4, 38.0e-6, 429), (8, 28.9e-6, 329)),
    between=Link(102e-6, 14.7 * GIGA),
    port=400 * GIGA,
    source="fitted to Vidur's profiles h100_dgx; between nodes twice the A100's (400 Gb/s a GPU "
    "instead of 200), send and receive borrowed from a100_pairwise_nvlink",
)
_B200_NODE = replace(
    _H100_DGX,
    rings=tuple((most, Link(link.latency, 2 * link.bandwidth)) for most, link in _H100_DGX.rings),
    peer=Link(_NVLINK_PEER.latency, 2 * _NVLINK_PEER.bandwidth),
    source="the H100's with twice the bandwidth inside the node (NVLink 5: 1.8 TB/s a GPU)",
)
_MI300X_NODE = replace(
    _H100_DGX,
    # A mesh of links of 64 GB/s each way: the more GPUs take part, the more links carry.
    rings=tuple((n, Link(28.9e-6, _MESH * (n - 1))) for n in (2, 4, 8)),
    peer=Link(_NVLINK_PEER.latency, _MESH),
    source="published links with the share of them that AMD asks of rccl-tests (304 GB/s among "
    "8); latencies borrowed from the H100",
)

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


def _fitted(
    compute: float, bandwidth: float, launch: float, elementwise: float, elementwise_launch: float
) -> Achieved:
    """Return what matrix products and elementwise kernels achieve, beside the A100's attention."""
    return replace(
        _A100,
        gemm_compute=compute,
        gemm_bandwidth=bandwidth,
        gemm_launch=launch,
        elementwise_bandwidth=elementwise,
        elementwise_launch=elementwise_launch,
        source="fitted to Vidur's profile of LLaMA2-70B at TP 1 and 4; attention borrowed from "
        "A100",
    )


_A40 = _fitted(0.818, 0.790, 3.47e-6, 0.857, 1.54e-6)
_H100 = _fitted(0.742, 0.958, 7.06e-6, 0.586, 1.95e-6)
_AS_A40 = replace(_A40, source="borrowed from the A40")
_AS_H100 = replace(_H100, source="borrowed from the H100")


def _gpu(
    name: str, title: str, teraflops: float, terabytes: float, gib: float, processors: int,
    achieved: Achieved, node: NodeLinks, price: float | None = None,
) -> Device:  # fmt: skip
    peak, bandwidth, memory = teraflops * TERA, terabytes * TERA, int(gib * GIB)
    return Device(name, title, peak, bandwidth, memory, processors, achieved, node, price)


# The profiles do not say on which A100 they were made; the PCIe card's bandwidth is 5 % less.
_PCIE_TITLE = "A100-80G PCIe, NVLink in pairs, 4 a node"
_DEVICES = (
    _gpu("a100", "A100-80G SXM", 312, 2.039, 79.15, 108, _A100, _A100_DGX, 2.21),
    _gpu("a100-pairwise", _PCIE_TITLE, 312, 1.935, 79.15, 108, _A100, _A100_PAIRWISE, 2.21),
    _gpu("a40", "A40-48G", 149.7, 0.696, 44.4, 84, _A40, _A40_NODE, 1.28),
    _gpu("h100", "H100-80G SXM", 989.4, 3.35, 79.1, 132, _H100, _H100_DGX, 4.25),
    _gpu("h200", "H200-141G SXM", 989.4, 4.8, 139.8, 132, _AS_H100, _H100_DGX),
    _gpu("l4", "L4-24G", 121, 0.3, 22.0, 58, _AS_A40, _PCIE_NODE),
    _gpu("l40s", "L40S-48G", 362, 0.864, 44.4, 142, _AS_A40, _PCIE_NODE),
    _gpu("rtx4090", "GeForce RTX 4090", 165.2, 1.008, 23.5, 128, _AS_A40, _PCIE_NODE),
    _gpu("b200", "B200-180G SXM", 2250, 8, 178, 148, _AS_H100, _B200_NODE),
    _gpu("mi300x", "Instinct MI300X", 1307.4, 5.3, 191.9, 304, _AS_H100, _MI300X_NODE),
)
DEVICES = {device.name: device for device in _DEVICES}
