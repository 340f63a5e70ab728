"""The options of `sarathi serve` that have to do with Ray."""

from __future__ import annotations

import argparse

from sarathi.cli.engine_options import positive, utf8
from sarathi.errors import UsageError
from sarathi.fleet.ray.ray_launch import RayOptions


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many machines")
    group.add_argument(
        "--ray",
        action="store_true",
        help="run replicas, stages and ranks on the machines of a Ray cluster: one that this "
        "machine has joined, or else one of this machine alone",
    )
    group.add_argument(
        "--ray-address",
        type=utf8,
        metavar="HOST:PORT",
        help="of the cluster (default: RAY_ADDRESS, or the one that `ray start` has joined)",
    )
    group.add_argument(
        "--ray-cpus-per-rank",
        type=positive,
        metavar="N",
        help="that a rank needs free on its machine (default: --threads, or else all CPUs of the "
        "cluster between them; 1 where a GPU computes)",
    )
    group.add_argument(
        "--ray-gpus-per-rank",
        type=_count,
        metavar="N",
        help="likewise (default: 1 with --executor torch where the cluster has GPUs)",
    )


def ray_options(args: argparse.Namespace) -> RayOptions | None:
    """None without `--ray`.

    Raises:
        UsageError: options that have no effect without it.
    """
    options = RayOptions(
        address=args.ray_address,
        cpus_per_rank=args.ray_cpus_per_rank,
        gpus_per_rank=args.ray_gpus_per_rank,
    )
    if args.ray:
        return options
    for name in ("address", "cpus_per_rank", "gpus_per_rank"):
        if getattr(options, name) is not None:
            raise UsageError(f"--ray-{name.replace('_', '-')} has no effect without --ray")
    return None


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)
