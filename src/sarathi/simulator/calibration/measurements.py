"""Measurements from profiles: what was timed, and how long it took."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
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
_GEOMETRY = (
    "num_tensor_parallel_workers",
    "num_tokens",
    "n_head",
    "n_kv_head",
    "n_embd",
    "n_expanded_embd",
    "vocab_size",
)
SIZES_BY_OCTAVE = 8  # of messages: profiles have far more long ones than short ones
MILLI = 1e-3

Row = dict[str, str]


@dataclass(frozen=True)
class LayerTime:
    """One layer of one worker."""

    model: SimulatedModel
    tp: int
    tokens: int
    gemms: tuple[float, ...]  # seconds, in the order of GEMMS
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
    rows: int  # of the chunk; 1 each for decodes
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

    def times(row: Row) -> tuple[float, ...]:
        return (*(_seconds(row, op) for op in GEMMS), sum(_seconds(row, op) for op in ELEMENTWISE))

    def key(row: Row) -> tuple[int, ...]:
        return tuple(_int(row, field) for field in _GEOMETRY)

    found = []
    for (tp, tokens, heads, kv_heads, hidden, inner, vocab), taken in _medians(file, key, times):
        fields = llama_fields(1, hidden, heads, kv_heads, inner, vocab, 1)
        model = SimulatedModel.from_fields(file.stem, fields)
        found.append(LayerTime(model, tp, tokens, taken[:-1], taken[-1]))
    return found


def attention(file: Path, prefill: bool) -> list[AttentionTime]:
    """Read a profile of attention, that of chunks or that of decodes."""
    operation = "attn_prefill" if prefill else "attn_decode"

    def key(row: Row) -> tuple[int, ...]:
        tp = _int(row, "num_tensor_parallel_workers")
        heads = _int(row, "n_q_head")
        return (
            heads // tp,
            max(1, _int(row, "n_kv_head") // tp),
            _int(row, "n_embd") // heads,
            _int(row, "prefill_chunk_size") if prefill else 1,
            _int(row, "batch_size"),
            _int(row, "kv_cache_size"),
        )

    timed = _medians(
        file,
        key,
        lambda row: (_seconds(row, operation),),
        lambda row: (row["is_prefill"] == "True") is prefill,
    )
    return [
        AttentionTime(heads, kv_heads, head_dim, rows, batch, context, seconds)
        for (heads, kv_heads, head_dim, rows, batch, context), (seconds,) in timed
    ]


def messages(file: Path) -> list[MessageTime]:
    """Read a profile of the network, at most `SIZES_BY_OCTAVE` of each doubling in size."""

    def key(row: Row) -> tuple[int, ...]:
        return tuple(_int(row, field) for field in ("num_workers", "devices_per_node", "size"))

    found: list[MessageTime] = []
    last: tuple[int, ...] = ()
    for (workers, per_node, size), (seconds,) in _medians(
        file, key, lambda row: (_seconds(row, row["collective"]),)
    ):
        if last[:2] == (workers, per_node) and size < last[2] * 2 ** (1 / SIZES_BY_OCTAVE):
            continue
        number = found[-1].number + 1 if last[:2] == (workers, per_node) else 0
        last = (workers, per_node, size)
        found.append(MessageTime(workers, per_node, size, number, seconds))
    return found


def iterations(file: Path) -> list[tuple[int, int, float]]:
    """Read an experiment of the paper's artifact, without the first batch of the engine.

    Returns:
        For each iteration: its decodes, or tokens of one prompt, and seconds.
    """
    decodes, prompt = "batch_num_decode_tokens", "batch_num_prefill_tokens"
    return [
        (_int(row, decodes), _int(row, prompt), float(row["batch_execution_time"]))
        for row in _rows(file)
        if float(row["Batch Id"]) > 0
    ]


def _medians(
    file: Path,
    key: Callable[[Row], tuple[int, ...]],
    times: Callable[[Row], tuple[float, ...]],
    wanted: Callable[[Row], bool] = lambda row: True,
) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    groups: dict[tuple[int, ...], list[tuple[float, ...]]] = defaultdict(list)
    try:
        for row in filter(wanted, _rows(file)):
            groups[key(row)].append(times(row))
    except (KeyError, ValueError) as error:
        raise SimulationError(f"{file} is not such a profile: {error}") from error
    for group in sorted(groups):
        yield group, tuple(median(column) for column in zip(*groups[group], strict=True))


def _rows(file: Path) -> Iterator[Row]:
    try:
        with file.open(newline="") as stream:
            yield from csv.DictReader(stream)
    except OSError as error:
        raise SimulationError(f"cannot read {file}: {error.strerror or error}") from error


def _int(row: Row, field: str) -> int:
    return int(float(row[field]))


def _seconds(row: Row, operation: str) -> float:
    return float(row[f"time_stats.{operation}.median"]) * MILLI
