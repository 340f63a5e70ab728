"""Experiments with single iterations, for which the cost model alone is needed."""

from __future__ import annotations

from collections.abc import Iterable

from sarathi.bench.report.table import Cell, number, seconds
from sarathi.simulator.cost_model import OVERHEADS, BatchShape, iteration_seconds
from sarathi.simulator.gpu.gpu_cost import GpuCostModel
from sarathi.simulator.reproduction import published
from sarathi.simulator.reproduction.experiment import (
    WORDS,
    DataPoint,
    Expected,
    Experiment,
    Findings,
    Grid,
    GridPanel,
    Selection,
    by,
)
from sarathi.simulator.reproduction.published import Comparison, Published
from sarathi.simulator.reproduction.testbeds import MISTRAL, YI, Options, Testbed


def cost_of(testbed: Testbed, max_total: int = 16384) -> GpuCostModel:
    """Return the cost model of a testbed under the paper's engine."""
    return GpuCostModel(testbed.deployment(max_total), OVERHEADS["paper"])


def prompt_batch(batch: int, length: int) -> BatchShape:
    """Return an iteration of whole prompts."""
    return BatchShape.make(chunks=((0, length),) * batch)


def chunked_seconds(cost: GpuCostModel, length: int, chunk: int) -> float:
    """Return the time of a prompt in chunks, with nothing beside them."""
    total = 0.0
    for start in range(0, length, chunk):
        size = min(chunk, length - start)
        last = int(start + size == length)
        total += iteration_seconds(cost, BatchShape.make(chunks=((start, size),), samples=last))
    return total


# Figures 3 and 4: what batching does to prompts and to decodes.

_PROMPT = 1024  # tokens, of Figure 3
_WHOLE = 8192  # tokens of the prompt that is computed in chunks
_MODELS = (MISTRAL, YI)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
# By kind: title of the table and of the panel, label of the axis, field, and sizes.
_THROUGHPUTS = {
    "decode": ("Decodes", "Decodes", "requests in a batch", "batch", _BATCHES),
    "prefill": ("Prompts of 1024", "Prompts", "prompts in a batch", "batch", _BATCHES[:4]),
    "chunked": (
        "A prompt of 8192 in chunks",
        "A prompt in chunks",
        "tokens of a chunk",
        "chunk",
        (64, 128, 256, 512, 1024, 2048, 4096, 8192),
    ),
}


def _tokens_per_second(cost: GpuCostModel, kind: str, size: int) -> float:
    if kind == "decode":
        return size / iteration_seconds(cost, BatchShape.make(size, _PROMPT))
    if kind == "prefill":
        return size * _PROMPT / iteration_seconds(cost, prompt_batch(size, _PROMPT))
    return _WHOLE / chunked_seconds(cost, _WHOLE, size)


def _iteration_point(kind: str, size: int, shape: BatchShape, known: Published) -> DataPoint:
    """Return an iteration of Yi-34B of which the artifact has the time."""
    what = f"Yi-34B: {kind.format(size)}"
    known = Published(1000 * known.value, known.where, known.medium)
    return DataPoint(
        {"iteration": kind, "size": size},
        {"time": lambda seconds: 1000 * seconds},
        result=iteration_seconds(cost_of(YI), shape),
        expected=(Expected("time", what, known, "ms", WORDS["throughput"].reasons["overhead"]),),
        exported=False,
    )


def throughput(options: Options) -> Experiment:
    """Return the description of Figures 3 and 4."""
    words = WORDS["throughput"]
    grids = {
        kind: Grid(
            f"{title} (tokens per second)",
            words.table_caption,
            tuple(Selection(m.title, {"model": m.model, "kind": kind}) for m in _MODELS),
            by(axis, sizes, axis),
            {"": lambda one: Cell(number(one["tokens_per_second"]))},
        )
        for kind, (title, _, _, axis, sizes) in _THROUGHPUTS.items()
    }
    points = [
        DataPoint(
            {"model": testbed.model, "kind": kind, axis: size},
            {"tokens_per_second": float},
            result=_tokens_per_second(cost_of(testbed), kind, size),
        )
        for kind, (_, _, _, axis, sizes) in _THROUGHPUTS.items()
        for testbed in _MODELS
        for size in sizes
    ]
    decodes, prompt = "iteration of {} decodes", "prompt of {}"
    for n, known in published.DECODES.items():
        points.append(_iteration_point(decodes, n, BatchShape.make(n, _PROMPT), known))
    for n, known in published.PREFILLS.items():
        points.append(_iteration_point(prompt, n, prompt_batch(1, n), known))
    hybrid, shape = (
        "1021 tokens of a prompt and 3 decodes",
        BatchShape.make(3, _PROMPT, ((0, 1021),), 3),
    )
    points.append(_iteration_point(hybrid, 1024, shape, published.HYBRID))
    throughputs = [
        GridPanel(
            f"{title} (tokens per second)", grids[kind], "tokens_per_second", x_label, log_x=True
        )
        for kind, (_, title, x_label, _, _) in _THROUGHPUTS.items()
    ]
    times = [
        GridPanel(title, _sizes(kind, known), "time", x_label, log_x=True, log_y=True)
        for title, x_label, kind, known in (
            ("Iteration of decodes (ms)", "requests in a batch", decodes, published.DECODES),
            ("Iteration of a prompt (ms)", "tokens of the prompt", prompt, published.PREFILLS),
        )
    ]
    return Experiment(
        name="throughput",
        points=points,
        tables=list(grids.values()),
        figures=[
            words.figure("throughput", *throughputs),
            words.figure("iteration-times", *times),
        ],
        comparisons=[_tile_step],
        deployments={each.title: each.deployment(8192) for each in _MODELS},
    )


def _sizes(kind: str, sizes: Iterable[int]) -> Grid:
    columns = (Selection(str(size), {"size": size, "iteration": kind}) for size in sizes)
    return Grid("", "", (Selection("ours", {}),), tuple(columns), {})


def _tile_step(found: Findings) -> Comparison:
    more, fewer = (iteration_seconds(cost_of(MISTRAL), prompt_batch(1, n)) for n in (257, 256))
    what = "Mistral-7B: chunk of 257 to one of 256"
    return Comparison(what, more / fewer, published.TILE, "x", WORDS["throughput"].reasons["tiles"])


# Figure 14: how much longer a prompt takes in chunks.

_LENGTHS = (2047, 4095, 8191, 16383)  # tokens, as in the artifact
_CHUNKS = (512, 1024, 2048)


def chunking_overhead(options: Options) -> Experiment:
    """Return the description of Figure 14."""
    words = WORDS["chunking-overhead"]
    cost = cost_of(YI)
    whole = {length: chunked_seconds(cost, length, length) for length in _LENGTHS}
    grid = Grid(
        "Time relative to the whole prompt",
        words.table_caption,
        tuple(
            Selection(f"{n:,}", {"prompt": n}, head=f"{n:,} tokens", note=seconds(whole[n]))
            for n in _LENGTHS
        ),
        tuple(Selection(f"chunks of {n}", {"chunk": n}, "chunk", str(n)) for n in _CHUNKS),
        {"": lambda one: Cell(number(one["ratio"]))},
        corner=("prompt",),
        groups_by_row=True,
    )
    return Experiment(
        name="chunking-overhead",
        points=tuple(
            DataPoint(
                {"prompt": length, "chunk": chunk},
                {"ratio": float},
                result=chunked_seconds(cost, length, chunk) / whole[length],
                expected=(Expected("ratio", f"{length} tokens, chunks of {chunk}", known, "x"),),
            )
            for (length, chunk), known in published.CHUNKED.items()
        ),
        tables=(grid,),
        figures=[
            words.figure(
                "chunking-overhead", GridPanel("Times as long as the whole prompt", grid, "ratio")
            )
        ],
        comparisons=(
            lambda found: Comparison(
                "most, chunks of 512",
                max(found.one(prompt=length, chunk=512)["ratio"] for length in _LENGTHS),
                published.CHUNKED_MOST,
                "x",
            ),
        ),
        deployments={YI.title: YI.deployment(16384)},
    )
