"""The resources of replicas on a cluster."""

from __future__ import annotations

import pytest

from sarathi.backends.parallel.rank_layout import ParallelLayout
from sarathi.engine.config import EngineConfig
from sarathi.errors import ConfigError
from sarathi.fleet.ray.cluster import Node, Placement, equal_share, place_replicas

CPU_NODES = [Node("10.0.0.1", 8, 0), Node("10.0.0.2", 8, 0)]
GPU_NODES = [Node("10.0.0.1", 16, 4), Node("10.0.0.2", 16, 4)]


def torch_config(**changes: object) -> EngineConfig:
    return EngineConfig(executor="torch", **changes)  # type: ignore[arg-type]


def test_the_ranks_of_a_stage_share_a_bundle() -> None:
    placement = Placement(ParallelLayout(pp=2, tp=4), cpus=1, gpus=1)
    assert placement.bundles == [{"CPU": 4.0, "GPU": 4.0}] * 2
    assert str(placement) == "2 times 4 CPUs and 4 GPUs"


def test_a_bundle_asks_for_no_gpus_where_none_compute() -> None:
    placement = Placement(ParallelLayout(), cpus=1, gpus=0)
    assert placement.bundles == [{"CPU": 1.0}]
    assert str(placement) == "1 CPU"


@pytest.mark.parametrize(
    ("cpus", "bundles", "ranks", "share"),
    [
        ([8, 8], 2, 1, 8),
        ([8, 8], 4, 1, 4),
        ([8, 8], 3, 1, 4),  # two on one machine, so that 5 each do not fit
        ([16, 16], 3, 1, 8),
        ([8, 4], 2, 1, 4),
        ([8, 8], 2, 2, 4),
        ([7.5], 1, 2, 3),
        ([2], 4, 1, 1),  # Ray will say that there is no room
        ([], 1, 1, 1),
    ],
)
def test_cpus_are_divided_equally(cpus: list[float], bundles: int, ranks: int, share: int) -> None:
    assert equal_share(cpus, bundles, ranks) == share


def test_all_cpus_of_the_cluster_compute_by_default() -> None:
    placement, config = place_replicas(EngineConfig(pp=2), 2, CPU_NODES)
    assert (placement.cpus, config.threads) == (4, 4)


def test_a_rank_gets_as_many_cpus_as_threads() -> None:
    placement, config = place_replicas(EngineConfig(threads=3), 1, CPU_NODES)
    assert (placement.cpus, config.threads) == (3, 3)


def test_cpus_of_a_rank_can_be_other_than_its_threads() -> None:
    placement, config = place_replicas(EngineConfig(threads=8), 1, CPU_NODES, cpus_per_rank=2)
    assert (placement.cpus, config.threads) == (2, 8)


def test_torch_takes_a_gpu_for_each_rank_where_there_are_any() -> None:
    placement, config = place_replicas(torch_config(tp=4, pp=2), 1, GPU_NODES)
    assert (placement.cpus, placement.gpus) == (1, 1)
    assert (config.device, config.threads) == ("cuda", None)


def test_without_gpus_torch_computes_on_the_processor() -> None:
    placement, config = place_replicas(torch_config(tp=2), 1, CPU_NODES)
    assert (placement.cpus, placement.gpus) == (4, 0)
    assert (config.device, config.threads) == ("cpu", 4)


def test_a_processor_can_be_asked_for_where_there_are_gpus() -> None:
    placement, config = place_replicas(torch_config(device="cpu"), 2, GPU_NODES)
    assert (placement.cpus, placement.gpus, config.device) == (16, 0, "cpu")


@pytest.mark.parametrize(
    ("replicas", "cpus", "engines"), [(1, 2, 1), (4, 4, 2), (4, 2, 4), (4, 8, 1), (1, 16, 1)]
)
def test_engines_that_may_be_on_one_machine_share_its_memory(
    replicas: int, cpus: int, engines: int
) -> None:
    _, config = place_replicas(EngineConfig(), replicas, CPU_NODES, cpus_per_rank=cpus)
    assert config.engines_here == engines


@pytest.mark.parametrize(
    ("config", "nodes", "gpus", "message"),
    [
        (EngineConfig(), GPU_NODES, 1, "--ray-gpus-per-rank needs --executor torch"),
        (torch_config(device="cpu"), GPU_NODES, 1, "has no use with --device cpu"),
        (torch_config(device="cuda"), GPU_NODES, 0, "needs --ray-gpus-per-rank 1 or more"),
        (torch_config(device="cuda"), CPU_NODES, None, "no machine of the Ray cluster has a GPU"),
        (torch_config(), CPU_NODES, 1, "no machine of the Ray cluster has a GPU"),
    ],
)
def test_options_that_do_not_go_together(
    config: EngineConfig, nodes: list[Node], gpus: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        place_replicas(config, 1, nodes, gpus_per_rank=gpus)
