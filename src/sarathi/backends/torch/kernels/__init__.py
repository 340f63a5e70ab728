"""Kernels in Triton. Its modules are imported where `uses_triton` says so: CPUs do without."""

import os

import torch

from sarathi.errors import ExecutorError

MASS_BITS = 42  # of the integers that the sampling kernels add up, for the likeliest token
MAX_VOCAB_SIZE = 1 << (62 - MASS_BITS)


def uses_triton(device: torch.device) -> bool:
    """Return whether steps on a device are computed by Triton kernels.

    They are on GPUs, and under Triton's interpreter, which computes them on CPU tensors for tests.
    """
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def check_vocabulary(vocab_size: int) -> None:
    """Raise `ExecutorError` where the sampling kernels cannot add up so many tokens."""
    if vocab_size > MAX_VOCAB_SIZE:
        raise ExecutorError(
            f"vocab_size is {vocab_size}: sampling on GPUs takes at most {MAX_VOCAB_SIZE}"
        )
