"""Fits the constants of the cost model to measurements.

All fits are alike: the constants with the least mean absolute logarithm of predicted over measured,
which is robust to outliers and for which twice as long and half as long are equally wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sarathi.simulator.calibration.measurements import AttentionTime, LayerTime, MessageTime
from sarathi.simulator.devices import Device
from sarathi.simulator.gpu.kernel_cost import (
    OVERLAP,
    ROWS,
    adding,
    moved_bytes,
    padded_flops,
    streaming,
)

Array = NDArray[np.float64]
Model = Callable[[Array], Array]


def gemm(device: Device, times: Sequence[LayerTime]) -> dict[str, float]:
    """Fit matrix products."""
    computing, reading, measured = [], [], []
    for time in times:
        for (outputs, depth), seconds in zip(time.gemm_shapes, time.gemms, strict=True):
            computing.append(padded_flops(device.processors, time.tokens, outputs, depth))
            reading.append(moved_bytes(time.tokens, outputs, depth))
            measured.append(seconds)
    compute = np.array(computing) / device.peak_flops
    read = np.array(reading) / device.bandwidth

    def model(x: Array) -> Array:
        powers = (compute / x[0]) ** OVERLAP + (read / x[1]) ** OVERLAP
        return np.asarray(x[2] + powers ** (1 / OVERLAP))

    start = {"gemm_compute": 0.8, "gemm_bandwidth": 0.8, "gemm_launch": 3e-6}
    return _fit(start, model, measured)


def elementwise(device: Device, times: Sequence[LayerTime]) -> dict[str, float]:
    """Fit elementwise kernels; sums run at the bandwidth of matrix products, which is given."""
    moved, kernels, sums = [], [], []
    for time in times:
        deployment = time.deployment(device)
        width, count = streaming(deployment, stores=False)
        more, passes = adding(deployment)
        moved.append(time.tokens * width * 2 / device.bandwidth)
        sums.append(time.tokens * passes * 2 / device.bandwidth / device.achieved.gemm_bandwidth)
        kernels.append(count + more)
    move, count_all, add = np.array(moved), np.array(kernels), np.array(sums)

    def model(x: Array) -> Array:
        return np.asarray(move / x[0] + count_all * x[1] + add)

    start = {"elementwise_bandwidth": 0.5, "elementwise_launch": 2e-6}
    return _fit(start, model, [time.elementwise for time in times])


def prefill(device: Device, times: Sequence[AttentionTime]) -> dict[str, float]:
    """Fit the attention of chunks."""
    padded = np.array([-(-time.rows // ROWS) * ROWS for time in times])
    heads = np.array([4 * time.heads * time.head_dim for time in times])
    each = padded * heads / device.peak_flops
    half = np.array([time.rows / 2 for time in times])
    context = np.array([time.context for time in times])

    def model(x: Array) -> Array:
        return np.asarray(x[3] + each / x[0] * (context + x[1] * half + x[2]))

    start = {
        "prefill_compute": 0.5,
        "prefill_new": 2.0,
        "prefill_keys": 500.0,
        "prefill_launch": 15e-6,
    }
    return _fit(start, model, [time.seconds for time in times])


def decode(device: Device, times: Sequence[AttentionTime]) -> dict[str, float]:
    """Fit the attention of decodes."""
    sizes = [2 * t.kv_heads * t.head_dim * 2 * t.batch * t.context for t in times]
    read = np.array(sizes) / device.bandwidth

    def model(x: Array) -> Array:
        return np.asarray(x[1] + read / x[0])

    start = {"decode_bandwidth": 0.8, "decode_launch": 15e-6}
    return _fit(start, model, [time.seconds for time in times])


def ring(times: Sequence[MessageTime]) -> dict[str, float]:
    """Fit the link of all-reduces among one number of workers."""
    return _line([2 * (time.workers - 1) / time.workers * time.size for time in times], times)


def line(times: Sequence[MessageTime]) -> dict[str, float]:
    """Fit a link without a buffer."""
    return _line([float(time.size) for time in times], times)


def buffered(times: Sequence[MessageTime]) -> dict[str, float]:
    """Fit a link over sockets."""
    sizes = np.array([float(time.size) for time in times])

    def model(x: Array) -> Array:
        first = np.minimum(sizes, x[2])
        return np.asarray(x[0] + first / x[1] + (sizes - first) / x[3])

    start = {"latency": 3e-5, "bandwidth": 8e9, "buffer": 2e6, "beyond": 3e9}
    return _fit(start, model, [time.seconds for time in times])


def _line(sizes: Sequence[float], times: Sequence[MessageTime]) -> dict[str, float]:
    moved = np.array(sizes)

    def model(x: Array) -> Array:
        return np.asarray(x[0] + moved / x[1])

    return _fit({"latency": 3e-5, "bandwidth": 1e11}, model, [time.seconds for time in times])


def _fit(start: Mapping[str, float], model: Model, measured: Sequence[float]) -> dict[str, float]:
    """Fit the constants that are named in `start`, from the values there."""
    target = np.log(np.array(measured))

    def loss(x: Array) -> float:
        return float(np.mean(np.abs(np.log(model(x)) - target)))

    found = search(loss, tuple(start.values()))
    return dict(zip(start, map(float, found), strict=True))


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
