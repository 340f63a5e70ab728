"""The cost of an iteration on GPUs: its terms, and their sum for each stage."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.simulator.cost_model import BatchShape
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.engine_overhead import EngineOverhead
from sarathi.simulator.gpu.kernel_cost import (
    EMBED,
    NORM,
    Affine,
    all_reduce_seconds,
    all_reduces,
    decode_attention,
    gemm_seconds,
    hop_seconds,
    layer_gemms,
    layer_seconds,
    mean_keys,
    prefill_attention,
    stream_seconds,
)


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
        if tokens == 0:
            times = [0.0] * self.num_stages
        else:
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
        known = self._by_samples.get(samples)
        if known is not None:
            return known
        deployment = self.deployment
        hidden = deployment.config.hidden_size
        seconds = stream_seconds(deployment.device, samples, NORM * hidden) + gemm_seconds(
            deployment.device, samples, deployment.vocab, hidden, deployment.bytes_per_weight
        )
        self._by_samples[samples] = seconds
        return seconds

    def _attention(self, shape: BatchShape) -> float:
        """Return the time of attention in one layer, the mean of layers with and without window."""
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
        known = self._by_length.get(length)
        if known is None:
            deployment = self.deployment
            known = prefill_attention(
                deployment.device, deployment.heads, deployment.config.head_dim, length
            )
            self._by_length[length] = known
        return known
