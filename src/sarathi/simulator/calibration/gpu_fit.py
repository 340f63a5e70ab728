"""Fits the constants of the cost model to measurements.

All fits are alike: the constants with the least mean absolute logarithm of predicted over measured,
which is robust to outliers and for which twice as long and half as long are equally wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sarathi.simulator.calibration.measurements import AttentionTime, LayerTime, MessageTime
from sarathi.simulator.devices import Device
from sarathi.simulator.gpu.gpu_cost import (
    OVERLAP,
    ROWS,
    adding,
    layer_gemms,
    moved_bytes,
    padded_flops,
    streaming,
)

Array = NDArray[np.float64]
Terms = Sequence[tuple[float, ...]]  # of one measurement: one or several times


@dataclass(frozen=True)
class Fit:
    """A formula of the cost model, for all measurements of a kind at once."""

    start: Mapping[str, float]  # its constants, and where the search for them begins
    formula: Callable[..., Array]  # seconds, from the constants and the terms
    terms: Callable[[Device, Any], Terms]  # of a measurement; the last is the measured seconds

    def __call__(self, device: Device, times: Sequence[Any]) -> dict[str, float]:
        """Return the constants that fit measurements on a device best."""
        lines = [line for time in times for line in self.terms(device, time)]
        *terms, measured = np.array(lines, np.float64).T
        target = np.log(measured)

        def loss(x: Array) -> float:
            return float(np.mean(np.abs(np.log(self.formula(x, *terms)) - target)))

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


def _gemm_terms(device: Device, time: LayerTime) -> Terms:
    return [
        (
            padded_flops(device.processors, time.tokens, *shape) / device.peak_flops,
            moved_bytes(time.tokens, *shape) / device.bandwidth,
            seconds,
        )
        for shape, seconds in zip(layer_gemms(time.deployment(device)), time.gemms, strict=True)
    ]


def _elementwise_terms(device: Device, time: LayerTime) -> Terms:
    """Return those of kernels, and of sums at the bandwidth of matrix products, which is given."""
    deployment = time.deployment(device)
    width, kernels = streaming(deployment, stores=False)
    sums, passes = adding(deployment)
    moved = time.tokens * width * 2 / device.bandwidth
    added = time.tokens * passes * 2 / device.bandwidth / device.achieved.gemm_bandwidth
    return [(moved, kernels + sums, added, time.elementwise)]


def _prefill_terms(device: Device, time: AttentionTime) -> Terms:
    padded = -(-time.rows // ROWS) * ROWS
    each = padded * (4 * time.heads * time.head_dim) / device.peak_flops
    return [(each, time.context, time.rows / 2, time.seconds)]


def _decode_terms(device: Device, time: AttentionTime) -> Terms:
    size = 2 * time.kv_heads * time.head_dim * 2 * time.batch * time.context
    return [(size / device.bandwidth, time.seconds)]


def _message_terms(device: Device, time: MessageTime) -> Terms:
    return [(time.size, time.seconds)]


def _ring_terms(device: Device, time: MessageTime) -> Terms:
    return [(2 * (time.workers - 1) / time.workers * time.size, time.seconds)]


def _over_sockets(x: Array, size: Array) -> Array:
    first = np.minimum(size, x[2])
    return np.asarray(x[0] + first / x[1] + (size - first) / x[3])


GEMM = Fit(
    {"gemm_compute": 0.8, "gemm_bandwidth": 0.8, "gemm_launch": 3e-6},
    lambda x, compute, read: (
        x[2] + ((compute / x[0]) ** OVERLAP + (read / x[1]) ** OVERLAP) ** (1 / OVERLAP)
    ),
    _gemm_terms,
)
ELEMENTWISE = Fit(
    {"elementwise_bandwidth": 0.5, "elementwise_launch": 2e-6},
    lambda x, move, kernels, add: move / x[0] + kernels * x[1] + add,
    _elementwise_terms,
)
PREFILL = Fit(
    {
        "prefill_compute": 0.5,
        "prefill_new": 2.0,
        "prefill_keys": 500.0,
        "prefill_launch": 15e-6,
    },
    lambda x, each, context, half: x[3] + each / x[0] * (context + x[1] * half + x[2]),
    _prefill_terms,
)
DECODE = Fit(
    {"decode_bandwidth": 0.8, "decode_launch": 15e-6},
    lambda x, read: x[1] + read / x[0],
    _decode_terms,
)
LINE = Fit({"latency": 3e-5, "bandwidth": 1e11}, lambda x, size: x[0] + size / x[1], _message_terms)
RING = Fit(LINE.start, LINE.formula, _ring_terms)  # among one number of workers
SOCKETS = Fit(
    {"latency": 3e-5, "bandwidth": 8e9, "buffer": 2e6, "beyond": 3e9},
    _over_sockets,
    _message_terms,
)
