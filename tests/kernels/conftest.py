"""Kernel tests run on a GPU where there is one, or in Triton's interpreter on CPU tensors.

Triton reads TRITON_INTERPRET when a kernel is defined, so the interpreter needs a process of its
own: `TRITON_INTERPRET=1 pytest tests/kernels`. Without a GPU, other runs skip these tests.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

# Test modules import their kernels at the top.
collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


def _mend_interpreter() -> None:
    """Let loops have bounds that a kernel has loaded, in Triton 3.6 with numpy 2.4.

    Its scalars are arrays with one axis, which numpy no longer converts to integers.
    """
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def _speed_up_interpreter() -> None:
    """Patch `triton.language` once a launch, where Triton 3.6 does so for each call of a function.

    That is a quarter of the time of these tests.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch_lang = interpreter._patch_lang

    def patched(fn: Any) -> Any:
        used = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(module.load) for module in used):
            return patch_lang(fn)
        return interpreter._LangPatchScope()  # that of the launch restores everything

    interpreter._patch_lang = patched


if INTERPRETED and find_spec("triton"):
    _mend_interpreter()
    _speed_up_interpreter()


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
