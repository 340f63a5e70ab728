"""What the constants of the cost model are fitted to, and how large its errors are.

All fits are alike: the constants with the least mean absolute logarithm of predicted over measured,
which is robust to outliers and for which twice as long and half as long are equally wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sarathi.simulator import gpu_cost
from sarathi.simulator.calibration import measurements as data
from sarathi.simulator.calibration.measurements import AttentionTime, LayerTime
from sarathi.simulator.cost_model import OVERHEADS, BatchShape, iteration_seconds
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import DEVICES, Device, Link
from sarathi.simulator.gpu_cost import OVERLAP, ROWS, GpuCostModel
from sarathi.simulator.simulated_model import MODELS

FIT, HELD_OUT, BORROWED = "fit", "held out", "borrowed"

Array = NDArray[np.float64]
Inputs = Sequence[tuple[float, ...]]  # of one measurement: one or several times


@dataclass(frozen=True)
class MeasuredTerm:
    """A term of the cost model: what it predicts, and the formula by which it is fitted."""

    load: Callable[[Path], Sequence[Any]]  # reads measurements
    predict: Callable[[Any, Any], float]  # seconds, on a device or over a link, of a measurement
    start: Mapping[str, float]  # the constants, and where the search for them begins
    formula: Callable[..., Array]  # seconds, from the constants and the inputs
    inputs: Callable[[Device, Any], Inputs]  # of a measurement; the last is the measured seconds

    def measured(self, device: Device, row: Any) -> float:
        """Return the seconds that were measured."""
        return float(sum(line[-1] for line in self.inputs(device, row)))

    def fit(self, device: Device, rows: Sequence[Any]) -> dict[str, float]:
        """Return the constants that fit measurements on a device best."""
        *inputs, measured = np.array([x for row in rows for x in self.inputs(device, row)]).T
        target = np.log(measured)

        def loss(x: Array) -> float:
            return float(np.mean(np.abs(np.log(self.formula(x, *inputs)) - target)))

        found = search(loss, tuple(self.start.values()))
        return dict(zip(self.start, map(float, found), strict=True))


def search(loss: Callable[[Array], float], start: Sequence[float]) -> Array:
    """Return values above 0 with a small loss: each is raised and lowered by a shrinking share.

    The pattern search of Hooke and Jeeves ("Direct Search", 1961), on a logarithmic scale.
    """
    x, step = np.array(start, dtype=np.float64), 0.3
    best = loss(x)
    while step > 1e-3:
        before = x.copy()
        for i in range(len(x)):
            for factor in (1 + step, 1 / (1 + step)):
                tried = x.copy()
                tried[i] *= factor
                if (now := loss(tried)) < best:
                    best, x = now, tried
        if np.array_equal(before, x):
            step /= 2
            continue
        ahead = x * x / before  # once more in the direction that helped
        if (now := loss(ahead)) < best:
            best, x = now, ahead
    return x


def _predict_gemms(device: Device, row: LayerTime) -> float:
    shapes = gpu_cost.layer_gemms(row.deployment(device))
    return sum(gpu_cost.gemm_seconds(device, row.tokens, *shape) for shape in shapes)


def _gemm_inputs(device: Device, row: LayerTime) -> Inputs:
    return [
        (
            gpu_cost.padded_flops(device.processors, row.tokens, *shape) / device.peak_flops,
            gpu_cost.moved_bytes(row.tokens, *shape) / device.bandwidth,
            seconds,
        )
        for shape, seconds in zip(
            gpu_cost.layer_gemms(row.deployment(device)), row.gemms, strict=True
        )
    ]


def _elementwise_inputs(device: Device, row: LayerTime) -> Inputs:
    """Return those of kernels, and of sums at the bandwidth of matrix products, which is given."""
    deployment = row.deployment(device)
    width, kernels = gpu_cost.streaming(deployment, stores=False)
    sums, passes = gpu_cost.adding(deployment)
    moved = row.tokens * width * 2 / device.bandwidth
    added = row.tokens * passes * 2 / device.bandwidth / device.achieved.gemm_bandwidth
    return [(moved, kernels + sums, added, row.elementwise)]


def _predict_prefill(device: Device, row: AttentionTime) -> float:
    fixed, each = gpu_cost.prefill_attention(device, row.heads, row.head_dim, row.rows)
    return fixed + each * row.context


def _prefill_inputs(device: Device, row: AttentionTime) -> Inputs:
    padded = -(-row.rows // ROWS) * ROWS
    each = padded * (4 * row.heads * row.head_dim) / device.peak_flops
    return [(each, row.context, row.rows / 2, row.seconds)]


def _predict_decodes(device: Device, row: AttentionTime) -> float:
    fixed, each = gpu_cost.decode_attention(device, row.kv_heads, row.head_dim, 2)
    return fixed + each * row.batch * row.context


def _decode_inputs(device: Device, row: AttentionTime) -> Inputs:
    size = 2 * row.kv_heads * row.head_dim * 2 * row.batch * row.context
    return [(size / device.bandwidth, row.seconds)]


def _over_sockets(x: Array, size: Array) -> Array:
    first = np.minimum(size, x[2])
    return np.asarray(x[0] + first / x[1] + (size - first) / x[3])


LINEAR = MeasuredTerm(
    data.layers,
    _predict_gemms,
    {"gemm_compute": 0.8, "gemm_bandwidth": 0.8, "gemm_launch": 3e-6},
    lambda x, compute, read: (
        x[2] + ((compute / x[0]) ** OVERLAP + (read / x[1]) ** OVERLAP) ** (1 / OVERLAP)
    ),
    _gemm_inputs,
)
ELEMENTWISE = MeasuredTerm(
    data.layers,
    lambda device, row: gpu_cost.layer_seconds(row.deployment(device), row.tokens, stores=False),
    {"elementwise_bandwidth": 0.5, "elementwise_launch": 2e-6},
    lambda x, move, kernels, add: move / x[0] + kernels * x[1] + add,
    _elementwise_inputs,
)
PREFILL = MeasuredTerm(
    lambda file: data.attention(file, prefill=True),
    _predict_prefill,
    {"prefill_compute": 0.5, "prefill_new": 2.0, "prefill_keys": 500.0, "prefill_launch": 15e-6},
    lambda x, each, context, half: x[3] + each / x[0] * (context + x[1] * half + x[2]),
    _prefill_inputs,
)
DECODE = MeasuredTerm(
    lambda file: data.attention(file, prefill=False),
    _predict_decodes,
    {"decode_bandwidth": 0.8, "decode_launch": 15e-6},
    lambda x, read: x[1] + read / x[0],
    _decode_inputs,
)
LINE = MeasuredTerm(
    data.messages,
    lambda link, row: link.seconds(row.size),
    {"latency": 3e-5, "bandwidth": 1e11},
    lambda x, size: x[0] + size / x[1],
    lambda _, row: [(row.size, row.seconds)],
)
RING = replace(  # among one number of workers
    LINE,
    predict=lambda link, row: gpu_cost.ring_seconds(link, row.workers, row.size),
    inputs=lambda _, row: [(2 * (row.workers - 1) / row.workers * row.size, row.seconds)],
)
SOCKETS = replace(
    LINE,
    start={"latency": 3e-5, "bandwidth": 8e9, "buffer": 2e6, "beyond": 3e9},
    formula=_over_sockets,
)

# The measurements that a fit is given; the others are held out, to check it.
FITTED: Mapping[str, Callable[[Any], bool]] = {
    "all": lambda row: True,
    "none": lambda row: False,
    "TP 1, 4": lambda row: row.tp in (1, 4),
    "chunks of a multiple of 128": lambda row: row.rows % 128 == 0,
    "even batches": lambda row: row.batch % 2 == 0,
    "every second size": lambda row: row.number % 2 == 0,
}


@dataclass(frozen=True)
class CalibrationStudy:
    """One term of the cost of one device, on one file of measurements."""

    name: str
    device: str
    file: str
    term: MeasuredTerm
    rows: str = "all"  # a key of `FITTED`
    link: Callable[[Device], Link] | None = None  # has the constants, instead of the device
    group: tuple[int, int] = (0, 0)  # of messages: workers, and how many of them share a node

    def measurements(self, folder: Path) -> tuple[list[Any], list[Any]]:
        """Return those of the fit, and those held out."""
        rows = self.term.load(folder / self.file)
        if self.link is not None:
            rows = [row for row in rows if (row.workers, row.per_node) == self.group]
        fitted = FITTED[self.rows]
        return [row for row in rows if fitted(row)], [row for row in rows if not fitted(row)]

    def errors(self, rows: Sequence[Any], title: str, used: str, device: Device) -> ErrorRow:
        """Return the errors of predictions for a device."""
        on = device if self.link is None else self.link(device)
        pairs = [(self.term.predict(on, row), self.term.measured(device, row)) for row in rows]
        return _error_row((self.name, self.device, self.file, title, used), pairs)

    def refit(self, folder: Path) -> Iterator[Constant]:
        """Yield each constant: the project's, and the one that a fit gives."""
        device = DEVICES[self.device]
        rows, _ = self.measurements(folder)
        now = device.achieved if self.link is None else self.link(device)
        for name, new in self.term.fit(device, rows).items() if rows else ():
            yield Constant(self.device, self.name, name, getattr(now, name), new)


def _ring(
    device: str, profile: str, workers: int, rows: str = "every second size"
) -> CalibrationStudy:
    """Return a study of all-reduces inside a node."""
    return CalibrationStudy(
        f"all_reduce {workers}",
        device,
        f"{profile}_all_reduce.csv",
        RING,
        rows,
        lambda device: device.node.ring(workers, crosses=False),
        (workers, workers),
    )


def _messages(
    name: str, device: str, file: str, term: MeasuredTerm, link: str, group: tuple[int, int]
) -> CalibrationStudy:
    """Return a study of messages over a link of a device's node, by the name of its field."""
    return CalibrationStudy(
        name, device, file, term, "every second size", lambda on: getattr(on.node, link), group
    )


_ATTENTION = "a100_attention_64q8kv_tp2.csv"
_A100_SENDS = "a100_pairwise_nvlink_send_recv.csv"
_A40_SENDS = "a40_pairwise_nvlink_send_recv.csv"
STUDIES = (
    *(
        CalibrationStudy(name, device, f"{device}_{model}_linear.csv", term, rows)
        for device, model, rows in (
            ("a100", "llama3-8b", "all"),
            ("a100", "codellama-34b", "none"),
            ("a40", "llama2-70b", "TP 1, 4"),
            ("h100", "llama2-70b", "TP 1, 4"),
        )
        for name, term in (("linear", LINEAR), ("elementwise", ELEMENTWISE))
    ),
    CalibrationStudy(
        "attention_prefill", "a100", _ATTENTION, PREFILL, "chunks of a multiple of 128"
    ),
    CalibrationStudy("attention_decode", "a100", _ATTENTION, DECODE, "even batches"),
    # Two GPUs with NVLink between them are the same in any node: fitted on the one node, held out
    # on the other.
    _ring("a100", "a100_dgx", 2, "all"),
    _ring("a100-pairwise", "a100_pairwise_nvlink", 2, "none"),
    _ring("a100-pairwise", "a100_pairwise_nvlink", 4),
    *(_ring("a100", "a100_dgx", n) for n in (4, 8)),
    *(_ring("h100", "h100_dgx", n) for n in (2, 4, 8)),
    *(_ring("a40", "a40", n) for n in (2, 4, 8)),
    _messages(
        "all_reduce 16, two nodes", "a100", "a100_dgx_all_reduce.csv", RING, "between", (16, 8)
    ),
    _messages("send_recv", "a100-pairwise", _A100_SENDS, LINE, "peer", (2, 2)),
    _messages("send_recv, two nodes", "a100-pairwise", _A100_SENDS, SOCKETS, "network", (2, 1)),
    _messages("send_recv", "a40", _A40_SENDS, LINE, "peer", (2, 2)),
    _messages("send_recv, two nodes", "a40", _A40_SENDS, LINE, "network", (2, 1)),
)


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
    for study in STUDIES:
        fitted, held_out = study.measurements(folder)
        others = "the others" if fitted else "all"
        for rows, title, used in ((fitted, study.rows, FIT), (held_out, others, HELD_OUT)):
            if rows:
                found.append(study.errors(rows, title, used, DEVICES[study.device]))
    # How wrong the A100's fractions are on devices whose own are known.
    for study in STUDIES:
        if study.term is LINEAR and study.device != "a100":
            device = replace(DEVICES[study.device], achieved=DEVICES["a100"].achieved)
            measured = LINEAR.load(folder / study.file)
            found.append(study.errors(measured, "all", BORROWED, device))
    return [*found, *_end_to_end(folder)]


def _end_to_end(folder: Path) -> Iterator[ErrorRow]:
    """Yield the errors of whole iterations of the paper's engine, which are in no fit."""
    deployment = Deployment(model=MODELS["yi-34b"], device=DEVICES["a100-pairwise"], tp=2)
    cost = GpuCostModel(deployment, OVERHEADS["paper"])
    for term, name in (("one prompt", "prefill"), ("decodes", "decode")):
        file, pairs = f"osdi/figure-2_{name}.csv", []
        for decodes, prompt, seconds in data.iterations(folder / file):
            # Prompts of the decodes were short.
            shape = BatchShape.make(decodes, 128, ((0, prompt),) if prompt else ())
            pairs.append((iteration_seconds(cost, shape), seconds))
        yield _error_row((f"yi-34b TP2, {term}", "a100-pairwise", file, "all", HELD_OUT), pairs)


def _error_row(
    labels: tuple[str, str, str, str, str], pairs: Sequence[tuple[float, float]]
) -> ErrorRow:
    """Compare predicted with measured seconds."""
    errors = np.array([predicted / measured - 1 for predicted, measured in pairs])
    sizes = np.abs(errors)
    figures = (np.median(sizes), np.quantile(sizes, 0.9), np.median(errors))
    return ErrorRow(*labels, len(pairs), *map(float, figures))


def constants(folder: Path) -> list[Constant]:
    """Return the project's constants beside a new fit; raises as `error_table`."""
    return [constant for study in STUDIES for constant in study.refit(folder)]


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
        numbers = (f"{c.project:.4g}", f"{c.refitted:.4g}", f"{c.difference:+.1%}")
        fits.append((c.device, c.term, c.name, *numbers))
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
    """Return rows of equally wide columns, the last so many aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = ["<"] * (len(widths) - numbers) + [">"] * numbers
    row_format = "  ".join(f"{{:{sign}{n}}}" for sign, n in zip(signs, widths, strict=True))
    return [row_format.format(*row).rstrip() for row in rows]
