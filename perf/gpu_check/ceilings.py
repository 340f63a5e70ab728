"""b. What the device reaches at best: the ceilings that other figures are shares of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from perf.gpu_check.context import Context
from perf.gpu_check.timing import seconds_per_call
from perf.report import Figure
from sarathi.backends.torch.torch_devices import DTYPES, default_precision


@dataclass(frozen=True)
class Ceilings:
    """Measured speeds of one device."""

    bandwidth: float  # bytes a second, read and written, of a large copy
    flops: float  # operations a second of a large matrix product in the served precision


def run(context: Context) -> None:
    """Measure the ceilings of the device."""
    ceilings = find_ceilings(context)
    context.figure(Figure("copy bandwidth", ceilings.bandwidth / 1e12, "TB/s"))
    context.figure(Figure("matrix product", ceilings.flops / 1e12, "TFLOP/s"))
    context.data("bytes_per_second", ceilings.bandwidth)
    context.data("flops_per_second", ceilings.flops)


def find_ceilings(context: Context) -> Ceilings:
    """Return the ceilings, measured once a check."""
    found = context.findings.ceilings
    if found is None:
        context.progress("measuring copy bandwidth and a matrix product")
        found = measure(context)
        context.findings.ceilings = found
    return found


def measure(context: Context) -> Ceilings:
    """Time a copy and a square matrix product."""
    device, settings = context.device, context.settings
    size, side = settings.copied_bytes, settings.matrix_size
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * size / seconds_per_call(lambda: target.copy_(source), device)
    dtype = DTYPES[default_precision("cuda" if device.type == "cuda" else "cpu")]
    # Random values: a product of zeros draws less power, so that the clock stays higher.
    left, right = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
    product = torch.empty((side, side), dtype=dtype, device=device)
    seconds = seconds_per_call(lambda: torch.mm(left, right, out=product), device)
    return Ceilings(bandwidth, 2 * side**3 / seconds)
