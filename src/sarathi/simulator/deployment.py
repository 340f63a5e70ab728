"""A model on devices: how it is split, and on how many nodes."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.errors import SimulationError
from sarathi.models.model_config import ModelConfig
from sarathi.simulator.devices import Device
from sarathi.simulator.simulated_model import SimulatedModel


def split_name(tp: int, pp: int) -> str:
    """Return how a replica is split, such as TP4-PP2."""
    return f"TP{tp}" + (f"-PP{pp}" if pp > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One replica.

    Layers are distributed evenly. Those that remain go one each to the first stages, since the last
    also computes the head. Groups of tensor parallelism stay inside a node where they fit into one,
    and stages follow one another from node to node.
    """

    model: SimulatedModel
    device: Device
    tp: int = 1  # workers that share each layer
    pp: int = 1  # stages, each with a part of the layers
    max_model_len: int = 4096  # tokens of the longest request
    bytes_per_weight: float = 2
    bytes_per_kv: float = 2
    memory_utilization: float = 0.9  # what is left is for the runtime and its libraries
    nodes: int | None = None  # None is as few as possible

    def __post_init__(self) -> None:
        name, model, gpus, tp = self.model.name, self.config, self.device.node.gpus, self.tp
        heads, inner = model.num_heads, model.intermediate_size
        self._check("tp", 1, heads, f" (the heads of {name})")
        for what, number in (("heads", heads), ("intermediate size", inner)):
            self._expect("tp", number % tp == 0, f"a divisor of the {number} {what} of {name}")
        kv_heads = model.num_kv_heads
        self._expect(
            "tp",
            kv_heads % tp == 0 or tp % kv_heads == 0,
            f"a divisor or a multiple of {kv_heads}, the key-value heads",
        )
        self._check("pp", 1, model.num_layers, f" (the layers of {name})")
        self._expect("max_model_len", self.max_model_len >= 1, "at least 1")
        for field, most in ("memory_utilization", 1), ("bytes_per_weight", 8), ("bytes_per_kv", 8):
            self._expect(field, 0 < getattr(self, field) <= most, f"above 0, at most {most}")
        self._expect(
            "tp", tp <= gpus or tp % gpus == 0, f"at most {gpus} (the GPUs of a node) or a multiple"
        )
        if self.nodes is not None:
            most_nodes = self._least_nodes if self.tp_crosses else self.pp
            self._check("nodes", self._least_nodes, most_nodes, " (whole groups each)")

    def _check(self, field: str, least: int, most: int, why: str) -> None:
        self._expect(field, least <= getattr(self, field) <= most, f"{least} to {most}{why}")

    def _expect(self, field: str, holds: bool, expected: str) -> None:
        if not holds:
            raise SimulationError(f"{field} is {getattr(self, field)}, expected {expected}")

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model."""
        return self.model.config

    @property
    def workers(self) -> int:
        return self.tp * self.pp

    @property
    def num_nodes(self) -> int:
        return self._least_nodes if self.nodes is None else self.nodes

    @property
    def price(self) -> float | None:
        """Dollars an hour, where the device has a price."""
        return None if self.device.price is None else self.device.price * self.workers

    @property
    def stage_layers(self) -> tuple[int, ...]:
        each, more = divmod(self.config.num_layers, self.pp)
        return tuple(each + (stage < more) for stage in range(self.pp))

    @property
    def tp_crosses(self) -> bool:
        """Whether an all-reduce leaves the node."""
        return self.tp > self.device.node.gpus

    @property
    def crossings(self) -> int:
        """Of the `pp - 1` boundaries between stages, how many lie between nodes."""
        return self.pp - 1 if self.tp_crosses else self.num_nodes - 1

    @property
    def heads(self) -> int:
        """Query heads of one worker."""
        return self.config.num_heads // self.tp

    @property
    def kv_heads(self) -> int:
        """Key-value heads of one worker; several workers hold the same where there are too few."""
        return max(1, self.config.num_kv_heads // self.tp)

    @property
    def vocab(self) -> int:
        """Rows of the embedding and of the head on one worker."""
        return -(-self.config.vocab_size // self.tp)

    @property
    def _least_nodes(self) -> int:
        gpus = self.device.node.gpus
        if self.tp > gpus:
            return self.pp * (self.tp // gpus)
        return -(-self.pp // (gpus // self.tp))
