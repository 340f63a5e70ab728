"""Kernel tests run on a GPU where there is one, or in Triton's interpreter on CPU tensors.

Triton reads TRITON_INTERPRET when a kernel is defined, so the interpreter needs a process of its
own: `TRITON_INTERPRET=1 pytest tests/kernels`. Without a GPU, other runs skip these tests.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

# Test modules import their kernels at the top.
collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:  # the hook sees the items of all folders
            continue
        if DEVICE == "cuda":
            item.add_marker(pytest.mark.gpu)
        elif not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="needs a GPU or TRITON_INTERPRET=1"))
        # The interpreter of Triton 3.6 uses conversions that numpy has deprecated.
        item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device whose tensors kernels are called with."""
    return torch.device(DEVICE)
