"""The engine reports every failure of a process within a bounded time, and leaves none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import ml_dtypes
import msgspec
import numpy as np
import pytest
import zmq

from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.parallel.stage_worker import (
    AbandonedError,
    await_greeting,
    receive_hidden,
    send_hidden,
)
from sarathi.backends.runner import Runner
from sarathi.errors import ExecutorError, ModelError
from sarathi.system.sockets import bind
from sarathi.telemetry.recorder import StageTime
from tests.backends.pipelines import (
    SOON,
    NeverStarting,
    Spawned,
    freeze,
    gone,
    hybrid_steps,
    kill,
    opened,
)
from tests.tiny_models import save_tiny

TWO = ParallelLayout(pp=2)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny("llama", folder, num_layers=2)
    return folder


@pytest.fixture(autouse=True)
def _bounded():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 3 * SOON


def test_killed_while_nothing_is_to_do(path: Path) -> None:
    spawner = Spawned()
    with opened(path, TWO, spawner) as pipeline:
        pipeline.runner.check()
        kill(spawner.pids[0])
        while spawner.processes[0].ended() is None:
            time.sleep(0.01)
        with pytest.raises(ExecutorError, match=r"stage 0 has ended \(killed by SIGKILL"):
            pipeline.runner.check()
        with pytest.raises(ExecutorError, match="stage 0 has ended"):  # from now on
            pipeline.runner.submit(hybrid_steps()[0])


@pytest.mark.parametrize("wait", [lambda runner: runner.result(), lambda runner: runner.wait(SOON)])
def test_killed_in_the_midst_of_a_step(path: Path, wait: Callable[[Runner], object]) -> None:
    spawner = Spawned()
    with opened(path, TWO, spawner) as pipeline:
        freeze(spawner.pids[0])
        pipeline.runner.submit(hybrid_steps()[0])
        threading.Timer(0.1, kill, spawner.pids).start()
        with pytest.raises(ExecutorError, match=r"stage 0 has ended \(killed by SIGKILL"):
            wait(pipeline.runner)
        pipeline.runner.abandon()  # nothing to wait for


def test_killed_while_it_loads(path: Path) -> None:
    spawner = Spawned()

    def progress(rank_id: RankId, share: float) -> None:
        kill(spawner.pids[0])

    with (
        pytest.raises(ExecutorError, match="stage 0 has ended"),
        opened(path, TWO, spawner, progress=progress),
    ):
        pass
    assert gone(spawner.pids)


def test_killed_before_it_connects(path: Path) -> None:
    spawner = Spawned()
    threading.Timer(0.3, lambda: kill(spawner.pids[0])).start()
    with (
        pytest.raises(ExecutorError, match="stage 0 has ended"),
        opened(path, ParallelLayout(pp=2), spawner),
    ):
        pass


def test_a_process_that_never_connects(path: Path) -> None:
    with (
        pytest.raises(ExecutorError, match=r"stage 0 has not connected within 0\.3 s"),
        opened(path, TWO, NeverStarting(), connecting=0.3),
    ):
        pass


def test_processes_that_find_different_models(path: Path, tmp_path: Path) -> None:
    save_tiny("llama-tied", tmp_path, num_layers=2)
    spawner = Spawned(lambda spec: msgspec.structs.replace(spec, model=str(tmp_path)))
    with (
        pytest.raises(ExecutorError, match="stage 0 has found another model than the engine"),
        opened(path, TWO, spawner),
    ):
        pass
    assert gone(spawner.pids)


def test_a_process_that_cannot_read_the_model(path: Path, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, num_layers=2)
    (tmp_path / "model.safetensors").unlink()
    spawner = Spawned(lambda spec: msgspec.structs.replace(spec, model=str(tmp_path)))
    with (
        pytest.raises(ExecutorError, match=f"stage 0: .*{tmp_path}"),
        opened(path, TWO, spawner),
    ):
        pass
    assert gone(spawner.pids)


def test_a_process_whose_execution_fails(path: Path) -> None:
    """The error is what has failed, and not only that the process has ended."""
    shorter = {"max_position": 64}

    def change(spec):
        return msgspec.structs.replace(
            spec, options=msgspec.structs.replace(spec.options, **shorter)
        )

    with opened(path, TWO, Spawned(change)) as pipeline:
        for step in hybrid_steps()[:2]:
            pipeline.runner.submit(step)
            pipeline.runner.result()
        pipeline.runner.submit(hybrid_steps()[2])
        with pytest.raises(ExecutorError, match=r"stage 0: .*positions"):
            pipeline.runner.result()


def test_layers_that_cannot_be_shared_out(path: Path) -> None:
    spawner = Spawned()
    with (
        pytest.raises(ModelError, match="2 layers cannot be shared out equally to 3"),
        opened(path, ParallelLayout(pp=3), spawner),
    ):
        pass
    assert not spawner.processes


_ENGINE = """
import sys
from pathlib import Path
from urllib.parse import urlsplit
from tests.backends.pipelines import Spawned, opened
from sarathi.backends.parallel.rank_layout import ParallelLayout
spawner = Spawned()
with opened(Path(sys.argv[1]), ParallelLayout(pp=2), spawner) as pipeline:
    print(*spawner.pids, flush=True)
    print(pipeline._stage_worker.hello.inbox, flush=True)
    sys.stdin.read()
"""


def test_no_process_survives_its_engine(path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _ENGINE, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as engine:
        assert engine.stdout is not None
        pids = [int(pid) for pid in engine.stdout.readline().split()]
        assert len(pids) == 1
        folder = Path(urlsplit(engine.stdout.readline().decode()).path).parent
        assert folder.is_dir()
        assert not gone(pids, within=0.0)
        engine.send_signal(signal.SIGKILL)
        engine.wait()
        assert gone(pids)
        assert not folder.exists()


def test_hidden_states_of_another_step(tmp_path: Path) -> None:
    context = zmq.Context()
    inbox, outlet = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    endpoint = bind(inbox, None, tmp_path / "inbox")
    outlet.connect(endpoint)
    hidden = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    outlet.send(b"")
    await_greeting(inbox, endpoint, SOON)
    send_hidden(outlet, 7, hidden, (StageTime(0.5, 2.0),))
    received, stages = receive_hidden(inbox, 7, lambda: True)
    assert received.dtype == hidden.dtype
    assert np.array_equal(received, hidden)
    assert stages == (StageTime(0.5, 2.0),)
    send_hidden(outlet, 9, hidden, ())
    with pytest.raises(ExecutorError, match="of step 9 came instead of those of step 8"):
        receive_hidden(inbox, 8, lambda: True)
    with pytest.raises(AbandonedError):
        receive_hidden(inbox, 10, lambda: False)
    outlet.close()
    with pytest.raises(ExecutorError, match=r"has not connected to ipc://.* within 0\.1 s"):
        await_greeting(inbox, endpoint, 0.1)
    inbox.close()
    context.term()
