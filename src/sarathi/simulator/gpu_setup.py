"""Replicas on GPUs."""

from __future__ import annotations

from sarathi.engine.config import EngineConfig
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.engine_overhead import OVERHEADS, EngineOverhead
from sarathi.simulator.gpu.gpu_cost import GpuCostModel
from sarathi.simulator.known_error import describe_accuracy
from sarathi.simulator.memory_plan import kv_blocks
from sarathi.simulator.setup import Setup, engine_options

_BLOCK_SIZE = 16  # tokens


def gpu_setup(
    deployment: Deployment,
    config: EngineConfig,
    *,
    overhead: EngineOverhead = OVERHEADS["sarathi"],
    replicas: int = 1,
    router: str = "round_robin",
    price: float | None = None,
) -> Setup:
    """Return a setup of replicas on GPUs.

    Args:
        config: options of each engine; its `max_model_len` is that of the deployment.
        price: dollars an hour of a device; None: that of the device, if it has one.

    Raises:
        SimulationError: the model does not fit; the message shows the arithmetic.
    """
    longest = deployment.max_model_len
    memory = kv_blocks(
        deployment, config.max_step_tokens(longest), _BLOCK_SIZE, config.max_batch_size
    )
    description = {
        "model": deployment.model.name,
        "device": deployment.device.name,
        "tp": str(deployment.tp),
        "pp": str(deployment.pp),
        "nodes": str(deployment.num_nodes),
        "replicas": str(replicas),
        "router": router,
        "overhead": overhead.name,
        **engine_options(config, longest),
    }
    return Setup(
        description=description,
        cost=GpuCostModel(deployment, overhead),
        config=config,
        num_blocks=memory.blocks,
        block_size=memory.block_size,
        max_model_len=longest,
        num_replicas=replicas,
        devices_per_replica=deployment.workers,
        router=router,
        accuracy=describe_accuracy(deployment),
        price=deployment.device.price if price is None else price,
        memory=memory.text,
    )
