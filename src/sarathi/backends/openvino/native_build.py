"""Compiles the native operations where they are used; `python -m` this module does it ahead.

OpenVINO's wheel contains the headers and libraries that an extension of it needs.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import openvino as ov

from sarathi.errors import ModelError
from sarathi.system.cache_folder import cache_folder, cached_file

_SOURCES = Path(__file__).parent / "native"
_MAIN = "extension.cpp"
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    *("-shared", "-fPIC", "-std=c++17", "-O3", "-mavx2", "-mfma", "-mf16c", "-fno-math-errno"),
    # GCC's schedule of a loop needs more registers than there are.
    "-fno-schedule-insns2",
    # A missing symbol fails here, not when the library is loaded. It is never unloaded: graphs may
    # outlive what loaded it.
    *("-Wno-psabi", "-Wl,-z,defs", "-Wl,-z,nodelete"),
)
_TIMEOUT = 120.0  # seconds; 8 are usual


class NativeBuildError(Exception):
    """The native operations cannot be compiled here; the message says why."""


def native_library() -> Path:
    """Return the compiled library: the one beside the sources, or of the cache, or a new one.

    Raises:
        NativeBuildError: there is none, and it cannot be compiled.
    """
    name = _library_name()
    try:
        for path in (_SOURCES / name, cached_file(name)):
            if path.exists():
                return path
        return build(cache_folder())
    except (OSError, ModelError) as error:
        raise NativeBuildError(str(error)) from error


def build(folder: Path) -> Path:
    """Compile the library into `folder` and return its path.

    Processes may do so at the same time: each writes its own file, and the last one stays.

    Raises:
        NativeBuildError: there is no compiler, or it fails.
        OSError: the folder cannot be written to.
    """
    compiler = _compiler()
    package = Path(ov.__file__).parent
    libraries = [
        next((package / "libs").glob(pattern), None)
        for pattern in ("libopenvino.so*", "libtbb.so*")
    ]
    if not (package / "include").is_dir() or None in libraries:
        raise NativeBuildError(f"{package} has no headers or libraries to compile with")
    target = folder / _library_name()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        partial = Path(scratch) / target.name
        command = [
            *(*compiler, *_FLAGS, f"-I{package / 'include'}", str(_SOURCES / _MAIN)),
            *(*map(str, libraries), "-o", str(partial)),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NativeBuildError(f"{compiler[0]} does not run: {error}") from error
        if done.returncode != 0 or not partial.exists():
            raise NativeBuildError(f"{compiler[0]} fails: {_first_error(done.stderr)}")
        partial.replace(target)
    return target


def _library_name() -> str:
    """Name the file after all that it is made of; any compiler's does."""
    parts = [path.read_bytes() for path in sorted(_SOURCES.glob("*.[ch]pp"))]
    parts.append(repr((ov.__version__, platform.machine(), _FLAGS)).encode())
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return f"native-{key}.so"


def _compiler() -> list[str]:
    """Return the command in CXX, or the first of the usual compilers."""
    if given := os.environ.get("CXX"):
        return shlex.split(given)
    found = next(filter(shutil.which, _COMPILERS), None)
    if found is None:
        raise NativeBuildError("there is no C++ compiler")
    return [found]


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["no output"]
    return next((line for line in lines if "error" in line), lines[0]).strip()


def main() -> int:
    """Compile the library into the package, for images that are started often."""
    try:
        print(build(_SOURCES))
    except (NativeBuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
