"""How far the cost model is from what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sarathi.simulator.calibration import measurements as data
from sarathi.simulator.calibration import predict
from sarathi.simulator.calibration.studies import CalibrationStudy, Pairs, borrowed_studies, studies
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.engine_overhead import OVERHEADS
from sarathi.simulator.gpu import GpuCostModel
from sarathi.simulator.model_shape import MODELS

FIT, HELD_OUT, BORROWED = "fit", "held out", "borrowed"
END_TO_END = {
    "one prompt": "osdi/figure-2_prefill.csv",
    "decodes": "osdi/figure-2_decode.csv",
}
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
    """Of the project's constants, with measurements of the fit and those that are not.

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
    """Those of the project beside a new fit.

    Raises:
        SimulationError: a file is missing, or is not what it should be.
    """
    return [
        Constant(study.device, study.term, name, study.constants(DEVICES[study.device])[name], new)
        for study in studies()
        for name, new in study.refit(folder).items()
    ]


def _row(study: CalibrationStudy[Any], rows: str, used: str, pairs: Pairs) -> ErrorRow:
    return ErrorRow(study.term, study.device, study.file, rows, used, *_errors(pairs))


def _errors(pairs: Pairs) -> tuple[int, float, float, float]:
    errors = np.array([predicted / measured - 1 for predicted, measured in pairs])
    sizes = np.abs(errors)
    return (
        len(pairs),
        float(np.median(sizes)),
        float(np.quantile(sizes, 0.9)),
        float(np.median(errors)),
    )


def _end_to_end(folder: Path) -> list[ErrorRow]:
    """Whole iterations of the paper's engine, which no fit has seen."""
    deployment = Deployment(model=MODELS["yi-34b"], device=DEVICES["a100-pairwise"], tp=2)
    cost = GpuCostModel(deployment, OVERHEADS["paper"])
    found = []
    for term, file in END_TO_END.items():
        times = data.iterations(folder / file)
        pairs = [(predict.iteration(cost, time, CONTEXT), time.seconds) for time in times]
        found.append(
            ErrorRow(f"yi-34b TP2, {term}", "a100-pairwise", file, "all", HELD_OUT, *_errors(pairs))
        )
    return found
