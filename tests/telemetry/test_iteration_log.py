"""The lines of the iteration log, and errors of its file."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sarathi.engine.config import EngineConfig
from sarathi.engine.startup.load import open_recorders
from sarathi.errors import ConfigError
from sarathi.telemetry import recorder as records
from sarathi.telemetry.iteration_log import IterationLine, IterationLog
from sarathi.telemetry.recorder import StageTime
from tests.telemetry.recording import START, batch, decode, prompt, record, request


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.fixture
def log(path: Path) -> IterationLog:
    return IterationLog(str(path), START, "tokens")


def lines(log: IterationLog, path: Path) -> list[dict[str, Any]]:
    log.flush()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_requests_and_their_tokens(log: IterationLog, path: Path) -> None:
    old = request(3, first_scheduled_at=START + 0.5)
    new = request(5, 20, arrival=START - 0.5, first_scheduled_at=START + 1)
    log.record(
        record(
            batch(
                9,
                decode(old),
                prompt(new, 4, 16),
                preempted=(request(6),),
                predicted=0.25,
                allowance=255,
            ),
            START + 1,
            START + 1.5,
            parts=(("schedule", START + 1.125), ("execute", START + 1.5)),
            finished={3: "stop"},
            waiting=4,
            stages=(StageTime(waited=0.0625, busy=0.25), StageTime(0.0, 0.1250004)),
        )
    )
    (line,) = lines(log, path)
    assert abs(line.pop("time") - (time.time() - time.monotonic() + START + 1)) < 1
    assert line == {
        "iteration": 9,
        "offset": 1.0,
        "duration": 0.5,
        "predicted": 0.25,
        "budget": 255,
        "budget_unit": "tokens",
        "tokens": 17,
        "attention": 16 * (4 + 8.0),
        "context": 8,
        "samples": 2,
        "decodes": [3],
        "prompts": [[5, 4, 16]],
        "started": [[5, 20, 4, 1.5]],
        "finished": [3],
        "cancelled": [],
        "preempted": [6],
        "running": 2,
        "waiting": 4,
        "free_blocks": 6,
        "cached_blocks": 1,
        "parts": {"schedule": 0.125, "execute": 0.375},
        "stages": [[0.25, 0.0625], [0.125, 0.0]],
    }


def test_lines_can_be_read_back_as_lines(log: IterationLog, path: Path) -> None:
    new = request(5)
    log.record(record(batch(1, prompt(new, 0, 6))))
    log.record(record(batch(2, prompt(new, 6, 2))))
    log.flush()
    read = [
        msgspec.json.decode(line, type=IterationLine) for line in path.read_bytes().splitlines()
    ]
    assert [(line.iteration, line.samples, line.prompts[0].start) for line in read] == [
        (1, 0, 0),
        (2, 1, 6),
    ]


def test_a_request_starts_once_even_if_it_is_preempted(log: IterationLog, path: Path) -> None:
    new = request(5, first_scheduled_at=START + 1)
    log.record(record(batch(1, prompt(new, 0, 6)), START + 1))
    log.record(record(batch(2, preempted=(new,)), START + 2))
    log.record(record(batch(3, prompt(new, 0, 6)), START + 3))
    assert [[start[0] for start in line["started"]] for line in lines(log, path)] == [[5], [], []]


@pytest.mark.parametrize(
    ("options", "budget", "unit"),
    [
        ({}, 0.25, "seconds"),
        ({"token_budget": 256}, 0.25, "tokens"),
        ({"policy": "orca"}, None, None),
    ],
)
def test_a_budget_has_the_unit_of_the_policy(
    path: Path, options: dict[str, Any], budget: float | None, unit: str | None
) -> None:
    (log,) = open_recorders(EngineConfig(iteration_log=str(path), **options))
    log.record(record(batch(1, decode(request(1)), allowance=0.25)))
    log.close()
    line = json.loads(path.read_text())
    assert (line["budget"], line["budget_unit"]) == (budget, unit)


def test_cancelled_requests_are_in_the_next_line_only(log: IterationLog, path: Path) -> None:
    log.cancelled(8, START)
    for number in (1, 2):
        log.record(record(batch(number, decode(request(1)))))
    assert [line["cancelled"] for line in lines(log, path)] == [[8], []]


def test_lines_reach_the_file_after_a_while_without_a_flush(
    log: IterationLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "FLUSH_INTERVAL", 1e9)
    log.record(record(batch(1, decode(request(1)))))
    assert path.read_text() == ""
    monkeypatch.setattr(records, "FLUSH_INTERVAL", 0.0)
    log.record(record(batch(2, decode(request(1)))))
    assert len(path.read_text().splitlines()) == 2


def test_a_file_of_an_earlier_run_is_emptied(path: Path) -> None:
    path.write_text("old\n")
    log = IterationLog(str(path), START, "tokens")
    log.close()
    assert path.read_text() == ""


def test_after_close_nothing_happens(log: IterationLog, path: Path) -> None:
    log.record(record(batch(1, decode(request(1)))))
    log.close()
    log.record(record(batch(2, decode(request(1)))))
    log.flush()
    log.close()
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/log.jsonl", "No such file or directory"),
        (".", "Is a directory"),
        ("nul\0", "null"),
        ("pipe", "No such device or address"),  # no reader: no hang
    ],
)
def test_a_path_that_cannot_be_written_names_the_flag(
    tmp_path: Path, name: str, reason: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=f"--iteration-log .* cannot be written: .*{reason}"):
        IterationLog(f"{tmp_path}/{name}", START, None)


def test_two_recorders_do_not_share_a_file(path: Path) -> None:
    trace = f"{path.parent}/./{path.name}"
    with pytest.raises(ConfigError, match="--iteration-log and --trace are the same file"):
        open_recorders(EngineConfig(iteration_log=str(path), trace=trace))


def test_only_the_recorders_that_were_asked_for(path: Path) -> None:
    assert open_recorders(EngineConfig()) == ()
    (log,) = open_recorders(EngineConfig(iteration_log=str(path)))
    assert isinstance(log, IterationLog)


def test_a_full_disk_ends_the_log_after_a_line_and_is_reported_once(
    log: IterationLog, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log.record(record(batch(1, decode(request(1)))))
    log.flush()
    write = os.write

    def full(file: int, data: memoryview) -> int:
        if len(data) > 10:
            return write(file, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with caplog.at_level(logging.WARNING):
        for number in range(2, 6):
            log.record(record(batch(number, decode(request(1)))))
            log.flush()
        log.close()
    (message,) = [entry.getMessage() for entry in caplog.records]
    assert "--iteration-log" in message
    assert "No space left on device" in message
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1]


def test_a_pipe_whose_reader_does_not_read_ends_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = IterationLog(str(path), START, "tokens")
    all_decodes = [decode(request(number)) for number in range(10000)]
    try:
        for number in range(10):
            log.record(record(batch(number, *all_decodes)))
            log.flush()
    finally:
        os.close(reader)
    (message,) = [entry.getMessage() for entry in caplog.records]
    assert "ends here" in message
