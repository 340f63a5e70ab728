"""The table of `sarathi serve --dry-run`."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sarathi.engine.config import EngineConfig
from sarathi.engine.startup.dry_run import Checkpoint, DryRun
from sarathi.engine.startup.kv_cache_size import ProcessShare, gigabytes
from sarathi.fleet.ray.placement import Node, Placement, place_replicas
from sarathi.fleet.ray.ray_options import RayOptions
from sarathi.models.locate import RANDOM_WEIGHTS
from sarathi.system.machine import usable_cores

_TOKENS = 1000  # for which the memory of keys and values is shown
_WIDTH = 110  # characters: rather wrapped by the terminal than cut off
_NOT_COUNTED = (
    "Not counted: activations, the libraries of each process (0.1 to 0.3 GB), and what kernels "
    "keep beside the weights."
)


def place_on_ray(
    config: EngineConfig, replicas: int, options: RayOptions
) -> tuple[Placement, EngineConfig]:
    """Return the placement if every stage of every replica had a machine like this one.

    Raises:
        ConfigError: the options do not go together.
    """
    wanted = options.gpus_per_rank or int(config.device == "cuda")
    here = Node("", usable_cores(), wanted * config.tp)
    return place_replicas(
        config,
        replicas,
        [here] * (replicas * config.pp),
        cpus_per_rank=options.cpus_per_rank,
        gpus_per_rank=options.gpus_per_rank,
    )


def print_dry_run(run: DryRun, placement: Placement | None = None) -> None:
    """Print the layout, the memory of each process and the KV cache.

    Args:
        placement: of each replica, on a Ray cluster.
    """
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _WIDTH)
    for line in _facts(run):
        console.print(line, soft_wrap=True)
    console.print(_table(run))
    console.print(_cache(run), soft_wrap=True)
    if placement is not None:
        console.print(_ray(run, placement), soft_wrap=True)
    console.print(_NOT_COUNTED, soft_wrap=True)


def _facts(run: DryRun) -> tuple[str, ...]:
    model, checkpoint, machine = run.model, run.checkpoint, run.machine
    return (
        f"model:   {model.architecture}, {checkpoint.num_parameters / 1e9:.3f} billion parameters: "
        f"{model.num_layers} layers of {model.hidden_size}, {model.num_heads} heads, "
        f"{model.num_kv_heads} key heads of {model.head_dim}, {model.vocab_size} tokens",
        f"files:   {_files(checkpoint)}",
        f"machine: {machine.cores} cores, {gigabytes(machine.free)} of memory free{_gpus(run)}",
        f"layout:  {_layout(run)}, in {run.precision}, keys and values in {run.kv_precision}; "
        f"{_count(run.threads, 'thread')} each",
    )


def _files(checkpoint: Checkpoint) -> str:
    if not checkpoint.formats:
        return f"none: {RANDOM_WEIGHTS}"
    bits = 8 * checkpoint.num_bytes / checkpoint.num_parameters
    formats = " and ".join(checkpoint.formats)
    return f"{gigabytes(checkpoint.num_bytes)}, {formats}, {bits:.1f} bits a parameter"


def _layout(run: DryRun) -> str:
    text = f"{_count(run.layout.pp, 'stage')} x {_count(run.layout.tp, 'rank')}"
    return text if run.replicas == 1 else f"{run.replicas} replicas x {text}"


def _gpus(run: DryRun) -> str:
    return "".join(
        f"; GPU {index}: {gigabytes(free)} available" for index, free in enumerate(run.machine.gpus)
    )


def _table(run: DryRun) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    columns = "process", "stage", "rank", "layers", "heads", "key heads"
    for column in (*columns, "weights", f"KV of {_TOKENS} tokens", "KV cache"):
        table.add_column(column, justify="left" if column == "process" else "right", no_wrap=True)
    for share in run.shares:
        table.add_row(*_share(run, share))
    if len(run.shares) * run.replicas > 1:
        table.add_section()
        if len(run.shares) > 1:
            table.add_row("one replica", *[""] * 5, *_total(run, 1))
        if run.replicas > 1:
            table.add_row(f"{run.replicas} replicas", *[""] * 5, *_total(run, run.replicas))
    return table


def _share(run: DryRun, share: ProcessShare) -> tuple[str, ...]:
    engine = share.rank_id == run.layout.engine_rank
    return (
        "engine" if engine else f"worker {run.layout.worker_ranks.index(share.rank_id)}",
        str(share.rank_id.stage),
        str(share.rank_id.rank),
        f"{share.layers.start} to {share.layers.stop - 1}",
        str(share.num_heads),
        str(share.num_kv_heads),
        *_sizes(run, share.weight_bytes, share.block_bytes),
    )


def _total(run: DryRun, replicas: int) -> tuple[str, ...]:
    return _sizes(run, replicas * run.weight_bytes, replicas * run.block_bytes)


def _sizes(run: DryRun, weight_bytes: int, block_bytes: int) -> tuple[str, ...]:
    return (
        gigabytes(weight_bytes),
        f"{_TOKENS * block_bytes / run.block_size / 1e6:.2f} MB",
        "-" if run.cache is None else gigabytes(run.cache.num_blocks * block_bytes),
    )


def _cache(run: DryRun) -> str:
    if run.cache is None:
        return "KV cache: none, see below"
    whose = "" if run.replicas == 1 else " of each replica"
    return (
        f"KV cache{whose}: {run.cache.tokens} tokens in {run.cache.num_blocks} blocks of "
        f"{run.block_size}, up to {run.cache.max_model_len} tokens a request"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ray(run: DryRun, placement: Placement) -> str:
    ranks = "its rank" if run.layout.tp == 1 else f"its {run.layout.tp} ranks"
    return (
        f"Ray: {_count(run.replicas, 'placement group')} of "
        f"{_count(len(placement.bundles), 'bundle')} ({placement}): a bundle is a stage with "
        f"{ranks}, on one machine. Memory is computed as if each had a machine like this one; "
        "no cluster has been asked."
    )
