"""What an iteration costs on GPUs: the terms, and their sum for each stage."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.simulator.cost_model import BatchShape
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.engine_overhead import EngineOverhead
from sarathi.simulator.gpu import attention_cost as attention
from sarathi.simulator.gpu.communication_cost import all_reduce_seconds, all_reduces, hop_seconds
from sarathi.simulator.gpu.elementwise_cost import embedding_seconds, layer_seconds, norm_seconds
from sarathi.simulator.gpu.gemm_cost import gemm_seconds
from sarathi.simulator.model_shape import ModelShape


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
        return (
            self.linear
            + self.attention_prefill
            + self.attention_decode
            + self.elementwise
            + self.embedding
            + self.head
            + self.all_reduce
        )


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
        self._decode = attention.decode(
            device, deployment.kv_heads, model.head_dim, deployment.bytes_per_kv
        )
        self._windowed = model.windowed_layers / model.layers if model.window else 0.0
        self._by_tokens: dict[int, tuple[float, ...]] = {}
        self._by_samples: dict[int, float] = {0: 0.0}
        self._by_length: dict[int, attention.Affine] = {}

    @property
    def num_stages(self) -> int:
        return self.deployment.pp

    def stages(self, shape: BatchShape) -> tuple[float, ...]:
        """Seconds that each stage computes, all-reduces within it included."""
        _, _, _, samples, tokens = shape
        fixed = self._by_tokens.get(tokens)
        if fixed is None:
            fixed = self._fixed(tokens)
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
        """Seconds from one stage to the next."""
        return hop_seconds(self.deployment, shape.tokens)

    def overhead(self, shape: BatchShape) -> float:
        """Seconds in which the engine prepares and finishes the iteration."""
        decodes, _, chunks, _, tokens = shape
        return self.engine_overhead.seconds(
            decodes + len(chunks), tokens - decodes, self.deployment.workers
        )

    def components(self, shape: BatchShape) -> tuple[StageTimes, ...]:
        """The terms of `stages` and `hop`, for each stage."""
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
        """What each stage takes for so many tokens, whosever they are."""
        if tokens == 0:
            times = [0.0] * self.num_stages
        else:
            layer = sum(self._layer_terms(tokens))
            times = [layers * layer for layers in self._layers]
            times[0] += sum(self._embedding(tokens))
        self._by_tokens[tokens] = tuple(times)
        return self._by_tokens[tokens]

    def _layer_terms(self, tokens: int) -> tuple[float, float, float]:
        """One layer's matrix products, elementwise kernels and all-reduces."""
        deployment = self.deployment
        shapes = layer_gemms(deployment.model, deployment.heads, deployment.kv_heads, deployment.tp)
        linear = sum(
            gemm_seconds(deployment.device, tokens, *shape, deployment.bytes_per_weight)
            for shape in shapes
        )
        reducing = all_reduces(deployment) * all_reduce_seconds(deployment, tokens)
        return linear, layer_seconds(deployment, tokens), reducing

    def _embedding(self, tokens: int) -> tuple[float, float]:
        """Looking up rows of the table, and gathering them from all workers."""
        deployment = self.deployment
        return embedding_seconds(deployment, tokens), all_reduce_seconds(deployment, tokens)

    def _head(self, samples: int) -> float:
        """The last norm and the product with the vocabulary, for rows that give a token."""
        known = self._by_samples.get(samples)
        if known is not None:
            return known
        deployment = self.deployment
        hidden = deployment.model.hidden
        seconds = norm_seconds(deployment.device, hidden, samples) + gemm_seconds(
            deployment.device, samples, deployment.vocab, hidden, deployment.bytes_per_weight
        )
        self._by_samples[samples] = seconds
        return seconds

    def _attention(self, shape: BatchShape) -> float:
        """Both kinds of attention in one layer, averaged over layers with and without a window."""
        if self._windowed:
            return sum(self._attention_terms(shape))
        decodes, context, chunks, _, _ = shape
        fixed, each = self._decode
        seconds = fixed + each * context if decodes else 0.0
        by_length = self._by_length
        for start, length in chunks:
            terms = by_length.get(length)
            if terms is None:
                terms = self._prefill(length)
            seconds += terms[0] + terms[1] * start
        return seconds

    def _attention_terms(self, shape: BatchShape) -> tuple[float, float]:
        """That of decodes and that of prompts, in one layer on average."""
        decodes, context, chunks, _, _ = shape
        model, share = self.deployment.model, self._windowed
        # Decodes are told of together: none is taken to be shorter than the window while the mean
        # is longer.
        seen = (1 - share) * context + share * min(context, decodes * model.window)
        decoding = self._decode.fixed + self._decode.each * seen if decodes else 0.0
        prompting = 0.0
        for start, length in chunks:
            fixed, each = self._prefill(length)
            prompting += fixed + each * start
            if share:
                before, own = model.mean_keys(start, length)
                dearer = self.deployment.device.achieved.prefill_new
                prompting -= share * each * (start - before + dearer * (length / 2 - own))
        return decoding, prompting

    def _prefill(self, length: int) -> attention.Affine:
        known = self._by_length.get(length)
        if known is None:
            deployment = self.deployment
            known = attention.prefill(
                deployment.device, deployment.heads, deployment.model.head_dim, length
            )
            self._by_length[length] = known
        return known


def layer_gemms(
    model: ModelShape, heads: int, kv_heads: int, tp: int
) -> tuple[tuple[int, int], ...]:
    """Outputs and depth of a layer's matrix products on one worker.

    They are: queries, keys and values; the output of attention; up, and down again.

    Args:
        heads: of the worker, as `kv_heads`.
    """
    queries, keys = heads * model.head_dim, kv_heads * model.head_dim
    inner = model.intermediate // tp
    return (
        (queries + 2 * keys, model.hidden),
        (model.hidden, queries),
        ((2 if model.gated else 1) * inner, model.hidden),
        (model.hidden, inner),
    )
