"""The registry describes its backends without importing them."""

from __future__ import annotations

import pytest

from sarathi.backends.executor import Backend
from sarathi.backends.registry import BACKENDS, ExecutorName, ExecutorOptions, load_backend


def options(name: ExecutorName) -> ExecutorOptions:
    return ExecutorOptions(
        executor=name,
        device="cpu" if BACKENDS[name].has_devices else None,
        precision="f32",
        max_position=64,
        max_tokens=64,
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_entries_describe_their_backends(name: ExecutorName) -> None:
    backend = load_backend(options(name))
    # Only a backend of which several ranks can share a stage connects them.
    connects = type(backend).init_process_group is not Backend.init_process_group
    assert connects == BACKENDS[name].has_tensor_parallelism
    assert not backend.uses_gpu
    assert backend.gpu_names == ()
    assert backend.gpu_memory == ()
    assert backend.block_size > 0
    assert backend.choose_precisions() == ("f32", "f32")
