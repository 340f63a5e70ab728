"""The parts of a check, and how they share its time."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from perf.gpu_check import (
    attention,
    ceilings,
    engine,
    experiment,
    gpu_tests,
    prediction,
)
from perf.gpu_check.context import Context, SkippedError
from perf.gpu_check.deadline import Deadline, interrupting
from perf.gpu_check.results import PartResult

_GRACE = 5.0  # seconds after its deadline, until a part is interrupted


@dataclass(frozen=True)
class Part:
    """One part; `run` adds figures to the context, and raises where it fails."""

    key: str
    title: str
    run: Callable[[Context], None]
    weight: float  # its share of the time, relative to the other parts
    least: float  # seconds without which it is not started


PARTS = (
    Part("a", "Tests marked gpu", gpu_tests.run, 80, 5),
    Part("b", "Ceilings", ceilings.run, 10, 1),
    Part("c", "Attention, one layer", attention.run, 40, 2),
    Part("d", "Engine", engine.run, 110, 5),
    Part("e", "Experiment of the paper", experiment.run, 160, 5),
    Part("f", "Predictions of the simulator", prediction.run, 20, 1),
)


def run_parts(
    parts: Sequence[Part], results: Sequence[PartResult], context: Context, total: Deadline
) -> None:
    """Run one part after the other; one that fails does not stop the others.

    A part is given its share of the time that is left, so that what one does not need goes to
    those after it.

    Args:
        results: of the parts, in the same order; they are filled in.
    """
    for index, (part, result) in enumerate(zip(parts, results, strict=True)):
        share = part.weight / sum(other.weight for other in parts[index:])
        result.allotted = max(0.0, share * total.left)
        context.begin(result, Deadline(result.allotted))
        if result.allotted < part.least:
            result.status = "skipped"
            context.note(
                f"part {part.key} skipped: its share of the time limit is {result.allotted:.1f} s"
            )
            continue
        context.progress(f"{part.key}. {part.title}: up to {result.allotted:.0f} s")
        run_part(part, result, context)


def run_part(part: Part, result: PartResult, context: Context) -> None:
    """Run one part, and record how it ended."""
    result.status = "running"
    began = monotonic()
    try:
        with interrupting(result.allotted + _GRACE):
            part.run(context)
        result.status = "done"
    except SkippedError as error:
        result.status = "skipped"
        context.note(f"part {part.key} skipped: {error}")
    except Exception as error:  # whatever it is, the other parts run
        result.status = "failed"
        result.error = f"{type(error).__name__}: {error}"
        context.append_log(f"part {part.key} failed\n{traceback.format_exc()}")
    except BaseException:  # Ctrl-C
        result.status = "failed"
        result.error = "interrupted"
        raise
    finally:
        result.seconds = monotonic() - began
        context.progress(f"{part.key}. {result.status} after {result.seconds:.1f} s")
        if result.error is not None:
            context.progress(f"   {result.error}")
        context.save()
        context.release_memory()
