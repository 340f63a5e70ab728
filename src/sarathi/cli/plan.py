"""Find the cheapest hardware that serves a load within latency targets, by simulation."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from sarathi.cli.engine_options import duration, positive, share, utf8
from sarathi.cli.load_options import (
    add_output_arguments,
    add_requests_argument,
    add_workload_arguments,
    request_rate,
)
from sarathi.cli.plan_options import budgets, exploration, numbers, prices
from sarathi.cli.simulation_options import SimulationOptions
from sarathi.engine.config import DEFAULT_MAX_BATCH_SIZE
from sarathi.errors import UsageError
from sarathi.simulator.engine_overhead import OVERHEADS
from sarathi.simulator.routing import ROUTERS

if TYPE_CHECKING:
    from sarathi.simulator.plan.candidates import DeviceLayout
    from sarathi.simulator.setup import Setup

_REQUESTS = 512  # a few seconds of computing for each candidate
_MAX_DEVICES = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=utf8,
        required=True,
        metavar="NAME",
        help="a built-in model such as mistral-7b, or the path of a config.json",
    )
    parser.add_argument(
        "--rate",
        type=request_rate,
        required=True,
        metavar="N",
        help="requests per second, of all replicas together",
    )
    parser.add_argument(
        "--tbt-target",
        type=duration,
        required=True,
        metavar="DURATION",
        help="P99 of the time between tokens must meet it, such as 100ms; in any case, the "
        "scheduling delay must be at most 2s in the median and 4s at P90",
    )
    parser.add_argument(
        "--ttft-target",
        type=duration,
        metavar="DURATION",
        help="P90 of the time to the first token must meet it, too (default: any)",
    )
    parser.add_argument(
        "--devices",
        type=prices,
        required=True,
        metavar="NAME[:DOLLARS_PER_HOUR],...",
        help="what can be rented, and the price of one device, such as a100:2.21,h100,l40s:0.8; "
        "some have a price of their own",
    )
    _add_candidates(parser.add_argument_group("candidates"))
    _add_engine(parser.add_argument_group("simulated engine"))
    add_requests_argument(parser, _REQUESTS)
    add_workload_arguments(parser)
    add_output_arguments(parser)


def _add_candidates(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tp",
        type=numbers,
        default=[1, 2, 4, 8],
        metavar="N,...",
        help="devices that share each layer (default: 1,2,4,8)",
    )
    group.add_argument(
        "--pp",
        type=numbers,
        default=[1, 2],
        metavar="N,...",
        help="pipeline stages (default: 1,2)",
    )
    group.add_argument(
        "--max-devices",
        type=positive,
        default=_MAX_DEVICES,
        metavar="N",
        help="of one replica (default: %(default)s)",
    )
    group.add_argument(
        "--token-budgets",
        type=budgets,
        default=[None],
        metavar="N,...",
        help="tokens of one iteration, such as 512,2048; `target` among them stands for what "
        "--tbt-target leaves in each iteration (default: target)",
    )
    group.add_argument(
        "--explore",
        type=exploration,
        default=1.5,
        metavar="X",
        help="try what may cost up to X times as much as the cheapest plan, to see what more money "
        "buys; 1 finds the cheapest soonest, `all` leaves nothing out (default: %(default)s)",
    )


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--router",
        choices=ROUTERS,
        default="round_robin",
        help="which replica gets a request (default: %(default)s)",
    )
    group.add_argument(
        "--overhead",
        choices=OVERHEADS,
        help="the engine whose own time is added to each iteration (default: sarathi)",
    )
    group.add_argument(
        "--memory-utilization",
        type=share,
        metavar="SHARE",
        help="of a device's memory, for weights, activations and KV blocks (default: 0.9)",
    )
    group.add_argument(
        "--max-batch-size",
        type=positive,
        metavar="N",
        help=f"requests that run at the same time (default: {DEFAULT_MAX_BATCH_SIZE})",
    )
    group.add_argument(
        "--max-model-len",
        type=positive,
        metavar="TOKENS",
        help="longest prompt and output together (default: that of the dataset of a preset, else "
        "the model's)",
    )


def run(args: argparse.Namespace) -> int:
    """The exit code is 1 where nothing meets the targets."""
    from sarathi.bench.report import check_reports_can_be_made
    from sarathi.cli.measuring import Screen
    from sarathi.cli.reporting import print_json
    from sarathi.cli.simulating import model_shape, progress_bar, simulated_load
    from sarathi.simulator.plan.candidates import candidates, layouts
    from sarathi.simulator.plan.plan_report import plan_fields, print_plan, write_plan
    from sarathi.simulator.plan.planner import make_plan
    from sarathi.simulator.plan.replica_sizing import PlanChoice
    from sarathi.simulator.plan.target_run import PlanOptions, PlanTargets

    if args.arrivals == "trace":
        raise UsageError("--arrivals trace cannot be planned for: a trace has one rate")
    if args.report is not None:
        check_reports_can_be_made()
    model = model_shape(args.model).name  # told here: an unknown one would not fit anywhere
    targets = PlanTargets(args.tbt_target, args.ttft_target)
    terms = PlanOptions(args.rate, targets, simulated_load(args, args.requests_per_point))
    wanted = layouts(args.devices, args.tp, args.pp, args.token_budgets, args.max_devices)
    if not wanted:
        raise UsageError(
            f"--max-devices {args.max_devices} is fewer than any product of --tp and --pp"
        )
    fit, unfit = candidates(wanted, args.devices, lambda layout: _setup(args, layout))
    costs: list[float] = []
    with progress_bar(args.json) as bar:
        task = bar.add_task("plan", total=len(fit))
        seen: set[DeviceLayout] = set()

        def on_candidate(one: object) -> None:
            if isinstance(one, PlanChoice):
                costs.append(one.cost)
            seen.add(one.layout)  # type: ignore[attr-defined]
            best = f"plan: ${min(costs):.2f} an hour so far" if costs else "plan"
            bar.update(task, description=best, completed=len(seen))

        planned = make_plan(
            fit, terms, explore=args.explore, router=args.router, on_candidate=on_candidate
        )
    planned.rejected.extend(unfit)
    if args.json:
        print_json({"model": model, **plan_fields(planned, terms)})
    else:
        print_plan(planned, terms)
    if args.report is not None:
        files = write_plan(Path(args.report), planned, terms, model)
        Screen(quiet=args.json).say(f"the report is {files[0]}")
    return 0 if planned.choices else 1


def _setup(args: argparse.Namespace, layout: DeviceLayout) -> Setup:
    """One replica, as `sarathi simulate` would make it of the same options."""
    from sarathi.cli.simulating import setup_of

    given = {option.name: getattr(args, option.name, None) for option in fields(SimulationOptions)}
    given |= {
        "device": layout.device,
        "tp": layout.tp,
        "pp": layout.pp,
        "token_budget": layout.token_budget,
        "price": args.devices[layout.device],
    }
    own = argparse.Namespace(**given, model=args.model, workload=args.workload)
    return setup_of(own, args.tbt_target, None)
