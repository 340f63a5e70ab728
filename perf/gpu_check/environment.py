"""Where a check runs: the GPU and the versions of everything."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sarathi import __version__

_ROOT = Path(__file__).parents[2]
_TIMEOUT = 10.0  # seconds, of a command


def describe(device: torch.device) -> dict[str, Any]:
    """Return name, capability and versions; None for what is not known."""
    found: dict[str, Any] = {
        "device": device.type,
        "gpu": None,
        "capability": None,
        "memory_bytes": None,
        "multiprocessors": None,
        "driver": None,
        "cuda": torch.version.cuda,
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "platform": platform.platform(),
        "sarathi": __version__,
        "commit": _output("git", "-C", str(_ROOT), "rev-parse", "HEAD"),
        "modified": None,
        "command": sys.argv,
    }
    if found["commit"] is not None:
        found["modified"] = bool(_output("git", "-C", str(_ROOT), "status", "--porcelain"))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
        }
    return found


def _driver() -> str | None:
    output = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return output.splitlines()[0].strip() if output else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What a command prints; None where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
