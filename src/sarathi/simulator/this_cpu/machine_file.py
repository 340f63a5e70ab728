"""The file that keeps what was measured of this machine."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from sarathi.errors import SimulationError
from sarathi.simulator.this_cpu.iteration_fit import FitError
from sarathi.simulator.this_cpu.measured_cost import MeasuredNoise
from sarathi.system.cache_folder import cache_folder, cached_file

_FORMAT = 1  # goes up when files of before can no longer be read


class MeasuredMachine(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a machine."""

    format: int = _FORMAT
    model: str  # as it was typed
    machine: str
    measured: str  # date
    num_blocks: int
    block_size: int
    max_model_len: int
    noise: MeasuredNoise  # and the cost
    error: FitError
    others: float | None = None  # share of the processors that others had; None: not known


def machine_path(model: str) -> Path:
    """Where to read a model's file from, unless the user says otherwise.

    Raises:
        ModelError: as `cache_folder`.
    """
    return cached_file(_name(model))


def new_machine_path(model: str) -> Path:
    """Where to write it, which differs where what was delivered with the machine is read-only.

    Raises:
        ModelError: as `cache_folder`.
    """
    return cache_folder() / _name(model)


def _name(model: str) -> str:
    name = re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-.") or "model"
    return f"this-cpu/{name}.json"


def save_machine(machine: MeasuredMachine, path: Path) -> None:
    """
    Raises:
        SimulationError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.encode(machine))
        partial.replace(path)
    except OSError as error:
        raise SimulationError(f"{path} cannot be written: {error.strerror or error}") from None


def load_machine(path: Path, model: str, machine: str) -> MeasuredMachine:
    """
    Args:
        machine: the one at hand, as `describe_machine` has it.

    Raises:
        SimulationError: there is none, or it is of another model or machine.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=MeasuredMachine)
    except FileNotFoundError:
        raise SimulationError(
            f"nothing is known of {model} on this machine: measure it with "
            f"`sarathi calibrate {model}`, which takes some minutes"
        ) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SimulationError(f"{path} cannot be read: {error}") from None
    if found.format != _FORMAT:
        raise SimulationError(
            f"{path} has format {found.format}, this version reads {_FORMAT}: measure anew"
        )
    for what, had, wanted in (("model", found.model, model), ("machine", found.machine, machine)):
        if had != wanted:
            raise SimulationError(f"{path} is of the {what} {had}, not of {wanted}: measure anew")
    return found
