"""Measurements from profiles: what was timed, and how long it took."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sarathi.errors import SimulationError
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import Device
from sarathi.simulator.simulated_model import SimulatedModel, llama_fields

GEMMS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
# Kernels of a serial layer, as often as each runs.
ELEMENTWISE = ("input_layernorm", "post_attention_layernorm", "attn_rope", "mlp_act", "add", "add")
SIZES_BY_OCTAVE = 8  # of messages: profiles have far more long ones than short ones

Row = dict[str, str]


@dataclass(frozen=True)
class LayerTime:
    """One layer of one worker."""

    model: SimulatedModel
    tp: int
    tokens: int
    gemms: Sequence[float]  # seconds, in the order of GEMMS
    elementwise: float  # seconds of all kernels

    def deployment(self, device: Device) -> Deployment:
        """Return the deployment that was timed."""
        return Deployment(model=self.model, device=device, tp=self.tp)


@dataclass(frozen=True)
class AttentionTime:
    """Attention of one layer of one worker: a chunk, or a batch of decodes of equal context."""

    heads: int
    kv_heads: int
    head_dim: int
    rows: int  # of the chunk; of decodes it means nothing
    batch: int
    context: int  # tokens of each in the cache before
    seconds: float


@dataclass(frozen=True)
class MessageTime:
    """An all-reduce, or one GPU sending to another."""

    workers: int
    per_node: int  # of them
    size: int  # bytes
    number: int  # of the message, by size
    seconds: float


def layers(file: Path) -> list[LayerTime]:
    """Read a profile of linear layers; the median where one was timed several times."""
    found = []
    for (tp, tokens, heads, kv_heads, hidden, inner, vocab), (*gemms, elementwise) in _medians(
        file,
        "num_tensor_parallel_workers num_tokens n_head n_kv_head n_embd n_expanded_embd vocab_size",
        lambda row: [*(_seconds(row, op) for op in GEMMS), _seconds(row, *ELEMENTWISE)],
    ):
        fields = llama_fields(1, hidden, heads, kv_heads, inner, vocab, 1)
        model = SimulatedModel.from_fields(file.stem, fields)
        found.append(LayerTime(model, tp, tokens, gemms, elementwise))
    return found


def attention(file: Path, prefill: bool) -> list[AttentionTime]:
    """Read a profile of attention, that of chunks or that of decodes."""
    timed = _medians(
        file,
        "num_tensor_parallel_workers n_q_head n_kv_head n_embd prefill_chunk_size batch_size "
        "kv_cache_size",
        lambda row: [_seconds(row, "attn_prefill" if prefill else "attn_decode")],
        lambda row: (row["is_prefill"] == "True") is prefill,
    )
    return [
        AttentionTime(
            heads // tp, max(1, kv_heads // tp), hidden // heads, rows, batch, context, seconds
        )
        for (tp, heads, kv_heads, hidden, rows, batch, context), (seconds,) in timed
    ]


def messages(file: Path) -> list[MessageTime]:
    """Read a profile of the network, at most `SIZES_BY_OCTAVE` of each doubling in size."""
    found: list[MessageTime] = []
    for (workers, per_node, size), (seconds,) in _medians(
        file, "num_workers devices_per_node size", lambda row: [_seconds(row, row["collective"])]
    ):
        last, number = found[-1] if found else None, 0
        if last is not None and (last.workers, last.per_node) == (workers, per_node):
            if size < last.size * 2 ** (1 / SIZES_BY_OCTAVE):
                continue
            number = last.number + 1
        found.append(MessageTime(workers, per_node, size, number, seconds))
    return found


def iterations(file: Path) -> list[tuple[int, int, float]]:
    """Return decodes, tokens of one prompt, and seconds of each iteration of the paper's artifact.

    The first batch of the engine is left out.
    """
    decodes, prompt = "batch_num_decode_tokens", "batch_num_prefill_tokens"
    return [
        (_int(row[decodes]), _int(row[prompt]), float(row["batch_execution_time"]))
        for row in _rows(file)
        if float(row["Batch Id"]) > 0
    ]


def _medians(
    file: Path,
    columns: str,
    times: Callable[[Row], list[float]],
    wanted: Callable[[Row], bool] = lambda row: True,
) -> Iterator[tuple[tuple[int, ...], list[float]]]:
    """Yield the integers in some columns, and the median times of all rows that have them."""
    groups: dict[tuple[int, ...], list[list[float]]] = defaultdict(list)
    try:
        for row in filter(wanted, _rows(file)):
            groups[tuple(_int(row[column]) for column in columns.split())].append(times(row))
    except (KeyError, ValueError) as error:
        raise SimulationError(f"{file} is not such a profile: {error}") from error
    for group in sorted(groups):
        yield group, [median(each) for each in zip(*groups[group], strict=True)]


def _rows(file: Path) -> Iterator[Row]:
    try:
        with file.open(newline="") as stream:
            yield from csv.DictReader(stream)
    except OSError as error:
        raise SimulationError(f"cannot read {file}: {error.strerror or error}") from error


def _int(text: str) -> int:
    return int(float(text))


def _seconds(row: Row, *operations: str) -> float:
    """Return the time of operations, one after the other; profiles are in milliseconds."""
    return sum(float(row[f"time_stats.{name}.median"]) * 1e-3 for name in operations)
