"""Results written and read again."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from sarathi.bench.results import (
    Capacity,
    Point,
    Run,
    load_all,
    load_results,
    load_run,
    run_name,
    runs_of,
    save,
)
from sarathi.errors import BenchmarkError
from tests.bench.made_up import record, run

RUN = run([record([0.05, 0.06], delay=None), record(failure="timeout")], invalid="the client")


def capacity(*rates: float) -> Capacity:
    return Capacity(
        label="Sarathi",
        server="sarathi serve tiny",
        model="tiny",
        workload={},
        machine="here",
        tbt_target=0.1,
        delay_target=2.0,
        requests_per_point=2,
        resolution=0.1,
        capacity=None,
        low=None,
        high=None,
        points=[
            Point(
                rate=rate,
                met=False,
                reason="because",
                certain=True,
                summary=RUN.summary,
                run=run_name(rate, 0),
            )
            for rate in rates
        ],
    )


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_a_run_survives_a_file(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, RUN)
    found = load_results(tmp_path / name)
    assert isinstance(found, Run)
    assert replace(found, records=[]) == replace(RUN, records=[])
    for before, after in zip(RUN.records, found.records, strict=True):
        assert after.tokens == pytest.approx(before.tokens, abs=5e-5)
        assert replace(after, tokens=[], arrival=0, end=0) == replace(
            before, tokens=[], arrival=0, end=0
        )
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_capacity_survives_a_file(tmp_path: Path) -> None:
    save(tmp_path / "result.json", capacity(1.0, 2.5))
    assert load_results(tmp_path / "result.json") == capacity(1.0, 2.5)


def test_times_are_rounded_and_nothing_changes_when_written_again(tmp_path: Path) -> None:
    exact = record([0.123456789], arrival=1.23456789, delay=0.98765432)
    save(tmp_path / "a", run([exact]))
    found = load_run(tmp_path / "a")
    (rounded,) = found.records
    assert (rounded.arrival, rounded.scheduling_delay) == (1.2346, 0.9877)
    assert rounded.tokens == [1.4346, 1.558]
    save(tmp_path / "b", found)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_million_tokens_are_written_and_read_quickly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = run([record()])
    records = [
        replace(record(), tokens=np.cumsum(rng.random(440)).tolist(), arrival=0.0)
        for _ in range(2048)
    ]
    large = replace(large, records=records)
    before = time.perf_counter()
    save(tmp_path / "run.json.gz", large)
    assert len(load_run(tmp_path / "run.json.gz").records) == 2048
    assert time.perf_counter() - before < 8  # a second and a half where nothing else runs
    assert (tmp_path / "run.json.gz").stat().st_size < 6e6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[1]", "damaged"),
        (b'{"kind": "picture", "format": 1}', "damaged"),
        (b'{"kind": "run", "format": 1, "content": {}}', "damaged"),
        (b'{"kind": "run", "format": 0}', "format 0, this version reads 1"),
        (gzip.compress(b"{}", mtime=0), "damaged"),
        (gzip.compress(bytes(5000), mtime=0)[:-9], "damaged"),
        (b"\x1f\x8b" + bytes(50), "damaged|cannot be read"),
        (b"[" * 100_000, "damaged"),
    ],
)
def test_a_damaged_file_is_reported_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "run.json.gz"
    file.write_bytes(data)
    with pytest.raises(BenchmarkError, match=message) as error:
        load_results(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_cut_anywhere_is_reported(tmp_path: Path) -> None:
    save(tmp_path / "whole.json.gz", RUN)
    whole = (tmp_path / "whole.json.gz").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(BenchmarkError):
            load_results(tmp_path / "cut")


def test_what_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="No such file"):
        load_results(tmp_path / "run.json")
    with pytest.raises(BenchmarkError, match="cannot be read: Is a directory"):
        load_results(tmp_path)
    with pytest.raises(BenchmarkError, match="cannot be written: No such file"):
        save(tmp_path / "nowhere" / "run.json", RUN)
    save(tmp_path / "result.json", capacity())
    with pytest.raises(BenchmarkError, match="expected a run"):
        load_run(tmp_path / "result.json")


def test_a_write_that_fails_leaves_the_file_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    save(file, RUN)
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchmarkError, match="No space left"):
        save(file, run([record()]))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_keeps_pointing_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    save(tmp_path / "link.json", RUN)
    assert (tmp_path / "link.json").is_symlink()
    load_run(tmp_path / "real.json")


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    save(pipe, RUN)
    assert msgspec.json.decode(os.read(reader, 1 << 16))["kind"] == "run"
    assert pipe.is_fifo()
    os.close(reader)


def test_all_of_a_folder_is_its_result_or_else_its_runs(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="holds no results"):
        load_all(tmp_path)
    for name in ("run-001.json", "run-000.json"):
        save(tmp_path / name, RUN)
    (tmp_path / "server.log").write_text("ready")
    found = load_all(tmp_path)
    assert [file.name for file, _ in found] == ["run-000.json", "run-001.json"]
    assert load_all(tmp_path / "run-001.json") == found[1:]
    save(tmp_path / "result.json", capacity(1.0))
    assert load_all(tmp_path) == [(tmp_path / "result.json", capacity(1.0))]


def test_runs_of_a_capacity_are_found_beside_it(tmp_path: Path) -> None:
    for rate, repeat, seed in ((1.0, 0, 0), (2.5, 0, 0), (2.5, 1, 1), (2.5, 3, 9), (4.0, 0, 0)):
        save(tmp_path / run_name(rate, repeat), run([record()], rate=rate, seed=seed))
    found = runs_of(capacity(1.0, 2.5, 3.0), tmp_path)
    assert [(one.rate, one.seed) for one in found] == [(1.0, 0), (2.5, 0), (2.5, 1)]


def test_names_of_runs() -> None:
    assert run_name(1.41, 0) == "run-1.41.json.gz"
    assert run_name(120.0, 1) == "run-120-2.json.gz"
