"""Kernels compile for a GPU that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_kernels_compile_for_hopper(tmp_path: Path) -> None:
    """It takes no GPU, but a process that does not interpret kernels."""
    pytest.importorskip("triton.backends.nvidia.compiler")
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).parent / "compile_kernels.py"
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    if "Cannot find ptxas" in done.stderr:
        pytest.skip("ptxas is not installed")
    assert not done.returncode, done.stderr
    hybrid, decode, *samples = map(json.loads, done.stdout.splitlines())
    # Vocabularies below and above a kernel's block are compiled to different code.
    assert [report["vocab_size"] for report in samples] == [300, 32000]
    for report in (hybrid, decode, *samples):
        assert report["spilled_bytes"] <= 64
        # ptxas waits for every single wgmma where it runs out of registers.
        assert not report["serialized"]
    assert hybrid["wgmma"]
    assert decode["mma"]
    assert decode["registers"] <= 168  # three programs of four warps on a multiprocessor
