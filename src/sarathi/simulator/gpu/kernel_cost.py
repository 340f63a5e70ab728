"""How long kernels take on one GPU (matrix products, attention, everything else), and messages.

Attention: the kernels of the profiles are FlashAttention's for a paged cache. A block of 64 query
rows of one head runs along the keys, and a query alone along its whole cache.

Elementwise kernels (norms, positions, activations, sums) stream their tokens through memory some
number of times. Two numbers of a device describe them all: the bandwidth they reach, and the time
of a kernel that does nothing.
"""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import Device, Link

ELEMENT = 2  # bytes of an activation

# Rows and columns of the result that a multiprocessor computes at a time, and how fast it does so
# compared with the largest. Kernels come in few sizes: the steps are theirs.
TILES = ((256, 128, 1.0), (128, 128, 1.0), (64, 128, 0.85), (128, 64, 0.85), (64, 64, 0.7))
SPLITS = (1, 2, 4)  # of the depth, so that a small result occupies all multiprocessors
LEAST_DEPTH = 512  # of a split
START = 64  # steps of depth that the beginning and end of a tile amount to
OVERLAP = 3  # of reading and computing: 1 is one after the other, without limit the longer alone

ROWS = 64  # of a block of attention

NORM = 3  # passes: read twice, for the sum and for the result, and written
ROPE = 2
STORE = 2  # keys and values into the cache
ADD = 3
EMBED = 6  # a table in parts: rows gathered, then those masked that another worker has


# Matrix products.


def layer_gemms(deployment: Deployment) -> tuple[tuple[int, int], ...]:
    """Return outputs and depth of a layer's matrix products on one worker.

    They are: queries, keys and values; the output of attention; up, and down again.
    """
    model = deployment.config
    queries, keys = deployment.heads * model.head_dim, deployment.kv_heads * model.head_dim
    inner = model.intermediate_size // deployment.tp
    return (
        (queries + 2 * keys, model.hidden_size),
        (model.hidden_size, queries),
        ((2 if model.gated_mlp else 1) * inner, model.hidden_size),
        (model.hidden_size, inner),
    )


def gemm_seconds(
    device: Device, rows: int, outputs: int, depth: int, bytes_per_weight: float = 2
) -> float:
    """Return the time of activations of `rows` x `depth` times weights of `depth` x `outputs`.

    A roofline with two roofs. Computing takes whole waves of tiles, one on each multiprocessor, of
    the size with which it takes least: hence the step beyond a multiple of 128 rows. Reading takes
    every byte once. The two overlap, though not entirely.
    """
    achieved = device.achieved
    computing = padded_flops(device.processors, rows, outputs, depth) / (
        device.peak_flops * achieved.gemm_compute
    )
    reading = moved_bytes(rows, outputs, depth, bytes_per_weight) / (
        device.bandwidth * achieved.gemm_bandwidth
    )
    return achieved.gemm_launch + overlapped(reading, computing)


def overlapped(reading: float, computing: float) -> float:
    """Return a time between the longer of the two and their sum."""
    longer, shorter = max(reading, computing), min(reading, computing)
    if longer == 0:
        return 0.0
    return longer * float((1 + (shorter / longer) ** OVERLAP) ** (1 / OVERLAP))


def moved_bytes(rows: int, outputs: int, depth: int, bytes_per_weight: float = 2) -> float:
    """Return the bytes that a matrix product reads and writes."""
    return outputs * depth * bytes_per_weight + rows * (outputs + depth) * ELEMENT


def padded_flops(processors: int, rows: int, outputs: int, depth: int) -> float:
    """Return what all multiprocessors compute until the last has finished, idle ones included."""
    least = inf
    for height, width, speed in TILES:
        tiles = ceil(rows / height) * ceil(outputs / width)
        for split in SPLITS:
            if split > 1 and (tiles >= 2 * processors or depth < split * LEAST_DEPTH):
                break
            waves = ceil(tiles * split / processors)
            work = waves * height * width * (depth / split + START) / speed
            least = min(least, work)
    return 2 * processors * least


# Attention.


class Affine(NamedTuple):
    """Seconds as `fixed + each * amount`."""

    fixed: float
    each: float


def prefill_attention(device: Device, heads: int, head_dim: int, rows: int) -> Affine:
    """Return the time of a chunk of `rows` tokens by the number of tokens before it.

    The tokens of the chunk itself cost more than those of the cache: a block masks them, and the
    profiled kernel writes them to the cache, too. They are counted as they are needed, half of them
    by each row on average. One more key for all rows takes two products of `head_dim` for each row
    and head.
    """
    achieved = device.achieved
    flops = 4 * heads * head_dim * (ceil(rows / ROWS) * ROWS)
    each = flops / (device.peak_flops * achieved.prefill_compute)
    own = achieved.prefill_new * rows / 2
    return Affine(achieved.prefill_launch + each * (own + achieved.prefill_keys), each)


def decode_attention(device: Device, kv_heads: int, head_dim: int, bytes_per_kv: float) -> Affine:
    """Return the time of a batch of decodes by their tokens in the cache, all together.

    Every key and value is read once; otherwise a decode waits for memory.
    """
    size = 2 * kv_heads * head_dim * bytes_per_kv
    achieved = device.achieved
    each = size / (device.bandwidth * achieved.decode_bandwidth)
    return Affine(achieved.decode_launch, each)


def mean_keys(window: int, start: int, length: int) -> tuple[float, float]:
    """Return the keys in a sliding window that each row of a chunk sees, on average.

    Returns:
        Those before the chunk, and those of the chunk itself.
    """
    own = _mean_capped(0, length, window)
    return _mean_capped(start, length, window) - own, own


def _mean_capped(start: int, length: int, cap: int) -> float:
    """Return the mean over x from `start` to `start + length` of the lesser of x and `cap`."""
    end = start + length
    if end <= cap:
        return start + length / 2
    if start >= cap:
        return float(cap)
    return ((cap - start) * (start + cap) / 2 + (end - cap) * cap) / length


# Everything else.


def stream_seconds(device: Device, tokens: int, width: float, kernels: int = 1) -> float:
    """Return the time of kernels that move `width` elements a token between them."""
    achieved = device.achieved
    moved = tokens * width * ELEMENT
    return kernels * achieved.elementwise_launch + moved / (
        device.bandwidth * achieved.elementwise_bandwidth
    )


def layer_seconds(deployment: Deployment, tokens: int, stores: bool = True) -> float:
    """Return the time of one layer on one worker; norms and sums are of whole rows on each.

    Args:
        stores: whether keys and values go to the cache, which profiles of kernels leave out.
    """
    device = deployment.device
    width, kernels = streaming(deployment, stores)
    sums, passes = adding(deployment)
    moved = tokens * passes * ELEMENT
    return (
        stream_seconds(device, tokens, width, kernels)
        + sums * device.achieved.elementwise_launch
        + moved / (device.bandwidth * device.achieved.gemm_bandwidth)
    )


def streaming(deployment: Deployment, stores: bool = True) -> tuple[float, int]:
    """Return the elements moved for each token, and the kernels, of all in a layer but sums."""
    model, norms = deployment.config, deployment.model.norms
    queries = deployment.heads * model.head_dim
    keys = deployment.kv_heads * model.head_dim
    width: float = norms * NORM * model.hidden_size + ROPE * (queries + keys)
    # What goes into an activation is read, and what comes out written.
    width += (3 if model.gated_mlp else 2) * (model.intermediate_size // deployment.tp)
    kernels = norms + 2
    if stores:
        width += STORE * 2 * keys
        kernels += 1
    if model.qk_norm:
        width += NORM * (queries + keys)
        kernels += 2
    return width, kernels


def adding(deployment: Deployment) -> tuple[int, float]:
    """Return kernels and elements moved for each token by sums with the input of a block.

    They are simple enough to run as fast as memory does. A parallel block adds three rows at once.
    """
    width = deployment.config.hidden_size
    return (1, (ADD + 1) * width) if deployment.config.parallel else (2, 2 * ADD * width)


# Messages between GPUs.


def ring_seconds(link: Link, workers: int, size: float) -> float:
    """Return the time of an all-reduce: 2 (n - 1) / n times `size` bytes over each link."""
    return link.seconds(2 * (workers - 1) / workers * size)


def all_reduce_seconds(deployment: Deployment, tokens: int) -> float:
    """Return the time of one all-reduce of the rows of `tokens`; 0 with one worker a stage."""
    if deployment.tp == 1:
        return 0.0
    link = deployment.device.node.ring(deployment.tp, deployment.tp_crosses)
    return ring_seconds(link, deployment.tp, tokens * deployment.config.hidden_size * ELEMENT)


def all_reduces(deployment: Deployment) -> int:
    """Return how many a layer has: after attention and after the MLP, or one after both."""
    return 1 if deployment.config.parallel else 2


def hop_seconds(deployment: Deployment, tokens: int) -> float:
    """Return the time from one stage to the next, the mean of all boundaries; 0 with one stage.

    Every worker sends all rows to its counterpart, and those of a node share its port.
    """
    if deployment.pp == 1 or tokens == 0:
        return 0.0
    node = deployment.device.node
    size = tokens * deployment.config.hidden_size * ELEMENT
    streams = min(deployment.tp, node.gpus)
    outside = node.network.seconds(size, streams, node.port)
    inside = node.peer.seconds(size)
    boundaries, crossing = deployment.pp - 1, deployment.crossings
    return (crossing * outside + (boundaries - crossing) * inside) / boundaries
