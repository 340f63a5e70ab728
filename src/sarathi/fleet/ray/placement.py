"""The resources that the processes of engines need on the machines of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from sarathi.backends.parallel.rank_layout import ParallelLayout
from sarathi.backends.registry import BACKENDS
from sarathi.engine.config import EngineConfig
from sarathi.errors import ConfigError


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    address: str
    cpus: float  # that the cluster counts, used or not
    gpus: float


@dataclass(frozen=True)
class Placement:
    """One replica: a bundle for each stage, so that the ranks of a stage are on one machine.

    The ranks add up their results several times a layer, for which a network would be too slow;
    between stages only hidden states are sent.
    """

    layout: ParallelLayout
    cpus: int  # of each rank
    gpus: int  # of each rank

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The resources of each stage, which have to be on one machine."""
        ranks = self.layout.tp
        bundle = {"CPU": float(self.cpus * ranks), "GPU": float(self.gpus * ranks)}
        return [{name: amount for name, amount in bundle.items() if amount}] * self.layout.pp

    def __str__(self) -> str:
        ranks, stages = self.layout.tp, self.layout.pp
        each = describe_resources(self.cpus * ranks, self.gpus * ranks)
        return each if stages == 1 else f"{stages} times {each}"


def describe_resources(cpus: float, gpus: float) -> str:
    """Return numbers of CPUs and GPUs as text; a zero is left out, unless both are zero."""
    named = [(cpus, "CPU"), (gpus, "GPU")]
    parts = [f"{count:g} {name}{'' if count == 1 else 's'}" for count, name in named if count]
    return " and ".join(parts) or "no CPU"


def place_replicas(
    config: EngineConfig,
    replicas: int,
    nodes: Sequence[Node],
    *,
    cpus_per_rank: int | None = None,
    gpus_per_rank: int | None = None,
) -> tuple[Placement, EngineConfig]:
    """Return the resources of each rank, and the configuration that makes use of them.

    Without `cpus_per_rank` a rank gets `config.threads` CPUs, or else an equal share of all CPUs of
    the cluster; 1 if GPUs compute.

    Raises:
        ConfigError: the options do not go together, or the cluster has no GPU.
    """
    layout = ParallelLayout(config.pp, config.tp)
    gpus = _gpus(config, nodes, gpus_per_rank)
    cpus = cpus_per_rank or config.threads
    if cpus is None:
        bundles = replicas * layout.pp
        cpus = 1 if gpus else equal_share([node.cpus for node in nodes], bundles, layout.tp)
    # Ray does not keep a process from using more CPUs than it has reserved: the executor must.
    device, threads = config.device, config.threads
    if BACKENDS[config.executor].has_devices:
        device = "cuda" if gpus else "cpu"
    if not gpus and threads is None:
        threads = cpus
    # A GPU is used by one rank, but all engines on a machine share its memory.
    engines_here = 1 if gpus else min(replicas, _max_bundles(nodes, cpus * layout.tp))
    config = msgspec.structs.replace(
        config, device=device, threads=threads, engines_here=max(1, engines_here)
    )
    return Placement(layout, cpus, gpus), config


def equal_share(cpus: Sequence[float], bundles: int, ranks: int) -> int:
    """Return the most CPUs that each of `ranks` in each of `bundles` can have, at least 1.

    Args:
        cpus: of each machine; a bundle has to fit on one.
    """
    most = max((int(count) // ranks for count in cpus), default=0)
    for share in range(most, 1, -1):
        if sum(int(count) // (share * ranks) for count in cpus) >= bundles:
            return share
    return 1


def _max_bundles(nodes: Sequence[Node], cpus: int) -> int:
    """Return the most bundles of so many CPUs that fit on one machine."""
    return max((int(node.cpus) // cpus for node in nodes), default=0)


def _gpus(config: EngineConfig, nodes: Sequence[Node], requested: int | None) -> int:
    if not BACKENDS[config.executor].has_devices:
        if requested:
            able = " or ".join(name for name, each in BACKENDS.items() if each.has_devices)
            raise ConfigError(f"--ray-gpus-per-rank needs --executor {able}")
        return 0
    if config.device == "cpu":
        if requested:
            raise ConfigError(f"--ray-gpus-per-rank {requested} has no use with --device cpu")
        return 0
    has_gpus = any(node.gpus for node in nodes)
    if requested == 0 and config.device == "cuda":
        raise ConfigError("--device cuda needs --ray-gpus-per-rank 1 or more")
    if not has_gpus and (requested or config.device == "cuda"):
        raise ConfigError(
            "no machine of the Ray cluster has a GPU: use --device cpu, or start one with one"
        )
    if requested is not None:
        return requested
    return 1 if has_gpus else 0
