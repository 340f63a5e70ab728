"""Kernels in Triton. Its modules are imported where `uses_triton` says so: CPUs do without."""

import os

import torch


def uses_triton(device: torch.device) -> bool:
    """Whether steps on a device are computed by Triton kernels.

    They are on GPUs, and under Triton's interpreter, which computes them on CPU tensors for tests.
    """
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
