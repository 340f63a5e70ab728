"""The machine at hand, to be simulated."""

from __future__ import annotations

from sarathi.engine.config import EngineConfig
from sarathi.engine.scheduler_factory import TYPICAL_DECODES
from sarathi.errors import SimulationError
from sarathi.simulator.setup import Setup, engine_options
from sarathi.simulator.this_cpu.machine_file import MeasuredMachine

NOTEWORTHY = 0.05  # share of the processors that others may have


def cpu_setup(
    machine: MeasuredMachine,
    config: EngineConfig,
    *,
    max_model_len: int | None = None,
    price: float | None = None,
) -> Setup:
    """
    Args:
        max_model_len: tokens; None: as it was measured.

    Raises:
        SimulationError: a request of that length would not fit into the KV blocks.
    """
    longest = machine.max_model_len if max_model_len is None else max_model_len
    room = machine.num_blocks * machine.block_size
    if longest > room:
        raise SimulationError(
            f"max_model_len is {longest}, expected at most {room}: the server that was measured "
            f"had {machine.num_blocks} KV blocks of {machine.block_size} tokens"
        )
    return Setup(
        description={
            "model": machine.model,
            "device": "this-cpu",
            "machine": machine.machine,
            **engine_options(config, longest),
        },
        cost=machine.noise.cost,
        config=config,
        num_blocks=machine.num_blocks,
        block_size=machine.block_size,
        max_model_len=longest,
        num_replicas=1,
        devices_per_replica=1,
        router="round_robin",
        accuracy=f"iterations: {machine.error}{_disturbance(machine)}",
        memory=f"{machine.num_blocks} KV blocks of {machine.block_size} tokens, as measured",
        price=price,
        noise=machine.noise,
        typical_decodes=TYPICAL_DECODES,  # the engine's own,
    )


def _disturbance(machine: MeasuredMachine) -> str:
    """What to say of others that computed while it was measured."""
    if machine.others is None or machine.others < NOTEWORTHY:
        return ""
    return f"; others had {machine.others:.0%} of the processors while it was measured"
