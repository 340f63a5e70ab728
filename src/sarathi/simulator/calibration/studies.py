"""What is fitted to which measurements, and which are kept to check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sarathi.simulator.calibration import gpu_fit as fit
from sarathi.simulator.calibration import measurements as data
from sarathi.simulator.calibration.measurements import AttentionTime, LayerTime, MessageTime
from sarathi.simulator.devices import DEVICES, Achieved, Device, Link
from sarathi.simulator.gpu.gpu_cost import (
    decode_attention,
    gemm_seconds,
    layer_gemms,
    layer_seconds,
    prefill_attention,
    ring_seconds,
)

Pairs = list[tuple[float, float]]


@dataclass(frozen=True)
class CalibrationStudy:
    """One term of the cost of one device, on one file of measurements."""

    term: str
    device: str
    file: str
    load: Callable[[Path], Sequence[Any]]
    predict: Callable[[Device, Any], float]  # seconds of a measurement
    fit: fit.Fit | None  # None: all rows are held out
    rows: str = "all"  # description of those that the fit is given
    fitted: Callable[[Any], bool] = lambda _: True  # whether a row is one of them
    measured: Callable[[Any], float] = lambda row: float(row.seconds)
    part: Callable[[Device], Achieved | Link] = lambda device: device.achieved  # has the constants

    def compared(self, folder: Path) -> tuple[Pairs, Pairs]:
        """Return predicted and measured seconds: of the rows of the fit, and of those held out."""
        device = DEVICES[self.device]
        fitted, held_out = (
            [(self.predict(device, row), self.measured(row)) for row in rows]
            for rows in self._split(folder)
        )
        return fitted, held_out

    def refit(self, folder: Path) -> list[tuple[str, float, float]]:
        """Return each constant by its name: the project's, and the one that a fit gives."""
        if self.fit is None:
            return []
        device = DEVICES[self.device]
        found = self.fit(device, self._split(folder)[0])
        return [(name, getattr(self.part(device), name), new) for name, new in found.items()]

    def _split(self, folder: Path) -> tuple[list[Any], list[Any]]:
        rows = self.load(folder / self.file)
        own = [self.fit is not None and self.fitted(row) for row in rows]
        return (
            [row for row, used in zip(rows, own, strict=True) if used],
            [row for row, used in zip(rows, own, strict=True) if not used],
        )


def studies() -> list[CalibrationStudy]:
    """Return all that the project's constants come from, fits and checks."""
    return [*_layer_studies(), *_attention_studies(), *_message_studies()]


def borrowed_studies() -> list[CalibrationStudy]:
    """Return how wrong the A100's fractions are on devices whose own are known."""

    def predict(device: Device, row: LayerTime) -> float:
        return _linear(replace(device, achieved=DEVICES["a100"].achieved), row)

    return [
        replace(study, predict=predict, fit=None, rows="all")
        for study in _layer_studies()
        if study.term == "linear" and study.device != "a100"
    ]


def _linear(device: Device, row: LayerTime) -> float:
    shapes = layer_gemms(row.deployment(device))
    return sum(gemm_seconds(device, row.tokens, *shape) for shape in shapes)


def _elementwise(device: Device, row: LayerTime) -> float:
    return layer_seconds(row.deployment(device), row.tokens, stores=False)


def _layer_studies() -> list[CalibrationStudy]:
    found = []
    for device, model, rows in (
        ("a100", "llama3-8b", "all"),
        ("a100", "codellama-34b", None),
        ("a40", "llama2-70b", "TP 1, 4"),
        ("h100", "llama2-70b", "TP 1, 4"),
    ):
        linear = CalibrationStudy(
            "linear",
            device,
            f"{device}_{model}_linear.csv",
            data.layers,
            _linear,
            None if rows is None else fit.GEMM,
            rows or "all",
            (lambda row: row.tp in (1, 4)) if rows == "TP 1, 4" else (lambda _: True),
            measured=lambda row: sum(row.gemms),
        )
        elementwise = replace(
            linear,
            term="elementwise",
            predict=_elementwise,
            fit=None if rows is None else fit.ELEMENTWISE,
            measured=lambda row: float(row.elementwise),
        )
        found += [linear, elementwise]
    return found


def _attention_studies() -> list[CalibrationStudy]:
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
        fit.PREFILL,
        "chunks of a multiple of 128",
        lambda row: row.rows % 128 == 0,
    )
    of_decodes = replace(
        of_prompts,
        term="attention_decode",
        load=lambda path: data.attention(path, prefill=False),
        predict=decode,
        fit=fit.DECODE,
        rows="even batches",
        fitted=lambda row: row.batch % 2 == 0,
    )
    return [of_prompts, of_decodes]


def _message_study(
    term: str,
    device: str,
    file: str,
    group: tuple[int, int],
    fitting: fit.Fit | None,
    link: Callable[[Device], Link],
    halves: bool = True,
) -> CalibrationStudy:
    """Return a study of one kind of message.

    Args:
        group: workers, and how many of them share a node.
        fitting: None holds all out.
        halves: every second size is held out.
    """

    def predict(device: Device, row: MessageTime) -> float:
        used = link(device)
        if term.startswith("all_reduce"):
            return ring_seconds(used, row.workers, row.size)
        return used.seconds(row.size)

    return CalibrationStudy(
        term,
        device,
        f"{file}.csv",
        lambda path: [m for m in data.messages(path) if (m.workers, m.per_node) == group],
        predict,
        fitting,
        "every second size" if halves else "all",
        lambda row: not halves or row.number % 2 == 0,
        part=link,
    )


def _message_studies() -> list[CalibrationStudy]:
    def ring(
        device: str, profile: str, workers: int, fitting: fit.Fit | None = fit.RING, **more: Any
    ) -> CalibrationStudy:
        group, file = (workers, workers), f"{profile}_all_reduce"

        def link(device: Device) -> Link:
            return device.node.ring(workers, crosses=False)

        return _message_study(f"all_reduce {workers}", device, file, group, fitting, link, **more)

    def between(device: Device) -> Link:
        return device.node.between

    def peer(device: Device) -> Link:
        return device.node.peer

    def network(device: Device) -> Link:
        return device.node.network

    pairwise, nodes = "a100_pairwise_nvlink", "send_recv, two nodes"
    a100_sends, a40_sends = f"{pairwise}_send_recv", "a40_pairwise_nvlink_send_recv"
    return [
        # Two GPUs with NVLink between them are the same in any node: fitted on the one node, held
        # out on the other.
        ring("a100", "a100_dgx", 2, halves=False),
        ring("a100-pairwise", pairwise, 2, None),
        ring("a100-pairwise", pairwise, 4),
        *(ring("a100", "a100_dgx", n) for n in (4, 8)),
        *(ring("h100", "h100_dgx", n) for n in (2, 4, 8)),
        *(ring("a40", "a40", n) for n in (2, 4, 8)),
        _message_study(
            "all_reduce 16, two nodes", "a100", "a100_dgx_all_reduce", (16, 8), fit.RING, between
        ),
        _message_study("send_recv", "a100-pairwise", a100_sends, (2, 2), fit.LINE, peer),
        _message_study(nodes, "a100-pairwise", a100_sends, (2, 1), fit.SOCKETS, network),
        _message_study("send_recv", "a40", a40_sends, (2, 2), fit.LINE, peer),
        _message_study(nodes, "a40", a40_sends, (2, 1), fit.LINE, network),
    ]
