"""The cost of an iteration on GPUs: kernels, messages, their terms, and the sum of each stage.

Attention: the kernels of the profiles are FlashAttention's for a paged cache. A block of 64 query
rows of one head runs along the keys, and a query alone along its whole cache.

Elementwise kernels (norms, positions, activations, sums) stream their tokens through memory some
number of times. Two numbers of a device describe them all: the bandwidth they reach, and the time
of a kernel that does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import NamedTuple

from sarathi.simulator.cost_model import BatchShape, EngineOverhead
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
    """Return the keys in a window that rows of a chunk see on average: before it, and in it."""
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
    reading = tokens * width * ELEMENT / (device.bandwidth * achieved.elementwise_bandwidth)
    return kernels * achieved.elementwise_launch + reading


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


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one stage for one iteration, by what they are spent on."""

    linear: float
    attention_prefill: float
    attention_decode: float
    elementwise: float
    embedding: float  # of the first stage
    head: float  # of the last
    all_reduce: float
    send_recv: float  # to the next stage; nothing after the last

    @property
    def compute(self) -> float:
        """All but the message to the next stage, which leaves the stage free."""
        return float(sum(vars(self).values())) - self.send_recv


class GpuCostModel:
    """The cost of iterations of one deployment under one engine.

    What depends on the number of tokens alone is computed once for each number; an iteration then
    takes some look-ups and multiplications.
    """

    def __init__(self, deployment: Deployment, overhead: EngineOverhead) -> None:
        self.deployment = deployment
        self.engine_overhead = overhead
        model, device = deployment.model, deployment.device
        self._layers = deployment.stage_layers
        self._decode = decode_attention(
            device, deployment.kv_heads, model.config.head_dim, deployment.bytes_per_kv
        )
        self._windowed = model.windowed_layers / model.config.num_layers  # share of them
        self._by_tokens: dict[int, tuple[float, ...]] = {}
        self._by_samples: dict[int, float] = {0: 0.0}
        self._by_length: dict[int, Affine] = {}

    @property
    def num_stages(self) -> int:
        return self.deployment.pp

    def stages(self, shape: BatchShape) -> tuple[float, ...]:
        """Return the seconds that each stage computes, all-reduces within it included."""
        _, _, _, samples, tokens = shape
        fixed = self._by_tokens.get(tokens) or self._fixed(tokens)
        head = self._by_samples.get(samples)
        if head is None:
            head = self._head(samples)
        layer = self._attention(shape)
        if len(fixed) == 1:
            return (fixed[0] + self._layers[0] * layer + head,)
        times = [t + n * layer for t, n in zip(fixed, self._layers, strict=True)]
        times[-1] += head
        return tuple(times)

    def hop(self, shape: BatchShape) -> float:
        """Return the seconds from one stage to the next."""
        return hop_seconds(self.deployment, shape.tokens)

    def overhead(self, shape: BatchShape) -> float:
        """Return the seconds in which the engine prepares and finishes the iteration."""
        decodes, _, chunks, _, tokens = shape
        return self.engine_overhead.seconds(
            decodes + len(chunks), tokens - decodes, self.deployment.workers
        )

    def components(self, shape: BatchShape) -> tuple[StageTimes, ...]:
        """Return the terms of `stages` and `hop`, for each stage."""
        tokens, last = shape.tokens, self.num_stages - 1
        if tokens == 0:
            return (StageTimes(0, 0, 0, 0, 0, 0, 0, 0),) * self.num_stages
        linear, elementwise, reducing = self._layer_terms(tokens)
        decoding, prompting = self._attention_terms(shape)
        embedding = self._embedding(tokens)
        return tuple(
            StageTimes(
                linear=layers * linear,
                attention_prefill=layers * prompting,
                attention_decode=layers * decoding,
                elementwise=layers * elementwise,
                embedding=embedding[0] if stage == 0 else 0.0,
                head=self._head(shape.samples) if stage == last else 0.0,
                all_reduce=layers * reducing + (embedding[1] if stage == 0 else 0.0),
                send_recv=self.hop(shape) if stage < last else 0.0,
            )
            for stage, layers in enumerate(self._layers)
        )

    def _fixed(self, tokens: int) -> tuple[float, ...]:
        """Return what each stage takes for so many tokens of any requests."""
        times = [0.0] * self.num_stages
        if tokens:
            layer = sum(self._layer_terms(tokens))
            times = [layers * layer for layers in self._layers]
            times[0] += sum(self._embedding(tokens))
        self._by_tokens[tokens] = tuple(times)
        return self._by_tokens[tokens]

    def _layer_terms(self, tokens: int) -> tuple[float, float, float]:
        """Return the times of one layer's matrix products, elementwise kernels and all-reduces."""
        deployment = self.deployment
        linear = sum(
            gemm_seconds(deployment.device, tokens, *shape, deployment.bytes_per_weight)
            for shape in layer_gemms(deployment)
        )
        reducing = all_reduces(deployment) * all_reduce_seconds(deployment, tokens)
        return linear, layer_seconds(deployment, tokens), reducing

    def _embedding(self, tokens: int) -> tuple[float, float]:
        """Return the times of looking up rows of the table, and of their all-reduce."""
        deployment = self.deployment
        width = EMBED * deployment.config.hidden_size
        reducing = all_reduce_seconds(deployment, tokens)
        return stream_seconds(deployment.device, tokens, width), reducing

    def _head(self, samples: int) -> float:
        """Return the time of the last norm and the head, for rows that sample a token."""
        if samples not in self._by_samples:
            deployment = self.deployment
            device, hidden = deployment.device, deployment.config.hidden_size
            norm = stream_seconds(device, samples, NORM * hidden)
            self._by_samples[samples] = norm + gemm_seconds(
                device, samples, deployment.vocab, hidden, deployment.bytes_per_weight
            )
        return self._by_samples[samples]

    def _attention(self, shape: BatchShape) -> float:
        """Return the time of attention in one layer, the mean of layers with and without window."""
        if self._windowed:
            return sum(self._attention_terms(shape))
        decodes, context, chunks, _, _ = shape
        fixed, each = self._decode
        seconds = fixed + each * context if decodes else 0.0
        by_length = self._by_length
        for start, length in chunks:
            terms = by_length.get(length) or self._prefill(length)
            seconds += terms[0] + terms[1] * start
        return seconds

    def _attention_terms(self, shape: BatchShape) -> tuple[float, float]:
        """Return the times of attention of decodes and of prompts, in one layer on average."""
        decodes, context, chunks, _, _ = shape
        model, share = self.deployment.model, self._windowed
        # Of decodes, the sum is known: none is assumed to be shorter than the window while the mean
        # is longer.
        seen = (1 - share) * context + share * min(context, decodes * model.window)
        decoding = self._decode.fixed + self._decode.each * seen if decodes else 0.0
        prompting = 0.0
        for start, length in chunks:
            fixed, each = self._prefill(length)
            prompting += fixed + each * start
            if share:
                before, own = mean_keys(model.window, start, length)
                own_factor = self.deployment.device.achieved.prefill_new
                prompting -= share * each * (start - before + own_factor * (length / 2 - own))
        return decoding, prompting

    def _prefill(self, length: int) -> Affine:
        if length not in self._by_length:
            deployment = self.deployment
            self._by_length[length] = prefill_attention(
                deployment.device, deployment.heads, deployment.config.head_dim, length
            )
        return self._by_length[length]
