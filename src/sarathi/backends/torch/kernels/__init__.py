"""Kernels in Triton: attention, elementwise operations, sampling (with `row_search`).

The modules are imported only where `uses_triton` is true, so that CPUs do without Triton. The
kernels are launched by `triton_attention`, `torch_operations` and `torch_sampler` one level up.
"""

import os

import torch

from sarathi.errors import ExecutorError

MASS_BITS = 42  # of the integers that the sampling kernels sum, for the likeliest token
MAX_VOCAB_SIZE = 1 << (62 - MASS_BITS)


def uses_triton(device: torch.device) -> bool:
    """Return whether steps on a device are computed by Triton kernels.

    They are on GPUs, and under Triton's interpreter, which computes on CPU tensors for tests.
    """
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def check_vocabulary(vocab_size: int) -> None:
    """Raise `ExecutorError` where the sums of the sampling kernels would overflow."""
    if vocab_size > MAX_VOCAB_SIZE:
        raise ExecutorError(
            f"vocab_size is {vocab_size}: sampling on GPUs takes at most {MAX_VOCAB_SIZE}"
        )
