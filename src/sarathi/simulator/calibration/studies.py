"""What is fitted to which measurements, and which are kept to check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from sarathi.simulator.calibration import gpu_fit as fit
from sarathi.simulator.calibration import measurements as data
from sarathi.simulator.calibration.measurements import AttentionTime, LayerTime, MessageTime
from sarathi.simulator.devices import DEVICES, Device
from sarathi.simulator.gpu.communication_cost import ring_seconds
from sarathi.simulator.gpu.kernel_cost import (
    decode_attention,
    gemm_seconds,
    layer_seconds,
    prefill_attention,
)
from sarathi.simulator.interconnect import Link

Pairs = list[tuple[float, float]]
T = TypeVar("T", LayerTime, AttentionTime, MessageTime)
Fit = Callable[[Device, Sequence[T]], dict[str, float]]


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
    fit: Fit[T] | None  # None: all rows are held out
    fitted: Callable[[T], bool] = lambda _: True  # which rows the fit is given
    rows: str = "all"  # description of those

    def compared(self, folder: Path) -> tuple[Pairs, Pairs]:
        """Return predicted and measured seconds: of the rows of the fit, and of those held out."""
        device = DEVICES[self.device]
        fitted, held_out = (
            [(self.predict(device, row), self.measured(row)) for row in rows]
            for rows in self._split(folder)
        )
        return fitted, held_out

    def refit(self, folder: Path) -> dict[str, float]:
        """Return the constants that a fit gives; none where all rows are held out."""
        fitted, _ = self._split(folder)
        return self.fit(DEVICES[self.device], fitted) if self.fit else {}

    def _split(self, folder: Path) -> tuple[list[T], list[T]]:
        rows = [
            (row, self.fit is not None and self.fitted(row))
            for row in self.load(folder / self.file)
        ]
        return [row for row, own in rows if own], [row for row, own in rows if not own]


def studies() -> Sequence[CalibrationStudy[Any]]:
    """Return all that the project's constants come from, fits and checks."""
    return [*_layer_studies(), *_attention_studies(), *_message_studies()]


def borrowed_studies() -> list[CalibrationStudy[LayerTime]]:
    """Return how wrong the A100's fractions are on devices whose own are known."""

    def predict(device: Device, row: LayerTime) -> float:
        return _linear(replace(device, achieved=DEVICES["a100"].achieved), row)

    return [
        replace(study, predict=predict, fit=None, fitted=lambda _: True, rows="all")
        for study in _layer_studies()
        if study.term == "linear" and study.device != "a100"
    ]


def _linear(device: Device, row: LayerTime) -> float:
    return sum(gemm_seconds(device, row.tokens, *shape) for shape in row.gemm_shapes)


def _achieved(*names: str) -> Callable[[Device], dict[str, float]]:
    return lambda device: {name: getattr(device.achieved, name) for name in names}


def _layer_studies() -> list[CalibrationStudy[LayerTime]]:
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
            _linear,
            lambda row: sum(row.gemms),
            _achieved("gemm_compute", "gemm_bandwidth", "gemm_launch"),
            None if part is None else fit.gemm,
            (lambda row: row.tp in (1, 4)) if part else (lambda _: True),
            part or "all",
        )
        elementwise = replace(
            linear,
            term="elementwise",
            predict=lambda device, row: layer_seconds(
                row.deployment(device), row.tokens, stores=False
            ),
            measured=lambda row: row.elementwise,
            constants=_achieved("elementwise_bandwidth", "elementwise_launch"),
            fit=None if part is None else fit.elementwise,
        )
        found += [linear, elementwise]
    return found


def _attention_studies() -> list[CalibrationStudy[AttentionTime]]:
    def prefill(device: Device, row: AttentionTime) -> float:
        fixed, each = prefill_attention(device, row.heads, row.head_dim, row.rows)
        return fixed + each * row.context

    def decode(device: Device, row: AttentionTime) -> float:
        fixed, each = decode_attention(device, row.kv_heads, row.head_dim, 2)
        return fixed + each * row.batch * row.context

    of_prompts = CalibrationStudy(
        "attention_prefill",
        "a100",
        "a100_attention_64q8kv_tp2.csv",
        lambda path: data.attention(path, prefill=True),
        prefill,
        lambda row: row.seconds,
        _achieved("prefill_compute", "prefill_new", "prefill_keys", "prefill_launch"),
        fit.prefill,
        lambda row: row.rows % 128 == 0,
        "chunks of a multiple of 128",
    )
    of_decodes = replace(
        of_prompts,
        term="attention_decode",
        load=lambda path: data.attention(path, prefill=False),
        predict=decode,
        constants=_achieved("decode_bandwidth", "decode_launch"),
        fit=fit.decode,
        fitted=lambda row: row.batch % 2 == 0,
        rows="even batches",
    )
    return [of_prompts, of_decodes]


def _message_study(
    term: str,
    device: str,
    file: str,
    group: tuple[int, int],
    link: Callable[[Device], Link],
    fitting: Callable[[Sequence[MessageTime]], dict[str, float]] | None,
    halves: bool = True,
) -> CalibrationStudy[MessageTime]:
    """Return a study of one kind of message.

    Args:
        group: workers, and how many of them share a node.
        fitting: None holds all out.
        halves: every second size is held out.
    """
    reduces = term.startswith("all_reduce")
    names = ["latency", "bandwidth", *(["buffer", "beyond"] if fitting is fit.buffered else [])]

    def predict(device: Device, row: MessageTime) -> float:
        used = link(device)
        return ring_seconds(used, row.workers, row.size) if reduces else used.seconds(row.size)

    return CalibrationStudy(
        term,
        device,
        file,
        lambda path: [m for m in data.messages(path) if (m.workers, m.per_node) == group],
        predict,
        lambda row: row.seconds,
        lambda device: {name: getattr(link(device), name) for name in names},
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
        # Two GPUs with NVLink between them are the same in any node: fitted on the one node, held
        # out on the other.
        _message_study("all_reduce 2", "a100", dgx, (2, 2), ring(2), fit.ring, halves=False),
        _message_study("all_reduce 2", "a100-pairwise", pair, (2, 2), ring(2), None),
        _message_study("all_reduce 4", "a100-pairwise", pair, (4, 4), ring(4), fit.ring),
    ]
    for device, file, sizes in (
        ("a100", dgx, (4, 8)),
        ("h100", h100, (2, 4, 8)),
        ("a40", a40, (2, 4, 8)),
    ):
        found += [
            _message_study(f"all_reduce {n}", device, file, (n, n), ring(n), fit.ring)
            for n in sizes
        ]
    found.append(
        _message_study(
            "all_reduce 16, two nodes", "a100", dgx, (16, 8), lambda d: d.node.between, fit.ring
        )
    )
    for device, file, across in (
        ("a100-pairwise", "a100_pairwise_nvlink_send_recv.csv", fit.buffered),
        ("a40", "a40_pairwise_nvlink_send_recv.csv", fit.line),
    ):
        for term, group, link, fitting in (
            ("send_recv", (2, 2), lambda d: d.node.peer, fit.line),
            ("send_recv, two nodes", (2, 1), lambda d: d.node.network, across),
        ):
            found.append(_message_study(term, device, file, group, link, fitting))
    return found
