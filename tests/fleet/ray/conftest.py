"""One Ray cluster on this machine for all tests that need one: it takes seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from sarathi.fleet.ray.cluster import Cluster, connected

CPUS = 6  # that the cluster counts, whatever the machine has


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    if find_spec("ray") is None:  # not imported, as in the command
        pytest.skip("needs Ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr("sarathi.fleet.ray.cluster._local_address", lambda: None)
        # The processes of actors inherit it from those that are started now.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]), prepend=os.pathsep)
        stack = ExitStack()
        cluster = stack.enter_context(connected(None, CPUS, print))
    with stack:
        yield cluster
