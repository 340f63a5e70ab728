"""Compiling the native operations, with and without a compiler that works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openvino
import pytest
from openvino.utils.node_factory import NodeFactory

from sarathi.backends.openvino import native_build
from sarathi.backends.openvino.native_build import NativeBuildError, build, native_library
from tests.backends.natives import needs_native

MODULE = "sarathi.backends.openvino.native_build"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a shell script the compiler; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def install(script: str) -> Path:
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        return path

    return install


# The last argument is the output.
_WORKS = 'for output; do :; done; sleep 0.2; echo made >> "$output"'


def test_a_library_is_compiled_once(compiler: Callable[[str], Path]) -> None:
    compiler(_WORKS)
    path = native_library()
    assert path.read_text() == "made\n"
    compiler("exit 1")
    assert native_library() == path


def test_sources_flags_and_openvino_name_the_library(
    compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(_WORKS)
    first = native_library()
    monkeypatch.setattr(native_build, "_FLAGS", ("-O1",))
    second = native_library()
    monkeypatch.setattr(openvino, "__version__", "2100.1")
    assert len({first, second, native_library()}) == 3


def test_processes_may_compile_at_the_same_time(compiler: Callable[[str], Path]) -> None:
    compiler(_WORKS)

    def start(_: int) -> Path:
        look = f"from {MODULE} import native_library; print(native_library())"
        done = subprocess.run([sys.executable, "-c", look], capture_output=True, check=True)
        return Path(done.stdout.decode().strip())

    with ThreadPoolExecutor() as pool:
        (path,) = set(pool.map(start, range(2)))
    assert path.read_text() == "made\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'In file included' >&2; echo 'a.hpp:1: error: no' >&2; exit 1",
            "a.hpp:1: error: no",
        ),
        ("exit 1", "no output"),
        ("exit 0", "no output"),  # and no file
    ],
)
def test_a_compiler_that_fails(
    script: str, reason: str, compiler: Callable[[str], Path], tmp_path: Path
) -> None:
    compiler(script)
    with pytest.raises(NativeBuildError, match=f"compiler fails: {reason}"):
        native_library()
    assert list((tmp_path / "cache" / "sarathi").iterdir()) == []


def test_a_compiler_that_hangs(
    compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("exec sleep 60")
    monkeypatch.setattr(native_build, "_TIMEOUT", 0.1)
    with pytest.raises(NativeBuildError, match="timed out"):
        native_library()


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeBuildError, match=r"there is no C\+\+ compiler"):
        native_library()
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(NativeBuildError, match="no-such-compiler does not run"):
        native_library()


def test_an_openvino_without_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Callable[[str], Path]
) -> None:
    compiler(_WORKS)
    monkeypatch.setattr(openvino, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(NativeBuildError, match="no headers or libraries to compile with"):
        native_library()


def test_a_library_beside_the_sources_comes_first(
    tmp_path: Path,
    compiler: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compiler(_WORKS)
    (tmp_path / "native").mkdir()
    monkeypatch.setattr(native_build, "_SOURCES", tmp_path / "native")
    assert native_build.main() == 0
    path = native_library()
    assert path.parent == tmp_path / "native"
    assert capsys.readouterr().out == f"{path}\n"
    compiler("exit 1")
    assert native_build.main() == 1
    assert "compiler fails" in capsys.readouterr().err


@needs_native
def test_the_sources_compile_without_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_build, "_FLAGS", (*native_build._FLAGS, "-O1", "-Wall", "-Werror"))
    NodeFactory().add_extension(build(tmp_path))
