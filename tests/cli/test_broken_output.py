"""What cannot be written, read or listened on is reported in one line, without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SARATHI = (sys.executable, "-m", "sarathi.cli.main")
LIST = (*SARATHI, "reproduce", "--list")


def run(command: tuple[str, ...], **options: Any) -> tuple[int, str]:
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60, check=False, **options)
    return done.returncode, done.stderr.decode(errors="replace")


def test_a_closed_reader_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run(LIST, stdout=writing) == (128 + 13, "")
    finally:
        os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_named() -> None:
    with open("/dev/full", "wb") as full:
        code, printed = run(LIST, stdout=full)
    assert code == 2
    assert printed == "sarathi reproduce: error: No space left on device\n"


def test_output_may_be_closed() -> None:
    code, printed = run(("sh", "-c", 'exec "$@" >&-', "sh", *LIST))
    assert (code, printed) == (0, "")


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".b", "\u2024", "no.such.host.invalid", "::g"])
def test_an_invalid_address_is_named(host: str) -> None:
    code, printed = run((*SARATHI, "serve", "smollm2-135m", "--host", host))
    assert code == 2
    assert f"--host {host} is no address" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "x" * 5000),
        ("report", "--iteration-log", "x" * 5000, "x"),
        ("simulate", "--model", "x" * 5000, "--device", "a100", "--workload", "sharegpt"),
        ("chat", "--url", b"\xff"),
    ],
)
def test_odd_arguments_are_no_tracebacks(arguments: tuple[str, ...]) -> None:
    code, printed = run((*SARATHI, *arguments))
    assert code == 2
    assert "error: " in printed
    assert "Traceback" not in printed
