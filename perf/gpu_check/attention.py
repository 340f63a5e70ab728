"""c. Attention as the engine computes it, compared with the ceilings and with torch's own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch

from perf.gpu_check.ceilings import Ceilings, find_ceilings
from perf.gpu_check.context import Context
from perf.gpu_check.settings import Settings
from perf.gpu_check.timing import seconds_per_call
from perf.gpu_check.torch_attention import torch_attention
from perf.report import Figure
from sarathi.backends.step import StepPart, join_parts
from sarathi.backends.torch.attention_backend import Attention, LayerCache, choose_attention
from sarathi.backends.torch.step_inputs import step_arrays, upload
from sarathi.backends.torch.torch_devices import DTYPES, default_precision
from sarathi.models.model_config import ModelConfig

DECODE_GOAL = 0.70  # of the copy bandwidth
PREFILL_GOAL = 0.45  # of the matrix product
_BEYOND_L2 = 4  # times the L2 cache that keys and values of a measurement have
_NEEDED = 1.0  # seconds that a case takes at most, once its kernels are compiled


@dataclass(frozen=True)
class Sequences:
    """Equal sequences of a batch."""

    count: int
    past: int  # tokens of each in the KV cache
    new: int = 1  # tokens that are computed

    @property
    def context(self) -> int:
        return self.past + self.new

    def flops(self, shape: ModelConfig) -> float:
        """Operations on keys that are visible: two products of `head_dim` each."""
        visible = self.count * sum(self.past + number + 1 for number in range(self.new))
        return 4.0 * shape.num_heads * shape.head_dim * visible

    def kv_bytes(self, shape: ModelConfig, itemsize: int) -> float:
        """Bytes of keys and values of one layer."""
        return float(self.count * self.context * 2 * shape.num_kv_heads * shape.head_dim * itemsize)


@dataclass(frozen=True)
class Case:
    """A batch whose attention is measured."""

    name: str
    batch: tuple[Sequences, ...]


@dataclass(frozen=True)
class Measured:
    """A case in one layer."""

    name: str
    seconds: float
    torch_seconds: float | None  # of torch's attention on the same work; None: it cannot do it
    bytes_per_second: float
    flops_per_second: float
    first_call: float  # seconds of the first call, compilation included


def run(context: Context) -> None:
    """Measure decodes, prompts and hybrid batches."""
    ceilings = find_ceilings(context)
    bench = AttentionBench(context.settings, context.device)
    found: list[Measured] = []
    for case in cases(context.settings):
        context.deadline.require(_NEEDED, f"attention of {case.name}")
        context.progress(f"measuring attention of {case.name}")
        measured = bench.measure(case)
        found.append(measured)
        context.data("cases", [asdict(one) for one in found])
        for figure in _figures(case, measured, ceilings, context.settings):
            context.figure(figure)
    for figure in _hybrid_figures(found):
        context.figure(figure)
    context.data("kernel", type(bench.attention).__name__)


def cases(settings: Settings) -> list[Case]:
    """Return the batches; the last three are a hybrid batch and its parts."""
    decodes = [
        Case(
            f"decodes, {count} x {settings.decode_context}",
            (Sequences(count, settings.decode_context - 1),),
        )
        for count in settings.decode_batches
    ]
    chunk = Sequences(1, settings.prompt - settings.chunk, settings.chunk)
    part = Sequences(1, settings.hybrid_context, settings.chunk - settings.hybrid_decodes)
    decode = Sequences(settings.hybrid_decodes, settings.hybrid_context - 1)
    return [
        *decodes,
        Case(f"prompt, {settings.prompt}", (Sequences(1, 0, settings.prompt),)),
        Case(f"chunk, {chunk.new} after {chunk.past}", (chunk,)),
        Case(f"chunk, {part.new} after {part.past}", (part,)),
        Case(f"decodes, {decode.count} x {decode.context}", (decode,)),
        Case(
            f"hybrid, {part.new} after {part.past} + {decode.count} x {decode.context}",
            (part, decode),
        ),
    ]


class AttentionBench:
    """Times one layer's attention, over as many layers' caches as exceed the L2 cache."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.shape = settings.model.config
        self.device = device
        self.dtype = DTYPES[default_precision("cuda" if device.type == "cuda" else "cpu")]
        self.config = replace(
            self.shape, num_layers=1, max_position=settings.prompt, sliding_windows=(0,)
        )
        self.attention: Attention = choose_attention(self.config, self.dtype, device)
        self._rng = np.random.default_rng(0)

    def measure(self, case: Case) -> Measured:
        """Time a case, and torch's attention on the same work."""
        shape, itemsize = self.shape, self.dtype.itemsize
        size = sum(part.kv_bytes(shape, itemsize) for part in case.batch)
        layers = self._layers(size)
        with torch.inference_mode():
            call = self._planned(case, layers)
            began = time.perf_counter()
            call()
            _synchronize(self.device)
            first = time.perf_counter() - began
            seconds = seconds_per_call(call, self.device) / layers
            del call
            theirs = self._torch_seconds(case, layers)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        flops = sum(part.flops(shape) for part in case.batch)
        return Measured(case.name, seconds, theirs, size / seconds, flops / seconds, first)

    def _layers(self, size: float) -> int:
        if self.device.type == "cpu":
            return 1
        cached: int = torch.cuda.get_device_properties(self.device).L2_cache_size
        return max(1, math.ceil(_BEYOND_L2 * cached / size))

    def _planned(self, case: Case, layers: int) -> Callable[[], object]:
        """Attention of the case in several layers, with permuted block tables."""
        size, shape = self.attention.block_size, self.shape
        lengths = [(part.past, part.new) for part in case.batch for _ in range(part.count)]
        counts = [-(-(past + new) // size) for past, new in lengths]
        blocks = self._rng.permutation(sum(counts)).tolist()
        parts, used = [], 0
        for (past, new), count in zip(lengths, counts, strict=True):
            parts.append(StepPart([0] * new, past, blocks[used : used + count], samples=False))
            used += count
        arrays = step_arrays(join_parts(parts, size), size)
        arrays = self.attention.prepare(arrays)
        planned = self.attention.plan(arrays, upload(arrays, self.device))
        query = self._random(len(arrays.token_ids), shape.num_heads, shape.head_dim)
        of_cache = (used, size, shape.num_kv_heads, shape.head_dim)
        caches = [
            LayerCache(self._random(*of_cache), self._random(*of_cache)) for _ in range(layers)
        ]

        def call() -> list[torch.Tensor]:
            return [planned(query, cache, 0) for cache in caches]

        return call

    def _torch_seconds(self, case: Case, layers: int) -> float | None:
        """Of one layer, the kinds of sequences one after the other."""
        total = 0.0
        for part in case.batch:
            calls = [
                torch_attention(
                    self._random(part.count, self.shape.num_heads, part.new, self.shape.head_dim),
                    self._random(
                        part.count, self.shape.num_kv_heads, part.context, self.shape.head_dim
                    ),
                    self._random(
                        part.count, self.shape.num_kv_heads, part.context, self.shape.head_dim
                    ),
                )
                for _ in range(layers)
            ]
            try:
                total += seconds_per_call(partial(_all, calls), self.device) / layers
            except RuntimeError:  # no kernel for this shape, or no memory for one
                return None
        return total

    def _random(self, *sizes: int) -> torch.Tensor:
        return torch.randn(sizes, dtype=self.dtype, device=self.device)


def _all(calls: Sequence[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
    return [call() for call in calls]


def _figures(
    case: Case, measured: Measured, ceilings: Ceilings, settings: Settings
) -> list[Figure]:
    """The share of a ceiling; with a goal also the speed, and the time compared with torch's."""
    if len(case.batch) > 1:
        return []
    part = case.batch[0]
    if part.new == 1:
        at_goal = part.count == settings.idle_batch and part.context == settings.decode_context
        share = measured.bytes_per_second / ceilings.bandwidth
        speed = Figure("  the same", measured.bytes_per_second / 1e12, "TB/s")
        goal, ceiling = DECODE_GOAL, "copy bandwidth"
    else:
        at_goal = not part.past
        share = measured.flops_per_second / ceilings.flops
        speed = Figure("  the same", measured.flops_per_second / 1e12, "TFLOP/s")
        goal, ceiling = PREFILL_GOAL, "matrix product"
    name = f"{case.name}, of the {ceiling}"
    if not at_goal:
        return [Figure(name, share, "%")]
    figures = [Figure(name, share, "%", goal, "at least"), speed]
    if measured.torch_seconds is not None:
        ratio = measured.seconds / measured.torch_seconds
        figures.append(Figure("  time, of torch's attention", ratio, "x"))
    return figures


def _hybrid_figures(found: Sequence[Measured]) -> list[Figure]:
    """The last case against the two before it."""
    *parts, hybrid = found[-3:]
    apart = sum(part.seconds for part in parts)
    figures = [
        Figure(hybrid.name, 1e6 * hybrid.seconds, "us"),
        Figure("  of the sum of its parts", hybrid.seconds / apart, "x"),
    ]
    if hybrid.torch_seconds is not None:
        ratio = hybrid.seconds / hybrid.torch_seconds
        figures.append(Figure("  time, of torch's attention", ratio, "x"))
    return figures


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
