"""d. The whole engine: start, iterations of decodes, prompts, and how busy the GPU is."""

from __future__ import annotations

from dataclasses import asdict

from perf.gpu_check.ceilings import Ceilings, find_ceilings
from perf.gpu_check.context import Context
from perf.gpu_check.idle import LONG_GAP
from perf.gpu_check.speed import DecodeSpeed, find_speed, memory_bound
from perf.gpu_check.startup import measure_startup
from perf.report import Figure
from sarathi.backends.torch.torch_devices import DTYPES, default_precision

ITERATION_GOAL = 1.35  # times the memory bound
_ON_DEVICE = ("queue", "execute")  # parts of an iteration in which the host does nothing for it
IDLE_GOAL = 0.05  # of the time


def run(context: Context) -> None:
    """Start the engine in separate processes, then load it here and time it.

    Raises:
        RuntimeError: it did not start; what could be measured here has been.
    """
    ceilings = find_ceilings(context)
    failure = None
    try:
        measure_startup(context)  # before this process takes the GPU's memory
    except RuntimeError as error:
        failure = error
        context.note(str(error))
    speed = find_speed(context)
    settings = context.settings
    for decodes in speed.decodes:
        for figure in _decode_figures(context, decodes, ceilings):
            context.figure(figure)
    idle_name = f"GPU idle, decodes {settings.idle_batch} x {settings.decode_context}"
    idle = speed.idle
    context.figure(Figure(idle_name, None if idle is None else idle.whole, "%", IDLE_GOAL))
    if idle is not None:
        context.figure(Figure(f"  in gaps longer than {LONG_GAP:g} us", idle.long_gaps, "%"))
    for prompts in speed.prompts:
        name = f"prompt tokens a second, budget {prompts.budget}"
        context.figure(Figure(name, prompts.tokens_per_second, "/s"))
    context.data("speed", asdict(speed))
    if failure is not None:
        raise failure


def _decode_figures(context: Context, decodes: DecodeSpeed, ceilings: Ceilings) -> list[Figure]:
    settings = context.settings
    precision = default_precision("cuda" if context.device.type == "cuda" else "cpu")
    bound = memory_bound(
        settings.model.config,
        ceilings,
        decodes.requests,
        decodes.context,
        DTYPES[precision].itemsize,
    )
    goal = ITERATION_GOAL if decodes.requests == settings.goal_batch else None
    figures = [
        Figure(
            f"iteration, decodes {decodes.requests} x {decodes.context}",
            1e3 * decodes.seconds,
            "ms",
        ),
        Figure("  of its memory bound", decodes.seconds / bound, "x", goal),
    ]
    if decodes.requests == settings.idle_batch:
        host = sum(seconds for name, seconds in decodes.host.items() if name not in _ON_DEVICE)
        figures.append(Figure("  host time beside execution", 1e3 * host, "ms"))
    return figures
