"""The figure of cost against latency. Imports the plotting library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.axes import Axes

from sarathi.bench.capacity.verdict import CapacityTargets
from sarathi.bench.report.chart import INK, Drawing, Key, Panel, dots, words
from sarathi.bench.report.table import seconds
from sarathi.simulator.plan.planner import PlanResult
from sarathi.simulator.plan.replica_sizing import PlanChoice


def pareto(planned: PlanResult, targets: CapacityTargets) -> Drawing | None:
    """Return the figure of all choices; None where there is none."""
    choices = planned.choices
    if not choices:
        return None
    devices = list(dict.fromkeys(choice.layout.device for choice in choices))
    panels = (
        ("P99 TBT (ms)", lambda one: 1000 * one.tbt, planned.tbt_front, 1000 * targets.tbt),
        ("P90 TTFT (s)", lambda one: one.ttft, planned.ttft_front, targets.ttft),
    )
    listed = "; ".join(
        f"{one.replicas} x {one.layout}: ${one.cost:.2f} an hour, P99 TBT {seconds(one.tbt)}, "
        f"P90 TTFT {seconds(one.ttft)}"
        for one in choices
        if one.layout in planned.notable
    )
    explored = planned.explored
    return Drawing(
        name="pareto",
        title="What more money buys",
        caption=(
            "Each point is a deployment that serves the load within the targets. Those on the line "
            "are the Pareto front: nothing that costs as little is as fast. "
            + (
                f"It is complete up to {explored:g} times the lowest cost."
                if explored < float("inf")
                else "Every candidate was tried."
            )
        ),
        alternative=f"Cost an hour against latency. On the fronts: {listed}.",
        panels=[
            Panel(
                partial(_draw, choices, devices, latency, front, target),
                x_label="dollars an hour",
                y_label=label,
                targets=() if target is None else ((target, "target"),),
                targets_text="right",
            )
            for label, latency, front, target in panels
        ],
        keys=[Key(device, dots(index)) for index, device in enumerate(devices)],
        height=4.0,
        narrow_height=6.6,
    )


def _draw(
    choices: Sequence[PlanChoice],
    devices: Sequence[str],
    latency: Callable[[PlanChoice], float],
    front: Sequence[PlanChoice],
    target: float | None,
    axes: Axes,
    narrow: bool,
) -> None:
    on_front = sorted(front, key=lambda one: one.cost)
    axes.step(
        [one.cost for one in on_front],
        [latency(one) for one in on_front],
        where="post",
        color=INK,
        linewidth=1.2,
        zorder=1.8,
    )
    for choice in choices:
        is_on_front = choice in front
        axes.plot(
            [choice.cost],
            [latency(choice)],
            **dots(devices.index(choice.layout.device)),
            markersize=8 if is_on_front else 5,
            alpha=1.0 if is_on_front else 0.5,
            markeredgewidth=0,
        )
        if is_on_front:
            text = f"{choice.replicas} x {choice.layout.split}"
            if choice.layout.token_budget is not None:
                text += f", {choice.layout.token_budget}"
            words(axes, (choice.cost, latency(choice)), text, (7, 7))
    axes.set_xlim(0, 1.5 * max(choice.cost for choice in choices))
    highest = max([*(latency(choice) for choice in choices), target or 0.0])
    axes.set_ylim(0, 1.15 * highest or 1.0)
