"""The machine that a measurement was made on."""

from __future__ import annotations

import platform
from pathlib import Path

from sarathi.executors.machine import total_memory, usable_cores


def describe_machine() -> str:
    """Processor, cores and memory that may be used, and system of the machine at hand."""
    memory = total_memory() / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{usable_cores()} cores of {_processor()}, {memory:.0f} GiB, {system}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
