"""What was measured of this machine: its file, and the setup that simulates it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from sarathi.engine.config import EngineConfig
from sarathi.engine.scheduler_factory import TYPICAL_DECODES
from sarathi.errors import SimulationError
from sarathi.simulator.setup import Setup, engine_options
from sarathi.simulator.this_cpu.iteration_fit import FitError, MeasuredNoise
from sarathi.system.cache_folder import cache_folder, cached_file, replace_file

NOTEWORTHY = 0.05  # share of the processors that other programs may have
_FORMAT = 1  # increased when older files can no longer be read


class MeasuredMachine(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a machine, as it is kept in a file."""

    format: int = _FORMAT
    model: str  # as it was typed
    machine: str
    measured: str  # date
    num_blocks: int
    block_size: int
    max_model_len: int
    noise: MeasuredNoise  # and the cost
    error: FitError
    others: float | None = None  # share of the processors that other programs had; None: unknown


def machine_path(model: str, new: bool = False) -> Path:
    """Return where to read a model's file from, unless the user says otherwise.

    Args:
        new: where to write it; files that were delivered with the machine may be read-only.

    Raises:
        ModelError: as `cache_folder`.
    """
    name = re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-.") or "model"
    file = f"this-cpu/{name}.json"
    return cache_folder() / file if new else cached_file(file)


def save_machine(machine: MeasuredMachine, path: Path) -> None:
    """Write the file of a machine.

    Raises:
        SimulationError: it cannot be written.
    """
    try:
        replace_file(path, msgspec.json.encode(machine))
    except OSError as error:
        raise SimulationError(f"{path} cannot be written: {error.strerror or error}") from None


def load_machine(path: Path, model: str, machine: str) -> MeasuredMachine:
    """Read the file of a machine.

    Args:
        machine: this machine, as `describe_machine` returns it.

    Raises:
        SimulationError: there is none, or it is of another model or machine.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=MeasuredMachine)
    except FileNotFoundError:
        raise SimulationError(
            f"{model} was not measured on this machine yet: measure it with "
            f"`sarathi calibrate {model}`, which takes some minutes"
        ) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SimulationError(f"{path} cannot be read: {error}") from None
    if found.format != _FORMAT:
        raise SimulationError(
            f"{path} has format {found.format}, this version reads {_FORMAT}: measure again"
        )
    for what, had, wanted in (("model", found.model, model), ("machine", found.machine, machine)):
        if had != wanted:
            raise SimulationError(f"{path} is of the {what} {had}, not of {wanted}: measure again")
    return found


def cpu_setup(
    machine: MeasuredMachine,
    config: EngineConfig,
    *,
    max_model_len: int | None = None,
    price: float | None = None,
) -> Setup:
    """Return a setup of the machine that was measured.

    Args:
        max_model_len: tokens; None: as it was measured.

    Raises:
        SimulationError: a request of that length would not fit into the KV blocks.
    """
    longest = machine.max_model_len if max_model_len is None else max_model_len
    blocks = f"{machine.num_blocks} KV blocks of {machine.block_size} tokens"
    most = machine.num_blocks * machine.block_size
    if longest > most:
        raise SimulationError(
            f"max_model_len is {longest}, expected at most {most}: the server that was measured "
            f"had {blocks}"
        )
    accuracy = f"iterations: {machine.error}"
    if machine.others is not None and machine.others >= NOTEWORTHY:
        accuracy += (
            f"; other programs had {machine.others:.0%} of the processors while it was measured"
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
        accuracy=accuracy,
        memory=f"{blocks}, as measured",
        price=price,
        noise=machine.noise,
        typical_decodes=TYPICAL_DECODES,  # the engine's own
    )
