"""How long it takes from a command to the first token, by what is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from perf.gpu_check.context import Context
from perf.report import Figure
from sarathi.simulator.simulated_model import config_folder

START_GOAL = 30.0  # seconds
_NOTICEABLE = 0.02  # of a start
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Start:
    """One start in a separate process."""

    seconds: float  # from the command to the first token
    steps: list[tuple[str, float]]  # what is done, and its seconds


def measure_startup(context: Context) -> None:
    """Start twice: with an empty Triton cache, and with the cache that the first start filled.

    Raises:
        RuntimeError: the engine did not give a token.
    """
    name = context.settings.model.name
    path = config_folder(context.settings.model)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        context.progress("starting the engine with an empty Triton cache")
        cold = start(context, path, cache)
        context.data("cold_start", asdict(cold))
        context.figure(
            Figure(f"command to first token, {name}, cold", cold.seconds, "s", START_GOAL)
        )
        for step, seconds in _longest(cold):
            context.figure(Figure(f"  {step}", seconds, "s"))
        if context.deadline.left < 2 * cold.seconds:
            context.note("no time for a start with a warm Triton cache")
            return
        context.progress("starting the engine with a warm Triton cache")
        warm = start(context, path, cache)
        context.data("warm_start", asdict(warm))
        context.figure(Figure("  the same with a warm Triton cache", warm.seconds, "s"))


def start(context: Context, path: Path, cache: Path) -> Start:
    """Run `first_token` in a process and read its times."""
    command = [
        *(sys.executable, "-m", "perf.gpu_check.first_token", str(path)),
        *(context.settings.name, context.device.type),
    ]
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(1.0, context.deadline.left),
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no first token within {error.timeout:.0f} s") from None
    context.append_log(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"the engine gave no token: {last}")
    return read_start(done.stdout, began)


def read_start(output: str, began: float) -> Start:
    """Turn the times at which steps begin into how long they take.

    Args:
        output: JSON lines of a name and a time of `time.monotonic`, the last when the first token
            was there; other lines are ignored. Names are whatever the engine reports.
        began: when the process was started.
    """
    marks = list(_marks(output))
    names = ["interpreter and imports", *(name for name, _ in marks[:-1])]
    times = [began, *(at for _, at in marks)]
    steps = [
        (name, after - before)
        for name, before, after in zip(names, times[:-1], times[1:], strict=True)
    ]
    return Start(times[-1] - began, steps)


def _marks(output: str) -> Iterator[tuple[str, float]]:
    for line in output.splitlines():
        with suppress(ValueError):
            match json.loads(line):
                case [str(name), float(at)]:
                    yield name, at


def _longest(start: Start) -> list[tuple[str, float]]:
    """The steps that take a noticeable share of a start, then all others together."""
    long = [step for step in start.steps if step[1] >= _NOTICEABLE * start.seconds]
    remaining = start.seconds - sum(seconds for _, seconds in long)
    return [*((_short(name), seconds) for name, seconds in long), ("everything else", remaining)]


def _short(step: str, most: int = 48) -> str:
    return step if len(step) <= most else f"{step[: most - 3]}..."
