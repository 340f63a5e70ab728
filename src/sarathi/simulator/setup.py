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
from sarathi.scheduler import BlockPool, LatencyModel, Scheduler
from sarathi.simulator.cost_model import CostModel, Jitter, Noise
from sarathi.simulator.latency_profile import profile_latency


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
        """Return the latency model that an engine would have fitted at its start."""
        return profile_latency(self.cost, self.config.max_batch_size, self.max_model_len)

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

    def jitter(self, seed: int) -> Jitter | None:
        """Return the noise in the times of a replica's iterations; None where there is none."""
        return None if self.noise is None else self.noise.jitter(seed)


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
