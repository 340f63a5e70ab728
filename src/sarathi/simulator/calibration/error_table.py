"""The errors of the cost model on measurements, and its constants beside a new fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sarathi.simulator.calibration import measurements as data
from sarathi.simulator.calibration.studies import CalibrationStudy, Pairs, borrowed_studies, studies
from sarathi.simulator.cost_model import OVERHEADS, BatchShape, iteration_seconds
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.gpu import GpuCostModel
from sarathi.simulator.simulated_model import MODELS

FIT, HELD_OUT, BORROWED = "fit", "held out", "borrowed"
END_TO_END = {"one prompt": "osdi/figure-2_prefill.csv", "decodes": "osdi/figure-2_decode.csv"}
CONTEXT = 128  # tokens of each decode of these experiments, whose prompts are short


@dataclass(frozen=True)
class ErrorRow:
    """Relative errors, predicted over measured less 1, of one term on one set of measurements."""

    term: str
    device: str
    file: str
    rows: str
    used: str  # whether the constants were fitted to them
    points: int
    median: float  # of absolute errors
    p90: float
    bias: float  # median of the errors themselves


@dataclass(frozen=True)
class Constant:
    """A constant of the project, and what a fit to the measurements gives."""

    device: str
    term: str
    name: str
    project: float
    refitted: float

    @property
    def difference(self) -> float:
        return self.project / self.refitted - 1


def error_table(folder: Path) -> list[ErrorRow]:
    """Return the errors of the project's constants, on measurements of the fit and others.

    Raises:
        SimulationError: a file is missing, or is not what it should be.
    """
    found = []
    for study in studies():
        fitted, held_out = study.compared(folder)
        if fitted:
            found.append(_row(study, study.rows, FIT, fitted))
        if held_out:
            found.append(_row(study, "the others" if fitted else "all", HELD_OUT, held_out))
    for study in borrowed_studies():
        _, pairs = study.compared(folder)
        found.append(_row(study, "all", BORROWED, pairs))
    return found + _end_to_end(folder)


def constants(folder: Path) -> list[Constant]:
    """Return the project's constants beside a new fit.

    Raises:
        SimulationError: a file is missing, or is not what it should be.
    """
    return [
        Constant(study.device, study.term, *fitted)
        for study in studies()
        for fitted in study.refit(folder)
    ]


def _row(study: CalibrationStudy, rows: str, used: str, pairs: Pairs) -> ErrorRow:
    return _errors((study.term, study.device, study.file, rows, used), pairs)


def _errors(labels: tuple[str, str, str, str, str], pairs: Pairs) -> ErrorRow:
    errors = np.array([predicted / measured - 1 for predicted, measured in pairs])
    sizes = np.abs(errors)
    figures = (np.median(sizes), np.quantile(sizes, 0.9), np.median(errors))
    return ErrorRow(*labels, len(pairs), *map(float, figures))


def _end_to_end(folder: Path) -> list[ErrorRow]:
    """Return the errors of whole iterations of the paper's engine, which are in no fit."""
    deployment = Deployment(model=MODELS["yi-34b"], device=DEVICES["a100-pairwise"], tp=2)
    cost = GpuCostModel(deployment, OVERHEADS["paper"])
    found = []
    for term, file in END_TO_END.items():
        pairs = []
        for decodes, prompt, seconds in data.iterations(folder / file):
            shape = BatchShape.make(decodes, CONTEXT, ((0, prompt),) if prompt else ())
            pairs.append((iteration_seconds(cost, shape), seconds))
        labels = (f"yi-34b TP2, {term}", "a100-pairwise", file, "all", HELD_OUT)
        found.append(_errors(labels, pairs))
    return found


def as_json(errors: Sequence[ErrorRow], constants: Sequence[Constant]) -> str:
    """Return both tables as JSON."""
    return json.dumps(
        {
            "errors": [asdict(row) for row in errors],
            "constants": [{**asdict(c), "difference": c.difference} for c in constants],
        },
        indent=2,
    )


def as_text(errors: Sequence[ErrorRow], constants: Sequence[Constant]) -> str:
    """Return both tables for a terminal."""
    table = [("term", "device", "file", "rows", "used", "points", "median", "P90", "bias")]
    for row in errors:
        figures = (f"{row.median:.1%}", f"{row.p90:.1%}", f"{row.bias:+.1%}")
        named = (row.term, row.device, row.file, row.rows, row.used)
        table.append((*named, str(row.points), *figures))
    fits = [("device", "term", "constant", "project", "refitted", "difference")]
    for c in constants:
        figures = (f"{c.project:.4g}", f"{c.refitted:.4g}", f"{c.difference:+.1%}")
        fits.append((c.device, c.term, c.name, *figures))
    return "\n".join(
        (
            "Errors of the cost model: predicted over measured, less 1",
            "",
            *_aligned(table, numbers=4),
            "",
            "Constants of the project, and as a fit to these measurements gives them",
            "",
            *_aligned(fits, numbers=3),
        )
    )


def _aligned(rows: Sequence[tuple[str, ...]], numbers: int) -> list[str]:
    """Return rows of equally wide columns.

    Args:
        numbers: columns at the end that are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) - numbers
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
