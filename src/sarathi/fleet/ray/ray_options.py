"""The options of an engine on a Ray cluster; see `on_ray`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sarathi.options import Count, CountOrZero, Option


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Whether and how engines run on a Ray cluster."""

    enabled: Annotated[
        bool,
        Option(
            "run replicas, stages and ranks on the machines of a Ray cluster: one that this "
            "machine has joined, or else one of this machine alone",
            group="many machines",
            name="ray",
        ),
    ] = False
    address: Annotated[
        str | None,
        Option(
            "address of the cluster",
            default="RAY_ADDRESS, or the one that `ray start` has joined",
            name="ray-address",
            metavar="HOST:PORT",
        ),
    ] = None
    cpus_per_rank: Annotated[
        Count | None,
        Option(
            "free CPUs that a rank needs on its machine",
            default="--threads, or else all CPUs of the cluster between them; 1 where a GPU "
            "computes",
            name="ray-cpus-per-rank",
        ),
    ] = None
    gpus_per_rank: Annotated[
        CountOrZero | None,
        Option(
            "free GPUs that a rank needs on its machine",
            default="1 with --executor torch where the cluster has GPUs",
            name="ray-gpus-per-rank",
        ),
    ] = None
