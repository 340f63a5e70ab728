"""What the commands that simulate share: options, the simulated engine, and its load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sarathi.bench.results import describe_machine
from sarathi.bench.workload.presets import PRESETS
from sarathi.bench.workload.token_counter import LocalTokens
from sarathi.bench.workload.workload import Load
from sarathi.cli.measurement import WorkloadOptions
from sarathi.engine.config import EngineConfig
from sarathi.errors import SimulationError, UsageError
from sarathi.options import Count, Option, OptionGroup, Share, changed
from sarathi.simulator.cost_model import OVERHEADS
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.setup import Setup, gpu_setup
from sarathi.simulator.simulated_model import MODELS, SimulatedModel
from sarathi.simulator.simulation import ROUTERS
from sarathi.simulator.this_cpu.measured_machine import cpu_setup, load_machine, machine_path

THIS_CPU = "this-cpu"
_UNKNOWN_LENGTH = 8192  # tokens, of models that do not state theirs
# Options of an engine that have the same meaning in the simulator.
_SHARED = OptionGroup(
    only=(
        "max_model_len",
        "token_budget",
        "min_prefill_share",
        "in_order_share",
        "max_batch_size",
        "policy",
    ),
    group="simulated engine",
)

ModelName = Annotated[
    str, Option("a built-in model such as mistral-7b, or the path of a config.json", metavar="NAME")
]


class HardwareOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The hardware to simulate, and what an engine on it has in the simulator alone."""

    device: Annotated[
        str | None,
        Option(
            f"{', '.join(DEVICES)}, or {THIS_CPU} as `sarathi calibrate` has measured it",
            group="simulated hardware",
            metavar="NAME",
        ),
    ] = None
    tp: Annotated[Count, Option("devices that share each layer")] = 1
    pp: Annotated[Count, Option("pipeline stages")] = 1
    replicas: Annotated[Count, Option("engines behind a router")] = 1
    nodes: Annotated[
        Count | None,
        Option(
            "machines that the stages of a replica are spread over", default="as few as possible"
        ),
    ] = None
    router: Annotated[str, Option("which replica gets a request", choices=ROUTERS)] = "round_robin"
    overhead: Annotated[
        str, Option("the engine whose own time is added to each iteration", choices=OVERHEADS)
    ] = "sarathi"
    memory_utilization: Annotated[
        Share,
        Option("part of a device's memory for weights, activations and KV blocks", metavar="SHARE"),
    ] = 0.9
    weight_bits: Annotated[
        Annotated[float, Meta(gt=0, le=64)] | None,
        Option(
            "of memory that a weight takes, scales included, such as 4.25; products are priced by "
            "what they read, and compute in 16 bits",
            default="16",
            metavar="BITS",
        ),
    ] = None
    price: Annotated[
        Annotated[float, Meta(ge=0, le=1e6)] | None,
        Option("of a device an hour, for the cost of tokens", metavar="DOLLARS"),
    ] = None
    order: Annotated[
        Literal["fcfs", "slack"], Option("whose prompt is first", group="simulated engine")
    ] = "fcfs"


class SimulationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """An engine on a device."""

    hardware: HardwareOptions
    engine: Annotated[EngineConfig, _SHARED]

    def setup(
        self,
        model_name: str | None,
        workload: str | None,
        tbt_target: float | None,
        ttft_target: float | None = None,
    ) -> Setup:
        """Return what is simulated.

        Args:
            workload: its name, which may give the model's length.
            tbt_target: seconds, of the engine where it has no token budget.
            ttft_target: seconds, for `--order slack`.

        Raises:
            UsageError: the model or the device is not named.
            SimulationError: they are unknown, or do not go together.
            ConfigError: options of the engine do not go together.
        """
        options, engine = self.hardware, self.engine
        if model_name is None:
            raise UsageError(f"--model is missing: {', '.join(MODELS)}, or a config.json")
        if options.device is None:
            raise UsageError(f"--device is missing: {', '.join(DEVICES)}")
        if ttft_target is None or options.order != "slack":
            ttft_target = engine.ttft_target
        config = msgspec.structs.replace(
            engine,
            max_model_len=None,
            tbt_target=tbt_target if engine.latency_budget else None,
            ttft_target=ttft_target,
            order=options.order,
        )
        if options.device == THIS_CPU:
            return _this_cpu(model_name, options, config, engine.max_model_len)
        if options.device not in DEVICES:
            raise SimulationError(
                f"device is {options.device}, expected one of {', '.join(DEVICES)}"
            )
        model = model_shape(model_name)
        if model.quantised and options.weight_bits is None:
            raise SimulationError(
                f"the checkpoint of {model.name} is quantised: give --weight-bits, such as 4.25 "
                "for 4 bits in groups of 128 with a scale and a zero point"
            )
        deployment = Deployment(
            model=model,
            device=DEVICES[options.device],
            tp=options.tp,
            pp=options.pp,
            nodes=options.nodes,
            max_model_len=engine.max_model_len or _longest(workload, model),
            memory_utilization=options.memory_utilization,
            bytes_per_weight=(options.weight_bits or 16) / 8,
        )
        return gpu_setup(
            deployment,
            config,
            overhead=OVERHEADS[options.overhead],
            replicas=options.replicas,
            router=options.router,
            price=options.price,
        )


def _this_cpu(
    model: str, options: HardwareOptions, config: EngineConfig, max_model_len: int | None
) -> Setup:
    for name in ("tp", "pp", "replicas"):
        value = getattr(options, name)
        if value != 1:
            raise SimulationError(f"{name} is {value}, expected 1: {THIS_CPU} is one machine")
    for option in changed(options):
        if option not in ("--device", "--price", "--order"):
            raise SimulationError(
                f"{option} has no effect on {THIS_CPU}: the measurement includes it"
            )
    machine = load_machine(machine_path(model), model, describe_machine())
    return cpu_setup(machine, config, max_model_len=max_model_len, price=options.price)


def model_shape(name: str) -> SimulatedModel:
    """Return the shape of a built-in model or a config.json; raise SimulationError for neither."""
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    if not (path / "config.json" if path.is_dir() else path).is_file():
        raise SimulationError(
            f"model is {name}, expected one of {', '.join(MODELS)}, or the path of a config.json"
        )
    return SimulatedModel.read(path)


def _longest(workload: str | None, model: SimulatedModel) -> int:
    if workload in PRESETS:
        return PRESETS[workload].max_total
    return model.config.max_position or _UNKNOWN_LENGTH


def simulated_load(options: WorkloadOptions, num_requests: int) -> Load:
    """Return what is sent; raises as `WorkloadOptions.build`."""
    tokens = None if options.tokenizer is None else LocalTokens(options.tokenizer, False)
    return Load(options.build(tokens), num_requests, options.warm_up, options.seed)


def progress_bar(quiet: bool) -> Progress:
    """Return a bar on standard error, which shows nothing where that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


def default_label(description: dict[str, str]) -> str:
    """Return the name of a simulated run in reports."""
    return " ".join(description[part] for part in ("model", "device", "policy"))
