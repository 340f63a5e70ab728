"""Fits the constants of the cost model to measurements.

All fits are alike: the constants with the least mean absolute logarithm of predicted over measured,
which no outlier pulls far and which takes twice as long and half as long for equally wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sarathi.simulator.calibration.measurements import AttentionTime, LayerTime, MessageTime
from sarathi.simulator.calibration.predict import gemm_shapes
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import Device
from sarathi.simulator.gpu.attention_cost import ROWS
from sarathi.simulator.gpu.elementwise_cost import adding, streaming
from sarathi.simulator.gpu.gemm_cost import OVERLAP, moved_bytes, padded_flops

Array = NDArray[np.float64]
Model = Callable[[Array], Array]


def gemm(device: Device, times: Sequence[LayerTime]) -> dict[str, float]:
    computing, reading, measured = [], [], []
    for time in times:
        for (outputs, depth), seconds in zip(gemm_shapes(time), time.gemms, strict=True):
            computing.append(padded_flops(device.processors, time.tokens, outputs, depth))
            reading.append(moved_bytes(time.tokens, outputs, depth))
            measured.append(seconds)
    compute = np.array(computing) / device.peak_flops
    read = np.array(reading) / device.bandwidth

    def model(x: Array) -> Array:
        powers = (compute / x[0]) ** OVERLAP + (read / x[1]) ** OVERLAP
        return np.asarray(x[2] + powers ** (1 / OVERLAP))

    names = ("gemm_compute", "gemm_bandwidth", "gemm_launch")
    return _fit(names, model, measured, (0.8, 0.8, 3e-6))


def elementwise(
    device: Device, times: Sequence[LayerTime], gemm_bandwidth: float
) -> dict[str, float]:
    """`gemm_bandwidth` is that of the sums between layers, too."""
    moved, kernels, sums = [], [], []
    for time in times:
        deployment = Deployment(model=time.shape, device=device, tp=time.tp)
        width, count = streaming(deployment, stores=False)
        more, passes = adding(deployment)
        moved.append(time.tokens * width * 2 / device.bandwidth)
        sums.append(time.tokens * passes * 2 / device.bandwidth / gemm_bandwidth)
        kernels.append(count + more)
    move, count_all, add = np.array(moved), np.array(kernels), np.array(sums)

    def model(x: Array) -> Array:
        return np.asarray(move / x[0] + count_all * x[1] + add)

    names = ("elementwise_bandwidth", "elementwise_launch")
    return _fit(names, model, [time.elementwise for time in times], (0.5, 2e-6))


def prefill(device: Device, times: Sequence[AttentionTime]) -> dict[str, float]:
    padded = np.array([-(-time.rows // ROWS) * ROWS for time in times])
    heads = np.array([4 * time.heads * time.head_dim for time in times])
    each = padded * heads / device.peak_flops
    half = np.array([time.rows / 2 for time in times])
    context = np.array([time.context for time in times])

    def model(x: Array) -> Array:
        return np.asarray(x[3] + each / x[0] * (context + x[1] * half + x[2]))

    names = ("prefill_compute", "prefill_new", "prefill_keys", "prefill_launch")
    return _fit(names, model, [time.seconds for time in times], (0.5, 2.0, 500.0, 15e-6))


def decode(device: Device, times: Sequence[AttentionTime]) -> dict[str, float]:
    sizes = [2 * t.kv_heads * t.head_dim * 2 * t.batch * t.context for t in times]
    read = np.array(sizes) / device.bandwidth

    def model(x: Array) -> Array:
        return np.asarray(x[1] + read / x[0])

    names = ("decode_bandwidth", "decode_launch")
    return _fit(names, model, [time.seconds for time in times], (0.8, 15e-6))


def ring(times: Sequence[MessageTime]) -> dict[str, float]:
    """The link of all-reduces among one number of workers."""
    factors = [2 * (time.workers - 1) / time.workers * time.size for time in times]
    return _line(factors, times)


def line(times: Sequence[MessageTime]) -> dict[str, float]:
    """A link without a buffer."""
    return _line([float(time.size) for time in times], times)


def buffered(times: Sequence[MessageTime]) -> dict[str, float]:
    """A link over sockets."""
    sizes = np.array([float(time.size) for time in times])

    def model(x: Array) -> Array:
        first = np.minimum(sizes, x[2])
        return np.asarray(x[0] + first / x[1] + (sizes - first) / x[3])

    names = ("latency", "bandwidth", "buffer", "beyond")
    return _fit(names, model, [time.seconds for time in times], (3e-5, 8e9, 2e6, 3e9))


def _line(sizes: Sequence[float], times: Sequence[MessageTime]) -> dict[str, float]:
    moved = np.array(sizes)

    def model(x: Array) -> Array:
        return np.asarray(x[0] + moved / x[1])

    names = ("latency", "bandwidth")
    return _fit(names, model, [time.seconds for time in times], (3e-5, 1e11))


def _fit(
    names: Sequence[str], model: Model, measured: Sequence[float], start: Sequence[float]
) -> dict[str, float]:
    target = np.log(np.array(measured))

    def loss(x: Array) -> float:
        return float(np.mean(np.abs(np.log(model(x)) - target)))

    return dict(zip(names, (float(value) for value in search(loss, start)), strict=True))


def search(loss: Callable[[Array], float], start: Sequence[float]) -> Array:
    """Values above 0 with a small loss: each is raised and lowered by a share, which shrinks.

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
