"""What is fitted to which measurements, and which are kept to check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from sarathi.simulator.calibration import gpu_fit as fit
from sarathi.simulator.calibration import measurements as data
from sarathi.simulator.calibration import predict
from sarathi.simulator.calibration.measurements import AttentionTime, LayerTime, MessageTime
from sarathi.simulator.devices import DEVICES, Device
from sarathi.simulator.interconnect import Link

Pairs = list[tuple[float, float]]
T = TypeVar("T", LayerTime, AttentionTime, MessageTime)


@dataclass(frozen=True)
class CalibrationStudy(Generic[T]):
    """One term of the cost of one device, on one file of measurements."""

    term: str
    device: str
    file: str
    load: Callable[[Path], Sequence[T]]
    predict: Callable[[Device, T], float]
    measured: Callable[[T], float]  # seconds
    constants: Callable[[Device], dict[str, float]]  # as they are in the project
    fit: Callable[[Device, Sequence[T]], dict[str, float]] | None  # None where all are held out
    fitted: Callable[[T], bool] = lambda _: True  # which rows the fit is given
    rows: str = "all"  # those, in words

    def compared(self, folder: Path) -> tuple[Pairs, Pairs]:
        """Predicted and measured seconds: of the rows of the fit, and of those held out."""
        device = DEVICES[self.device]
        fitted, held_out = self._split(folder)
        return (
            [(self.predict(device, row), self.measured(row)) for row in fitted],
            [(self.predict(device, row), self.measured(row)) for row in held_out],
        )

    def refit(self, folder: Path) -> dict[str, float]:
        """The constants that a fit gives; none where all is held out."""
        fitted, _ = self._split(folder)
        return self.fit(DEVICES[self.device], fitted) if self.fit else {}

    def _split(self, folder: Path) -> tuple[list[T], list[T]]:
        rows = [
            (row, self.fit is not None and self.fitted(row))
            for row in self.load(folder / self.file)
        ]
        return [row for row, own in rows if own], [row for row, own in rows if not own]


def _achieved(*names: str) -> Callable[[Device], dict[str, float]]:
    return lambda device: {name: getattr(device.achieved, name) for name in names}


_GEMM = _achieved("gemm_compute", "gemm_bandwidth", "gemm_launch")
_ELEMENTWISE = _achieved("elementwise_bandwidth", "elementwise_launch")
_PREFILL = _achieved("prefill_compute", "prefill_new", "prefill_keys", "prefill_launch")
_DECODE = _achieved("decode_bandwidth", "decode_launch")


def _fit_elementwise(device: Device, rows: Sequence[LayerTime]) -> dict[str, float]:
    return fit.elementwise(device, rows, device.achieved.gemm_bandwidth)


def _layer_studies() -> list[CalibrationStudy[LayerTime]]:
    def split(row: LayerTime) -> bool:
        return row.tp in (1, 4)

    found = []
    for device, file, part in (
        ("a100", "a100_llama3-8b_linear.csv", ""),
        ("a100", "a100_codellama-34b_linear.csv", None),
        ("a40", "a40_llama2-70b_linear.csv", "TP 1, 4"),
        ("h100", "h100_llama2-70b_linear.csv", "TP 1, 4"),
    ):
        linear = CalibrationStudy(
            "linear",
            device,
            file,
            data.layers,
            predict.linear,
            lambda row: sum(row.gemms),
            _GEMM,
            None if part is None else fit.gemm,
            split if part else lambda _: True,
            part or "all",
        )
        found.append(linear)
        found.append(
            replace(
                linear,
                term="elementwise",
                predict=predict.elementwise,
                measured=lambda row: row.elementwise,
                constants=_ELEMENTWISE,
                fit=None if part is None else _fit_elementwise,
            )
        )
    return found


def _borrowed(device: Device, row: LayerTime) -> float:
    borrower = replace(device, achieved=DEVICES["a100"].achieved)
    return predict.linear(borrower, row)


def borrowed_studies() -> list[CalibrationStudy[LayerTime]]:
    """How wrong the A100's fractions are on devices whose own are known."""
    return [
        CalibrationStudy(
            "linear", device, file, data.layers, _borrowed, lambda row: sum(row.gemms), _GEMM, None
        )
        for device, file in (
            ("a40", "a40_llama2-70b_linear.csv"),
            ("h100", "h100_llama2-70b_linear.csv"),
        )
    ]


def _attention_studies() -> list[CalibrationStudy[AttentionTime]]:
    file = "a100_attention_64q8kv_tp2.csv"
    return [
        CalibrationStudy(
            "attention_prefill",
            "a100",
            file,
            lambda path: data.attention(path, prefill=True),
            predict.prefill,
            lambda row: row.seconds,
            _PREFILL,
            fit.prefill,
            lambda row: row.rows % 128 == 0,
            "chunks of a multiple of 128",
        ),
        CalibrationStudy(
            "attention_decode",
            "a100",
            file,
            lambda path: data.attention(path, prefill=False),
            predict.decode,
            lambda row: row.seconds,
            _DECODE,
            fit.decode,
            lambda row: row.batch % 2 == 0,
            "even batches",
        ),
    ]


def _link(link: Link, buffer: bool = False) -> dict[str, float]:
    found = {"latency": link.latency, "bandwidth": link.bandwidth}
    return {**found, "buffer": link.buffer, "beyond": link.beyond} if buffer else found


def _message_study(
    term: str,
    device: str,
    file: str,
    group: tuple[int, int],
    link: Callable[[Device], Link],
    fitting: Callable[[Sequence[MessageTime]], dict[str, float]] | None,
    halves: bool = True,
) -> CalibrationStudy[MessageTime]:
    """
    Args:
        group: workers, and how many of them share a node.
        fitting: None holds all out.
        halves: every second size is held out.
    """
    reduces = term.startswith("all_reduce")
    model = predict.all_reduce if reduces else predict.send
    return CalibrationStudy(
        term,
        device,
        file,
        lambda path: [m for m in data.messages(path) if (m.workers, m.per_node) == group],
        lambda device, row: model(link(device), row),
        lambda row: row.seconds,
        lambda device: _link(link(device), buffer=fitting is fit.buffered),
        None if fitting is None else lambda _, rows: fitting(rows),
        lambda row: not halves or row.number % 2 == 0,
        "every second size" if halves else "all",
    )


def _message_studies() -> list[CalibrationStudy[MessageTime]]:
    def ring(workers: int) -> Callable[[Device], Link]:
        return lambda device: device.node.ring(workers, crosses=False)

    dgx, pair = "a100_dgx_all_reduce.csv", "a100_pairwise_nvlink_all_reduce.csv"
    h100, a40 = "h100_dgx_all_reduce.csv", "a40_all_reduce.csv"
    found = [
        # Two GPUs with NVLink between them are two wherever they stand: fitted on the one node,
        # held out on the other.
        _message_study("all_reduce 2", "a100", dgx, (2, 2), ring(2), fit.ring, halves=False),
        _message_study("all_reduce 2", "a100-pairwise", pair, (2, 2), ring(2), None),
        _message_study("all_reduce 4", "a100-pairwise", pair, (4, 4), ring(4), fit.ring),
    ]
    for device, file, sizes in (
        ("a100", dgx, (4, 8)),
        ("h100", h100, (2, 4, 8)),
        ("a40", a40, (2, 4, 8)),
    ):
        for n in sizes:
            term = f"all_reduce {n}"
            found.append(_message_study(term, device, file, (n, n), ring(n), fit.ring))
    found.append(
        _message_study(
            "all_reduce 16, two nodes", "a100", dgx, (16, 8), lambda d: d.node.between, fit.ring
        )
    )
    for device, file, across in (
        ("a100-pairwise", "a100_pairwise_nvlink_send_recv.csv", fit.buffered),
        ("a40", "a40_pairwise_nvlink_send_recv.csv", fit.line),
    ):
        found.append(
            _message_study("send_recv", device, file, (2, 2), lambda d: d.node.peer, fit.line)
        )
        term = "send_recv, two nodes"
        found.append(_message_study(term, device, file, (2, 1), lambda d: d.node.network, across))
    return found


def studies() -> Sequence[CalibrationStudy[Any]]:
    """All that the project's constants come from, fits and checks."""
    return [*_layer_studies(), *_attention_studies(), *_message_studies()]
