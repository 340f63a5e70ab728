"""`sarathi plan`: the cheapest hardware that serves a load within latency targets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, cast

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sarathi.cli import measurement
from sarathi.cli.simulation import (
    HardwareOptions,
    ModelName,
    SimulationOptions,
    model_shape,
    progress_bar,
    simulated_load,
)
from sarathi.engine.config import EngineConfig
from sarathi.errors import UsageError
from sarathi.options import Count, Option, OptionGroup, Seconds, TextForm, parser_of
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.plan import replica_sizing
from sarathi.simulator.plan.plan_report import plan_fields, print_plan, write_plan
from sarathi.simulator.plan.planner import make_plan
from sarathi.simulator.setup import Setup

_parse_number = parser_of(Count)
_parse_dollars = parser_of(Annotated[float, Meta(gt=0, le=1e6)])
_parse_factor = parser_of(Annotated[float, Meta(ge=1, le=1000)])
_ENGINE = "simulated engine"


def _parse_prices(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, colon, given = part.strip().partition(":")
        device = DEVICES.get(name)
        if device is None:
            raise ValueError(
                f"{part!r} is no device, expected NAME or NAME:DOLLARS_PER_HOUR with one of "
                f"{', '.join(DEVICES)}"
            )
        if name in found:
            raise ValueError(f"{text!r} has {name} twice")
        if not colon and device.price is None:
            raise ValueError(
                f"{part!r} has no price, and there is no default for {name}: expected "
                f"{name}:DOLLARS_PER_HOUR, such as {name}:1.5"
            )
        try:
            found[name] = cast("float", _parse_dollars(given) if colon else device.price)
        except ValueError:
            raise ValueError(
                f"the price in {part!r} is {given!r}, expected dollars an hour above 0 and up to "
                "1000000, as in NAME:2.21"
            ) from None
    return found


def _parse_numbers(text: str) -> list[int]:
    return list(dict.fromkeys(_parse_number(part.strip()) for part in text.split(",")))


def _parse_budgets(text: str) -> list[int | None]:
    parts = [part.strip() for part in text.split(",")]
    budgets = (None if part == replica_sizing.DERIVED else _parse_number(part) for part in parts)
    return list(dict.fromkeys(budgets))


def _parse_exploration(text: str) -> float:
    try:
        return math.inf if text.strip() == "all" else cast("float", _parse_factor(text))
    except ValueError:
        raise ValueError(f"{text!r} is neither a number from 1 to 1000 nor `all`") from None


Prices = Annotated[
    dict[str, float], TextForm(_parse_prices, "NAME[:DOLLARS_PER_HOUR],...")
]  # dollars an hour by the name of a device
Numbers = Annotated[list[int], TextForm(_parse_numbers, "N,...")]
# None stands for a budget that follows from the latency target.
Budgets = Annotated[list[int | None], TextForm(_parse_budgets, "N,...")]


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    model: ModelName
    rate: Annotated[
        measurement.Rate, Option("requests per second, of all replicas together", metavar="N")
    ]
    tbt_target: Annotated[
        Seconds,
        Option(
            "P99 of the time between tokens must meet it, such as 100ms; in any case, the "
            "scheduling delay must be at most 2s in the median and 4s at P90"
        ),
    ]
    ttft_target: Annotated[
        Seconds | None,
        Option("P90 of the time to the first token must meet it, too", default="any"),
    ] = None
    devices: Annotated[
        Prices,
        Option(
            "what can be rented, and the price of one device, such as a100:2.21,h100,l40s:0.8; "
            "some have a default price"
        ),
    ]
    requests_per_point: Annotated[Count, measurement.REQUESTS_PER_POINT] = 512
    tp: Annotated[
        Numbers, Option("devices that share each layer", default="1,2,4,8", group="candidates")
    ] = msgspec.field(default_factory=lambda: [1, 2, 4, 8])
    pp: Annotated[Numbers, Option("pipeline stages", default="1,2")] = msgspec.field(
        default_factory=lambda: [1, 2]
    )
    max_devices: Annotated[Count, Option("most devices of one replica")] = 16
    token_budgets: Annotated[
        Budgets,
        Option(
            "tokens of one iteration, such as 512,2048; `target` among them stands for what "
            "--tbt-target leaves in each iteration",
            default=replica_sizing.DERIVED,
        ),
    ] = msgspec.field(default_factory=lambda: [None])
    explore: Annotated[
        float,
        TextForm(_parse_exploration, "X"),
        Option(
            "try what may cost up to X times as much as the cheapest plan, to see what more money "
            "buys; 1 finds the cheapest soonest, `all` leaves nothing out"
        ),
    ] = 1.5
    hardware: Annotated[
        HardwareOptions,
        OptionGroup(
            only=("router", "overhead", "memory_utilization", "weight_bits"), group=_ENGINE
        ),
    ]
    engine: Annotated[
        EngineConfig, OptionGroup(only=("max_batch_size", "max_model_len"), group=_ENGINE)
    ]
    workload: measurement.WorkloadOptions
    output: measurement.OutputOptions

    def setup(self, layout: replica_sizing.DeviceLayout) -> Setup:
        """Return one replica, as `sarathi simulate` would make it from the same options."""
        price = self.devices[layout.device]
        simulation = SimulationOptions(
            hardware=replace(
                self.hardware, device=layout.device, tp=layout.tp, pp=layout.pp, price=price
            ),
            engine=replace(self.engine, token_budget=layout.token_budget),
        )
        return simulation.setup(self.model, self.workload.workload, self.tbt_target)


def run(options: PlanOptions) -> int:
    """Make a plan; return 1 where nothing meets the targets."""
    output = options.output
    if options.workload.arrivals == "trace":
        raise UsageError("--arrivals trace cannot be planned for: a trace has one rate")
    output.check()
    # Checked here: an unknown model would be reported as one that fits nowhere.
    model = model_shape(options.model).name
    targets = replica_sizing.plan_targets(options.tbt_target, options.ttft_target)
    load = simulated_load(options.workload, options.requests_per_point)
    settings = replica_sizing.PlanSettings(options.rate, targets, load)
    wanted = replica_sizing.layouts(
        options.devices, options.tp, options.pp, options.token_budgets, options.max_devices
    )
    if not wanted:
        raise UsageError(
            f"--max-devices {options.max_devices} is fewer than any product of --tp and --pp"
        )
    fit, unfit = replica_sizing.candidates(wanted, options.devices, options.setup)
    costs: list[float] = []
    with progress_bar(output.json) as bar:
        task = bar.add_task("plan", total=len(fit))
        seen: set[replica_sizing.DeviceLayout] = set()

        def on_candidate(one: replica_sizing.PlanChoice | replica_sizing.Rejected) -> None:
            if isinstance(one, replica_sizing.PlanChoice):
                costs.append(one.cost)
            seen.add(one.layout)
            best = f"plan: ${min(costs):.2f} an hour so far" if costs else "plan"
            bar.update(task, description=best, completed=len(seen))

        router = options.hardware.router
        planned = make_plan(
            fit, settings, explore=options.explore, router=router, on_candidate=on_candidate
        )
    planned.rejected.extend(unfit)
    if output.json:
        measurement.print_json({"model": model, **plan_fields(planned, settings)})
    else:
        print_plan(planned, settings)
    if output.report is not None:
        files = write_plan(Path(output.report), planned, settings, model)
        measurement.Screen(quiet=output.json).log(f"the report is {files[0]}")
    return 0 if planned.choices else 1
