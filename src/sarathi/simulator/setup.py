"""What is simulated: the cost of iterations on some hardware, and the engines that run on it."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from sarathi.engine.config import EngineConfig
from sarathi.engine.scheduler_factory import (
    PAPER_DECODES,
    TypicalDecodes,
    derived_target,
    make_budget,
    make_scheduler,
)
from sarathi.scheduler import BlockPool, LatencyModel, Scheduler, Work
from sarathi.simulator.cost_model import BatchShape, CostModel, Noise, stage_seconds
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.engine_overhead import OVERHEADS, EngineOverhead
from sarathi.simulator.gpu.gpu_cost import GpuCostModel
from sarathi.simulator.known_error import describe_accuracy
from sarathi.simulator.memory_plan import kv_blocks

# Iterations that the latency model is fitted to: tokens and requests.
_CHUNKS = (1, 16, 64, 128, 256, 512, 1024, 2048)
_DECODES = (1, 8, 32, 64, 128)
_DEPTHS = (0.0, 0.25, 0.5)  # of the longest request


@dataclass(frozen=True)
class Setup:
    """Equal replicas."""

    description: dict[str, str]  # as options are written: model, device, tp and so on
    cost: CostModel
    config: EngineConfig
    num_blocks: int
    block_size: int
    max_model_len: int
    num_replicas: int
    devices_per_replica: int
    router: str  # a key of `routing.ROUTERS`
    accuracy: str  # how far the cost model is off, in a sentence
    memory: str = ""  # the arithmetic behind `num_blocks`
    price: float | None = None  # dollars an hour, of a device
    noise: Noise | None = None  # in the times of iterations
    # From which a target follows where none is stated: the paper's.
    typical_decodes: TypicalDecodes = PAPER_DECODES

    @property
    def learns(self) -> bool:
        """Whether any decision depends on what the latency model has observed."""
        return self.config.latency_budget or self.config.order == "slack"

    def profile(self) -> LatencyModel:
        """Return a model fitted to iterations of many kinds, as by an engine at its start.

        With several pipeline stages it predicts one stage, since each has its part of the time
        between two tokens.
        """
        cost, longest = self.cost, self.max_model_len
        shapes: list[BatchShape] = []
        for depth in _DEPTHS:
            past = int(depth * longest)
            for length in _CHUNKS:
                if past + length <= longest:
                    shapes.append(BatchShape.make(chunks=((past, length),)))
            for decodes in {min(number, self.config.max_batch_size) for number in _DECODES}:
                shapes.append(BatchShape.make(decodes, max(past, 1)))
                for length in (128, 512):
                    if past + length <= longest:
                        shapes.append(BatchShape.make(decodes, max(past, 1), ((past, length),)))
        works = [Work(s.tokens, s.attention, s.context, s.samples) for s in shapes]
        times = [stage_seconds(cost.overhead(s), cost.stages(s), cost.hop(s)) for s in shapes]
        return LatencyModel.fit(list(zip(works, times, strict=True)))

    def scheduler(self, prefix_caching: bool) -> Scheduler:
        """Return the scheduler of a new replica.

        Args:
            prefix_caching: whether prompts have common beginnings; if not, looking for them takes
                time and finds nothing.
        """
        config, model, stages = self.config, self.profile(), self.cost.num_stages
        typical = self.typical_decodes.fitting(config.max_batch_size, self.max_model_len)
        target = derived_target(stages * model.predict(typical.work))
        return make_scheduler(
            config if prefix_caching else replace(config, prefix_caching=False),
            make_budget(config, model, target.seconds, stages),
            model,
            BlockPool(self.num_blocks, self.block_size),
            self.max_model_len,
            stages,
        )


def engine_options(config: EngineConfig, max_model_len: int) -> dict[str, str]:
    """Return the options of an engine as they are typed, for descriptions of a setup."""
    options = {
        "policy": config.policy,
        "max-batch-size": str(config.max_batch_size),
        "max-model-len": str(max_model_len),
    }
    if config.fixed_budget is not None:
        options["token-budget"] = str(config.fixed_budget)
    if config.latency_budget and config.tbt_target is not None:
        options["tbt-target"] = f"{config.tbt_target:g}"
    if config.order != "fcfs":
        options["order"] = config.order
    return options


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
        deployment, config.max_step_tokens(longest), max_sequences=config.max_batch_size
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
