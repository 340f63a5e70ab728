"""What OpenVINO does to the user's machine, and to the process that it is in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_models


def run(program: str, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_nothing_is_written_into_the_home_folder(tmp_path: Path) -> None:
    run("import sarathi.backends.openvino.openvino_executor", HOME=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_no_home_folder_is_needed() -> None:
    run(
        "import pathlib\n"
        "def home(): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = home\n"
        "import sarathi.backends.openvino.openvino_executor"
    )


def test_others_may_have_the_telemetry() -> None:
    module = "sarathi.backends.openvino.openvino_executor"
    look = f"import {module}, sys; print('openvino_telemetry' in sys.modules)"
    assert run(look) == "False"


@pytest.mark.parametrize(
    "destroy",
    ["del first\ndel second", "executors = [first, second]\ndel first, second\nin_a_thread()"],
    ids=["in the order in which they were made", "in another thread"],
)
def test_signals_are_handled_after_executors_are_destroyed(tmp_path: Path, destroy: str) -> None:
    tiny_models.save_tiny("llama", tmp_path)
    program = f"""
import signal
from pathlib import Path
from threading import Thread
from tests.backends.engines import load

def in_a_thread():
    thread = Thread(target=executors.clear)
    thread.start()
    thread.join()

first, second = (load(Path({str(tmp_path)!r})) for _ in range(2))
{destroy}
signal.signal(signal.SIGALRM, lambda number, frame: print("handled"))
signal.raise_signal(signal.SIGALRM)
"""
    assert run(program) == "handled"
