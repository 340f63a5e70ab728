"""Arguments that describe hardware and engines to simulate."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any

from sarathi.cli.engine_options import positive, share, utf8
from sarathi.engine.config import (
    DEFAULT_IN_ORDER_SHARE,
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_MIN_PREFILL_SHARE,
)
from sarathi.scheduler import POLICIES
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.engine_overhead import OVERHEADS
from sarathi.simulator.routing import ROUTERS

THIS_CPU = "this-cpu"


@dataclass(frozen=True)
class SimulationOptions:
    """The defaults; None on the command line is none of them."""

    device: str | None = None
    tp: int = 1
    pp: int = 1
    replicas: int = 1
    nodes: int | None = None
    router: str = "round_robin"
    overhead: str = "sarathi"
    memory_utilization: float = 0.9
    price: float | None = None
    policy: str = "sarathi"
    token_budget: int | None = None
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    max_model_len: int | None = None
    min_prefill_share: float = DEFAULT_MIN_PREFILL_SHARE
    in_order_share: float = DEFAULT_IN_ORDER_SHARE
    order: str = "fcfs"


def add_simulation_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `SimulationOptions`, None where they are not given."""
    hardware = parser.add_argument_group("simulated hardware")
    hardware.add_argument(
        "--device",
        type=utf8,
        metavar="NAME",
        help=f"{', '.join(DEVICES)}, or {THIS_CPU} as `sarathi calibrate` has measured it",
    )
    hardware.add_argument(
        "--tp", type=positive, metavar="N", help="devices that share each layer (default: 1)"
    )
    hardware.add_argument("--pp", type=positive, metavar="N", help="pipeline stages (default: 1)")
    hardware.add_argument(
        "--replicas", type=positive, metavar="N", help="engines behind a router (default: 1)"
    )
    hardware.add_argument(
        "--nodes",
        type=positive,
        metavar="N",
        help="machines that the stages of a replica are spread over (default: as few as possible)",
    )
    hardware.add_argument(
        "--router",
        choices=ROUTERS,
        help="which replica gets a request (default: round_robin)",
    )
    hardware.add_argument(
        "--overhead",
        choices=OVERHEADS,
        help="the engine whose own time is added to each iteration (default: sarathi)",
    )
    hardware.add_argument(
        "--memory-utilization",
        type=share,
        metavar="SHARE",
        help="of a device's memory, for weights, activations and KV blocks (default: 0.9)",
    )
    hardware.add_argument(
        "--price",
        type=price,
        metavar="DOLLARS",
        help="of a device, an hour, for the cost of tokens",
    )
    engine = parser.add_argument_group("simulated engine")
    engine.add_argument(
        "--policy", choices=POLICIES, help="how batches are put together (default: sarathi)"
    )
    engine.add_argument(
        "--token-budget",
        type=positive,
        metavar="N",
        help="tokens of one iteration, instead of a latency target",
    )
    engine.add_argument(
        "--max-batch-size",
        type=positive,
        metavar="N",
        help=f"requests that run at the same time (default: {DEFAULT_MAX_BATCH_SIZE})",
    )
    engine.add_argument(
        "--max-model-len",
        type=positive,
        metavar="TOKENS",
        help="longest prompt and output together (default: that of the dataset of a preset, else "
        "the model's)",
    )
    engine.add_argument(
        "--min-prefill-share",
        type=share,
        metavar="SHARE",
        help=f"of each iteration, for prompts (default: {DEFAULT_MIN_PREFILL_SHARE})",
    )
    engine.add_argument(
        "--in-order-share",
        type=share,
        metavar="SHARE",
        help=f"of the work on prompts, in order (default: {DEFAULT_IN_ORDER_SHARE})",
    )
    engine.add_argument(
        "--order", choices=("fcfs", "slack"), help="whose prompt is first (default: fcfs)"
    )


def price(text: str) -> float:
    """An argparse type: dollars an hour."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a price from 0 to 1000000")
    return value


def given_simulation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of `SimulationOptions` that the user has typed."""
    names = [option.name for option in fields(SimulationOptions)]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
