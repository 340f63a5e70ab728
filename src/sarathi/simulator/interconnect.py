"""How GPUs are connected: inside a node, and one node with the next.

Source of what is `measured`: the network profiles published with Vidur (Agrawal et al., MLSys
2024), fitted by `sarathi calibrate`; the errors of each fit are in docs/cost-model.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

GIGA = 1e9


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

    name: str
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


_MEASURED = "fitted to Vidur's profiles"
_SOCKETS = Link(13.8e-6, 8.18 * GIGA, 2.54e6, 2.01 * GIGA)
_A40_SOCKETS = Link(59.9e-6, 2.54 * GIGA)
_NVLINK_PAIR = Link(45.0e-6, 172 * GIGA)
_NVLINK_PEER = Link(8.74e-6, 363 * GIGA)

A100_DGX = NodeLinks(
    "a100-dgx",
    8,
    ((2, _NVLINK_PAIR), (4, Link(41.4e-6, 164 * GIGA)), (8, Link(37.3e-6, 133 * GIGA))),
    Link(102e-6, 7.37 * GIGA),
    _NVLINK_PEER,
    _SOCKETS,
    100 * GIGA,
    f"{_MEASURED} a100_dgx; send and receive borrowed from a100_pairwise_nvlink",
)
A100_PAIRWISE = NodeLinks(
    "a100-pairwise",
    4,
    ((2, _NVLINK_PAIR), (4, Link(58.2e-6, 23.6 * GIGA))),
    # No all-reduce between such nodes was measured: the latency of the others, the bandwidth of a
    # long message.
    Link(102e-6, 2.01 * GIGA),
    _NVLINK_PEER,
    _SOCKETS,
    12.5 * GIGA,
    f"{_MEASURED} a100_pairwise_nvlink, pairs to those of the DGX; 100 Gb/s Ethernet between nodes",
)
A40_NODE = NodeLinks(
    "a40-pairwise",
    8,
    (
        (2, Link(10.6e-6, 4.72 * GIGA)),
        (4, Link(18.5e-6, 5.29 * GIGA)),
        (8, Link(17.9e-6, 1.68 * GIGA)),
    ),
    Link(102e-6, 2.54 * GIGA),
    Link(2.65e-6, 4.23 * GIGA),
    _A40_SOCKETS,
    12.5 * GIGA,
    f"{_MEASURED} a40; none of it reaches the speed of NVLink",
)
H100_DGX = NodeLinks(
    "h100-dgx",
    8,
    (
        (2, Link(34.4e-6, 359 * GIGA)),
        (4, Link(38.0e-6, 429 * GIGA)),
        (8, Link(28.9e-6, 329 * GIGA)),
    ),
    Link(102e-6, 14.7 * GIGA),
    _NVLINK_PEER,
    _SOCKETS,
    400 * GIGA,
    f"{_MEASURED} h100_dgx; between nodes twice the A100's (400 Gb/s a GPU instead of 200), send "
    "and receive borrowed from a100_pairwise_nvlink",
)
PCIE_NODE = NodeLinks(
    "pcie",
    8,
    A40_NODE.rings,
    A40_NODE.between,
    A40_NODE.peer,
    _A40_SOCKETS,
    12.5 * GIGA,
    "borrowed from the A40's node, whose GPUs communicate over PCIe 4.0, too",
)
B200_NODE = NodeLinks(
    "b200-nvswitch",
    8,
    tuple((most, Link(link.latency, 2 * link.bandwidth)) for most, link in H100_DGX.rings),
    H100_DGX.between,
    Link(_NVLINK_PEER.latency, 2 * _NVLINK_PEER.bandwidth),
    _SOCKETS,
    400 * GIGA,
    "the H100's with twice the bandwidth inside the node (NVLink 5: 1.8 TB/s a GPU)",
)
MI300X_NODE = NodeLinks(
    "mi300x-mesh",
    8,
    # A mesh of links of 64 GB/s each way: the more GPUs take part, the more links carry.
    tuple((n, Link(28.9e-6, 0.68 * 64 * GIGA * (n - 1))) for n in (2, 4, 8)),
    H100_DGX.between,
    Link(_NVLINK_PEER.latency, 0.68 * 64 * GIGA),
    _SOCKETS,
    400 * GIGA,
    "published links with the share of them that AMD asks of rccl-tests (304 GB/s among 8); "
    "latencies borrowed from the H100",
)
