"""The figure of cost against latency. Imports the plotting library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sarathi.bench.number_format import seconds
from sarathi.bench.report.colors import INK, TARGET, colour, marker
from sarathi.bench.report.figures.figure_parts import key, legend, words
from sarathi.bench.report.render import Drawing
from sarathi.simulator.plan.planner import PlanResult, tbt, ttft
from sarathi.simulator.plan.replica_sizing import PlanChoice
from sarathi.simulator.plan.target_run import PlanTargets


def pareto(planned: PlanResult, targets: PlanTargets) -> Drawing | None:
    """Return the figure of all choices; None where there is none."""
    choices = planned.choices
    if not choices:
        return None
    devices = list(dict.fromkeys(choice.layout.device for choice in choices))
    panels = (
        ("P99 TBT (ms)", lambda one: 1000 * tbt(one), planned.tbt_front, 1000 * targets.tbt),
        ("P90 TTFT (s)", ttft, planned.ttft_front, targets.ttft),
    )

    def draw(figure: Figure, narrow: bool) -> None:
        shape = (2, 1) if narrow else (1, 2)
        for axes, panel in zip(figure.subplots(*shape).ravel(), panels, strict=True):
            _draw(axes, choices, devices, *panel)
        entries = []
        for index, device in enumerate(devices):
            handle = key(index, with_marker=True)
            handle.set_linestyle("none")
            entries.append((handle, device))
        legend(figure, entries, narrow)

    listed = "; ".join(
        f"{one.replicas} x {one.layout}: ${one.cost:.2f} an hour, P99 TBT {seconds(tbt(one))}, "
        f"P90 TTFT {seconds(ttft(one))}"
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
        draw=draw,
        height=4.0,
        narrow_height=6.6,
    )


def _draw(
    axes: Axes,
    choices: Sequence[PlanChoice],
    devices: Sequence[str],
    label: str,
    latency: Callable[[PlanChoice], float],
    front: Sequence[PlanChoice],
    target: float | None,
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
        index = devices.index(choice.layout.device)
        is_on_front = choice in front
        axes.plot(
            [choice.cost],
            [latency(choice)],
            marker(index),
            color=colour(index),
            markersize=8 if is_on_front else 5,
            alpha=1.0 if is_on_front else 0.5,
            markeredgewidth=0,
        )
        if is_on_front:
            text = f"{choice.replicas} x {choice.layout.split}"
            if choice.layout.token_budget is not None:
                text += f", {choice.layout.token_budget}"
            words(axes, (choice.cost, latency(choice)), text, (7, 7))
    if target is not None:
        axes.axhline(target, color=TARGET, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.5)
        transform = axes.get_yaxis_transform()
        words(axes, (0.99, target), "target", (0, 7), transform, TARGET, "right")
    axes.set_xlim(0, 1.5 * max(choice.cost for choice in choices))
    highest = max([*(latency(choice) for choice in choices), target or 0.0])
    axes.set_ylim(0, 1.15 * highest or 1.0)
    axes.set_xlabel("dollars an hour")
    axes.set_ylabel(label)
