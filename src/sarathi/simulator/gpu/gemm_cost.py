"""How long a matrix product takes."""

from __future__ import annotations

from math import ceil, inf

from sarathi.simulator.devices import Device

# Rows and columns of the result that a multiprocessor computes at a time, and how fast it does so
# compared with the largest. Kernels come in few sizes: the steps are theirs.
TILES = ((256, 128, 1.0), (128, 128, 1.0), (64, 128, 0.85), (128, 64, 0.85), (64, 64, 0.7))
SPLITS = (1, 2, 4)  # of the depth, so that a small result occupies all multiprocessors
LEAST_DEPTH = 512  # of a split
START = 64  # steps of depth that the beginning and end of a tile amount to
OVERLAP = 3  # of reading and computing: 1 is one after the other, without limit the longer alone
ELEMENT = 2  # bytes of an activation


def gemm_seconds(
    device: Device, rows: int, outputs: int, depth: int, bytes_per_weight: float = 2
) -> float:
    """Time of activations of `rows` x `depth` times weights of `depth` x `outputs`.

    A roofline with two roofs. Computing takes whole waves of tiles, one on each multiprocessor, of
    the size with which it takes least: hence the step beyond a multiple of 128 rows. Reading takes
    every byte once. The two overlap, though not entirely.
    """
    achieved = device.achieved
    computing = padded_flops(device.processors, rows, outputs, depth) / (
        device.peak_flops * achieved.gemm_compute
    )
    reading = moved_bytes(rows, outputs, depth, bytes_per_weight) / (
        device.bandwidth * achieved.gemm_bandwidth
    )
    return achieved.gemm_launch + overlapped(reading, computing)


def overlapped(reading: float, computing: float) -> float:
    """Between the longer of the two and their sum."""
    longer, shorter = max(reading, computing), min(reading, computing)
    if longer == 0:
        return 0.0
    return longer * float((1 + (shorter / longer) ** OVERLAP) ** (1 / OVERLAP))


def moved_bytes(rows: int, outputs: int, depth: int, bytes_per_weight: float = 2) -> float:
    return outputs * depth * bytes_per_weight + rows * (outputs + depth) * ELEMENT


def padded_flops(processors: int, rows: int, outputs: int, depth: int) -> float:
    """What all multiprocessors compute until the last has finished, idle ones included."""
    least = inf
    for height, width, speed in TILES:
        tiles = ceil(rows / height) * ceil(outputs / width)
        for split in SPLITS:
            if split > 1 and (tiles >= 2 * processors or depth < split * LEAST_DEPTH):
                break
            waves = ceil(tiles * split / processors)
            work = waves * height * width * (depth / split + START) / speed
            least = min(least, work)
    return 2 * processors * least
