"""The table of `sarathi serve --dry-run`."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sarathi.engine.config import EngineConfig
from sarathi.engine.startup.dry_run import DryRun
from sarathi.engine.startup.kv_cache_size import gigabytes
from sarathi.fleet.ray.cluster import Node, Placement, place_replicas
from sarathi.fleet.ray.ray_launch import RayOptions
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
    """Return the placement if every stage of every replica had a machine like this one."""
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
    """Print the layout, the memory of each process, the KV cache, and the placement on Ray."""
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _WIDTH)
    for line in _facts(run):
        console.print(line, soft_wrap=True)
    console.print(_table(run))
    whose = "" if run.replicas == 1 else " of each replica"
    cache = run.cache and (
        f"KV cache{whose}: {run.cache.tokens} tokens in {run.cache.num_blocks} blocks of "
        f"{run.block_size}, up to {run.cache.max_model_len} tokens a request"
    )
    console.print(cache or "KV cache: none, see below", soft_wrap=True)
    if placement is not None:
        ranks = "its rank" if run.layout.tp == 1 else f"its {run.layout.tp} ranks"
        console.print(
            f"Ray: {_count(run.replicas, 'placement group')} of "
            f"{_count(len(placement.bundles), 'bundle')} ({placement}): a bundle is a stage with "
            f"{ranks}, on one machine. Memory is computed as if each had a machine like this one; "
            "no cluster has been asked.",
            soft_wrap=True,
        )
    console.print(_NOT_COUNTED, soft_wrap=True)


def _facts(run: DryRun) -> tuple[str, ...]:
    model, checkpoint, machine = run.model, run.checkpoint, run.machine
    files = f"none: {RANDOM_WEIGHTS}"
    if checkpoint.formats:
        bits = 8 * checkpoint.num_bytes / checkpoint.num_parameters
        formats = " and ".join(checkpoint.formats)
        files = f"{gigabytes(checkpoint.num_bytes)}, {formats}, {bits:.1f} bits a parameter"
    gpus = "".join(f"; GPU {i}: {gigabytes(free)} available" for i, free in enumerate(machine.gpus))
    replicas = "" if run.replicas == 1 else f"{run.replicas} replicas x "
    layout = f"{_count(run.layout.pp, 'stage')} x {_count(run.layout.tp, 'rank')}"
    lines = (
        f"model:   {model.architecture}, {checkpoint.num_parameters / 1e9:.3f} billion parameters: "
        f"{model.num_layers} layers of {model.hidden_size}, {model.num_heads} heads, "
        f"{model.num_kv_heads} key heads of {model.head_dim}, {model.vocab_size} tokens",
        f"files:   {files}",
        f"machine: {machine.cores} cores, {gigabytes(machine.free)} of memory free{gpus}",
        f"layout:  {replicas}{layout}, in {run.precision}, keys and values in "
        f"{run.kv_precision}; {_count(run.threads, 'thread')} each",
        f"weights: {run.quantised}" if run.quantised else "",
    )
    return tuple(filter(None, lines))


def _table(run: DryRun) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    columns = "process", "stage", "rank", "layers", "heads", "key heads"
    for column in (*columns, "weights", f"KV of {_TOKENS} tokens", "KV cache"):
        table.add_column(column, justify="left" if column == "process" else "right", no_wrap=True)
    for share in run.shares:
        engine = share.rank_id == run.layout.engine_rank
        facts = (
            "engine" if engine else f"worker {run.layout.worker_ranks.index(share.rank_id)}",
            share.rank_id.stage,
            share.rank_id.rank,
            f"{share.layers.start} to {share.layers.stop - 1}",
            share.num_heads,
            share.num_kv_heads,
        )
        table.add_row(*map(str, facts), *_sizes(run, share.weight_bytes, share.block_bytes))
    table.add_section()
    sums = {"one replica": 1} if len(run.shares) > 1 else {}
    if run.replicas > 1:
        sums[f"{run.replicas} replicas"] = run.replicas
    for name, number in sums.items():
        sizes = _sizes(run, number * run.weight_bytes, number * run.block_bytes)
        table.add_row(name, *[""] * 5, *sizes)
    return table


def _sizes(run: DryRun, weight_bytes: int, block_bytes: int) -> tuple[str, ...]:
    return (
        gigabytes(weight_bytes),
        f"{_TOKENS * block_bytes / run.block_size / 1e6:.2f} MB",
        "-" if run.cache is None else gigabytes(run.cache.num_blocks * block_bytes),
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
