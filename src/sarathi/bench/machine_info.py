"""The machine that a measurement was made on."""

from __future__ import annotations

import platform

from sarathi.system.machine import processor_name, total_memory, usable_cores


def describe_machine() -> str:
    """Processor, cores and memory that may be used, and system of the machine at hand."""
    memory = total_memory() / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{usable_cores()} cores of {processor_name()}, {memory:.0f} GiB, {system}"
