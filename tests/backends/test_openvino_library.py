"""What importing OpenVINO does to the user's machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(program: str, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], **environment},
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
