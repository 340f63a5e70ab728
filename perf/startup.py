"""Start-up time of a server, and the peak memory of its engine.

The command is started and a token is requested until it answers; the memory of its engine process
is read from /proc.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perf.report import MODEL, Figure, rounds, show
from perf.server import Server
from sarathi.backends.openvino.openvino_executor import BLOCK_SIZE
from sarathi.engine.startup.profile import NUM_BLOCKS
from sarathi.models.decoder import whole_model
from sarathi.models.locate import locate
from sarathi.models.model import open_model
from sarathi.models.tensor_layout import expected_shapes

SECONDS = 6.0  # from the command to the first token answered
WEIGHTS = 1.5  # times the weights as served may be in memory while they are loaded
_ROUNDS = 3
_CONFIGURATIONS: dict[str, tuple[list[str], int]] = {  # options, and bytes of a weight
    "default precision": ([], 2),
    "--precision f32": (["--precision", "f32"], 4),
}
# The memory of the engine's libraries without a model: everything is imported, the plugin is loaded
# and has compiled and run a small model.
_LIBRARIES = """
import numpy as np, openvino as ov
from openvino import opset13 as op
import sarathi.engine.process
x = op.parameter([-1, 64], np.float32)
y = op.matmul(x, op.constant(np.ones((64, 64), np.float32)), False, True)
model = ov.Core().compile_model(ov.Model([op.result(y)], [x], "small"), "CPU")
model.create_infer_request().infer([np.ones((2, 64), np.float32)])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@dataclass(frozen=True)
class Start:
    """One start of a server."""

    seconds: float
    peak: int  # bytes of the engine process: the largest resident size
    resident: int  # bytes, when the first token was answered


def start(options: Sequence[str]) -> Start:
    """Start a server and wait for its first token."""
    with Server(options) as server:
        seconds = server.wait_for_token() - server.started
        assert server.engine_pid is not None
        return Start(
            seconds, _status(server.engine_pid, "VmHWM"), _status(server.engine_pid, "VmRSS")
        )


def main() -> None:
    """Measure and print start-up time and memory."""
    if not sys.platform.startswith("linux"):
        print("Start-up: the memory of a process can only be read on Linux")
        return
    starts: dict[str, list[Start]] = {name: [] for name in _CONFIGURATIONS}
    for number in rounds(range(_ROUNDS + 1), "starting servers"):
        for name, (options, _) in _CONFIGURATIONS.items():
            one = start(options)
            if number:  # the first fills the page cache
                starts[name].append(one)
    libraries = 1024 * int(subprocess.check_output([sys.executable, "-c", _LIBRARIES], text=True))
    model = open_model(locate(MODEL).path)
    config = model.config
    shapes = expected_shapes(config, whole_model(config))
    num_weights = sum(int(np.prod(shape)) for shape in shapes.values())
    for name, (_, width) in _CONFIGURATIONS.items():
        weights = num_weights * width
        token = 2 * width * config.num_layers * config.num_kv_heads * config.head_dim
        # Self-check and prompt write to a few of the blocks that profiling writes to.
        written = NUM_BLOCKS * BLOCK_SIZE * token
        allowed = WEIGHTS * weights + written + libraries
        peak = float(np.median([one.peak for one in starts[name]]))
        show(
            f"Start of `sarathi serve {MODEL}`, {name}",
            [
                Figure(
                    "command to first token, median",
                    float(np.median([one.seconds for one in starts[name]])),
                    "s",
                    SECONDS if name == "default precision" else None,
                ),
                Figure("  slowest", max(one.seconds for one in starts[name]), "s"),
                Figure("peak memory of the engine", peak / 1e6, "MB", allowed / 1e6),
                Figure(f"  {WEIGHTS} x weights as served", WEIGHTS * weights / 1e6, "MB"),
                Figure(f"  KV cache written to, {NUM_BLOCKS} blocks", written / 1e6, "MB"),
                Figure("  libraries without a model", libraries / 1e6, "MB"),
                Figure(
                    "  peak without libraries and KV, times the weights",
                    (peak - libraries - written) / weights,
                ),
                Figure(
                    "memory once it answers",
                    float(np.median([one.resident for one in starts[name]])) / 1e6,
                    "MB",
                ),
            ],
        )


def _status(pid: int, field: str) -> int:
    """Return a field of /proc/PID/status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


if __name__ == "__main__":
    main()
