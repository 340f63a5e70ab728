"""The folder of a search."""

from __future__ import annotations

import json
import logging
import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from sarathi.bench.capacity.capacity_search import SearchStore
from sarathi.bench.results import save
from sarathi.errors import BenchmarkError
from tests.bench.made_up import record, run

CONFIGURATION = {"server": "sarathi serve tiny", "seed": 0, "workload": {"b": "1", "a": "2"}}


def store(root: Path, **changes: object) -> SearchStore:
    return SearchStore(root, "capacity-Sarathi (100 ms)", {**CONFIGURATION, **changes})


def numbers(store: SearchStore) -> list[tuple[float, int, int]]:
    return [(rate, repeat, found.seed) for rate, repeat, found in store.runs()]


def test_a_configuration_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = store(tmp_path).folder
    assert folder.name.startswith("capacity-sarathi-100-ms-")
    assert len(folder.name.removeprefix("capacity-sarathi-100-ms-")) == 12
    again = SearchStore(
        tmp_path, "capacity-Sarathi (100 ms)", dict(reversed(CONFIGURATION.items()))
    )
    assert again.folder == folder, "the order of keys is of no weight"
    assert store(tmp_path, seed=1).folder != folder


@pytest.mark.parametrize("label", ["../../etc", "模型", "", "a/b\0c", "x" * 500, "..."])
def test_any_label_makes_a_folder_within_the_root(tmp_path: Path, label: str) -> None:
    made = SearchStore(tmp_path, label, CONFIGURATION)
    with made.opened():
        assert made.folder.parent == tmp_path
        assert made.folder.is_dir()


def test_the_configuration_can_be_read(tmp_path: Path) -> None:
    made = store(tmp_path)
    with made.opened():
        text = (made.folder / "config.json").read_text()
    assert json.loads(text) == CONFIGURATION
    assert len(text.splitlines()) > len(CONFIGURATION)


def test_runs_are_there_for_the_next_search(tmp_path: Path) -> None:
    with (made := store(tmp_path)).opened():
        assert numbers(made) == []
        for rate, repeat, seed in ((10.0, 0, 1), (2.5, 1, 2), (2.5, 0, 3), (0.00012, 0, 4)):
            made.keep(rate, repeat, run([record()], rate=rate, seed=seed))
    with (again := store(tmp_path)).opened():
        assert numbers(again) == [(0.00012, 0, 4), (2.5, 0, 3), (2.5, 1, 2), (10.0, 0, 1)]
        assert again.load(2.5, 1).seed == 2


def test_what_cannot_be_read_is_set_aside_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (made := store(tmp_path)).opened():
        for rate in (1.0, 2.0, 4.0, 8.0):
            made.keep(rate, 0, run([record()], rate=rate))
        cut = made.folder / "run-2.json.gz"
        cut.write_bytes(cut.read_bytes()[:-20])
        (made.folder / "run-4.json.gz").rename(made.folder / "run-5.json.gz")
        save(made.folder / "run-8.json.gz", run([record()], rate=None))
        with caplog.at_level(logging.WARNING):
            assert numbers(made) == [(1.0, 0, 0)]
        assert len(caplog.messages) == 3
        assert "run-2.json.gz is no result, or is damaged" in caplog.messages[0]
        assert "run-2.json.gz.unreadable" in caplog.messages[0]
        assert "does not have the rate of its name" in caplog.messages[1]
        assert cut.with_name("run-2.json.gz.unreadable").exists()
        assert numbers(made) == [(1.0, 0, 0)]
        assert len(caplog.messages) == 3


def test_files_that_are_no_runs_are_left_alone(tmp_path: Path) -> None:
    with (made := store(tmp_path)).opened():
        for name in ("run-1.2.3.json.gz", "run-.json.gz", "run-1.json", "notes.txt"):
            (made.folder / name).write_text("mine")
        assert numbers(made) == []
        assert (made.folder / "run-1.2.3.json.gz").read_text() == "mine"


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.folder.mkdir()
    (made.folder / "run-1.json.gz.4711.partial").write_text("half")
    with made.opened():
        assert not list(made.folder.glob("*.partial"))


def test_a_folder_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    with (made := store(tmp_path)).opened():
        with pytest.raises(BenchmarkError, match="another process is measuring the same"):
            store(tmp_path).opened().__enter__()
        with store(tmp_path, seed=1).opened():
            pass
    with made.opened():
        pass


def _hold(root: Path, ready: Event) -> None:
    with store(root).opened():
        ready.set()
        multiprocessing.Event().wait()


def test_a_process_that_was_killed_holds_no_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(10)
    with pytest.raises(BenchmarkError):
        store(tmp_path).opened().__enter__()
    other.kill()
    other.join()
    with store(tmp_path).opened():
        pass


def test_a_root_that_cannot_be_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BenchmarkError, match="cannot be written: Not a directory"),
        store(tmp_path / "file").opened(),
    ):
        pass
