"""From the arguments of the commands that simulate to what the simulator takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sarathi.bench.capacity.verdict import CapacityTargets, Verdict
from sarathi.bench.machine_info import describe_machine
from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import Run
from sarathi.bench.workload.presets import PRESETS
from sarathi.bench.workload.token_counter import LocalTokens
from sarathi.cli.load_options import SearchOptions, given_search_options
from sarathi.cli.measuring import Screen, workload_of
from sarathi.cli.simulation_options import THIS_CPU, SimulationOptions, given_simulation_options
from sarathi.engine.config import DEFAULT_TTFT_TARGET, EngineConfig
from sarathi.errors import SimulationError, UsageError
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.engine_overhead import OVERHEADS
from sarathi.simulator.gpu_setup import gpu_setup
from sarathi.simulator.published_models import MODELS
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulated_capacity import SimulatedSearch, find_capacity
from sarathi.simulator.simulated_model import SimulatedModel
from sarathi.simulator.simulated_run import SimulatedLoad
from sarathi.simulator.this_cpu.measured_machine import cpu_setup, load_machine, machine_path

_UNKNOWN_LENGTH = 8192  # tokens, of models that do not say


def setup_of(
    args: argparse.Namespace, tbt_target: float | None, ttft_target: float | None
) -> Setup:
    """
    Args:
        tbt_target: seconds, of the engine where it has no token budget.
        ttft_target: seconds, for `--order slack`.

    Raises:
        UsageError: the model or the device is not named.
        SimulationError: they are unknown, or do not go together.
        ConfigError: options of the engine do not go together.
    """
    options = SimulationOptions(**given_simulation_options(args))
    if args.model is None:
        raise UsageError(f"--model is missing: {', '.join(MODELS)}, or a config.json")
    if options.device is None:
        raise UsageError(f"--device is missing: {', '.join(DEVICES)}")
    budgeted = options.policy == "sarathi" and options.token_budget is None
    config = EngineConfig(
        policy=options.policy,
        token_budget=options.token_budget,
        tbt_target=tbt_target if budgeted else None,
        max_batch_size=options.max_batch_size,
        min_prefill_share=options.min_prefill_share,
        in_order_share=options.in_order_share,
        order=options.order,
        ttft_target=DEFAULT_TTFT_TARGET if ttft_target is None else ttft_target,
    )
    if options.device == THIS_CPU:
        return _this_cpu(args.model, options, config)
    if options.device not in DEVICES:
        raise SimulationError(f"device is {options.device}, expected one of {', '.join(DEVICES)}")
    model = model_shape(args.model)
    deployment = Deployment(
        model=model,
        device=DEVICES[options.device],
        tp=options.tp,
        pp=options.pp,
        nodes=options.nodes,
        max_model_len=options.max_model_len or _longest(args.workload, model),
        memory_utilization=options.memory_utilization,
    )
    return gpu_setup(
        deployment,
        config,
        overhead=OVERHEADS[options.overhead],
        replicas=options.replicas,
        router=options.router,
        price=options.price,
    )


def _this_cpu(model: str, options: SimulationOptions, config: EngineConfig) -> Setup:
    for name in ("tp", "pp", "replicas"):
        value = getattr(options, name)
        if value != 1:
            raise SimulationError(f"{name} is {value}, expected 1: {THIS_CPU} is one machine")
    for name in ("nodes", "overhead", "router", "memory_utilization"):
        if getattr(options, name) != getattr(SimulationOptions, name):
            option = name.replace("_", "-")
            raise SimulationError(
                f"--{option} has no effect on {THIS_CPU}: what was measured has it"
            )
    machine = load_machine(machine_path(model), model, describe_machine())
    return cpu_setup(machine, config, max_model_len=options.max_model_len, price=options.price)


def model_shape(name: str) -> SimulatedModel:
    """
    Raises:
        SimulationError: it is neither built in nor the path of a configuration.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise SimulationError(
            f"model is {name}, expected one of {', '.join(MODELS)}, or the path of a config.json"
        )
    return SimulatedModel.read(path)


def _longest(workload: str | None, model: SimulatedModel) -> int:
    if workload in PRESETS:
        return PRESETS[workload].max_total
    return model.config.max_position or _UNKNOWN_LENGTH


def simulated_load(args: argparse.Namespace, num_requests: int) -> SimulatedLoad:
    """
    Raises:
        BenchmarkError: what is to be sent is missing, contradictory or out of range.
    """
    tokens = None if args.tokenizer is None else LocalTokens(args.tokenizer, False)
    return SimulatedLoad(workload_of(args, tokens), num_requests, args.warm_up, args.seed)


def progress_bar(quiet: bool) -> Progress:
    """On standard error; nothing where that is no terminal."""
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
    return " ".join(description[part] for part in ("model", "device", "policy"))


def simulated_capacity(args: argparse.Namespace, setup: Setup, label: str) -> CapacityWithRuns:
    """A search by the options of `sarathi capacity`.

    Raises:
        BenchmarkError: what is to be sent is missing, contradictory or out of range.
    """
    options = SearchOptions(**given_search_options(args))
    terms = SimulatedSearch(
        CapacityTargets(args.tbt_target, options.delay_target, options.tail_delay_target),
        options.resolution,
        options.start_rate,
        options.point_duration,
    )
    load = simulated_load(args, args.requests_per_point)
    screen = Screen(quiet=args.json)
    with progress_bar(args.json) as bar:
        task = bar.add_task(label)

        def progress(rate: float, ended: int, total: int) -> None:
            bar.update(task, description=f"{label} at {rate:g}/s", completed=ended, total=total)

        def tell(run: Run, verdict: Verdict) -> None:
            outcome = "meets the target" if verdict.met else "misses it"
            sure = "" if verdict.certain else " (not for certain)"
            screen.say(f"{label}: {run.rate:g}/s {outcome}{sure}: {verdict.reason}")

        return find_capacity(setup, load, terms, label, on_point=tell, on_requests=progress)
