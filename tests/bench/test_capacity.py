"""Whole searches, with runs that are made up at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from sarathi.bench.capacity.capacity_search import CapacitySearch, Search, SearchStore, Try
from sarathi.bench.capacity.verdict import CapacityTargets
from sarathi.bench.results import RESULT_NAME, Capacity, Point, Run, load_results, runs_of, save
from sarathi.bench.target import ending_on_signals
from sarathi.errors import BenchmarkError
from tests.bench.made_up import record, run

CONFIGURATION = {"seed": 0}


class Server:
    """Meets the target up to 3 requests per second; from there to 3.5 it depends."""

    def __init__(self) -> None:
        self.asked: list[Try] = []
        self.recorded: list[tuple[Try, bool]] = []
        self.before: Callable[[Try], None] = lambda wanted: None

    def measure(self, wanted: Try) -> Run:
        self.asked.append(wanted)
        self.before(wanted)
        slow = 0 if wanted.rate <= 3 else 2 if wanted.rate <= 3.5 else 40
        gaps = [[0.05] * 6] * (60 - slow) + [[0.3] * 6] * slow
        return run([record(one) for one in gaps], rate=wanted.rate, seed=wanted.repeat)

    def tell(self, made: Run, point: Point) -> None:
        assert made.rate is not None
        self.recorded.append((Try(made.rate, made.seed), point.met))


@contextmanager
def searching(root: Path, server: Server, resolution: float = 0.1) -> Iterator[CapacitySearch]:
    store = SearchStore(root, "capacity", CONFIGURATION)
    with store.opened():
        yield CapacitySearch(
            Search(1, resolution), store, CapacityTargets(0.1), server.measure, server.tell
        )


def found(root: Path, server: Server, resolution: float = 0.1) -> Capacity:
    with searching(root, server, resolution) as search:
        while search.step():
            pass
        return search.result(60)


def test_the_capacity_is_found_with_its_points_in_order(tmp_path: Path) -> None:
    result = found(tmp_path, Server())
    assert [point.rate for point in result.points] == [1, 2, 2.83, 3.08, 3.36, 4]
    assert [point.met for point in result.points] == [True, True, True, False, False, False]
    assert (result.low, result.capacity, result.high) == (2.83, 2.83, 4)
    assert (result.label, result.model, result.machine) == ("Sarathi", "tiny", "here")
    assert (result.tbt_target, result.delay_target) == (0.1, 2.0)
    assert (result.requests_per_point, result.resolution) == (60, 0.1)
    assert result.points[-1].reason == "P99 TBT 300 ms above 100 ms"


def test_a_step_makes_one_run_and_reports_it(tmp_path: Path) -> None:
    server = Server()
    with searching(tmp_path, server) as search:
        assert search.step()
        assert server.asked == [Try(1.0)]
        assert server.recorded == [(Try(1.0), True)]
        assert search.step()
        assert server.asked == [Try(1.0), Try(2.0)]


def test_repeated_runs_are_one_point(tmp_path: Path) -> None:
    server = Server()
    with searching(tmp_path, server) as search:
        while search.step():
            pass
        result = search.result(60)
        runs = runs_of(result, search.store.folder)
    assert server.asked[-1] == Try(3.08, 1)
    point = next(point for point in result.points if point.rate == 3.08)
    assert (point.run, point.summary.requests, point.certain) == ("run-3.08.json.gz", 120, False)
    at = [(one.rate, one.seed) for one in runs]
    assert at == [(1, 0), (2, 0), (2.83, 0), (3.08, 0), (3.08, 1), (3.36, 0), (4, 0)]


def test_after_the_last_run_a_step_does_nothing(tmp_path: Path) -> None:
    server = Server()
    found(tmp_path, server)
    number = len(server.asked)
    with searching(tmp_path, server) as search:
        assert search.step() is False
    assert len(server.asked) == number


def test_a_search_continues_where_it_was_interrupted(tmp_path: Path) -> None:
    """At every run in turn: neither is one made twice, nor does the result differ."""
    whole = Server()
    expected = found(tmp_path / "whole", whole)
    for number in range(len(whole.asked)):
        server = Server()

        def interrupt(wanted: Try, server: Server = server, number: int = number) -> None:
            if len(server.asked) == number + 1:
                raise KeyboardInterrupt

        server.before = interrupt
        with pytest.raises(KeyboardInterrupt):
            found(tmp_path / str(number), server)
        later = Server()
        assert found(tmp_path / str(number), later) == expected
        assert server.asked[:number] + later.asked == whole.asked
        assert len(later.recorded) == len(whole.recorded), "earlier runs are reported as well"


def test_a_finer_search_makes_use_of_a_coarser_one(tmp_path: Path) -> None:
    found(tmp_path, Server(), 0.5)
    later = Server()
    assert found(tmp_path, later, 0.1).capacity == 2.83
    assert {1.0, 2.0, 4.0}.isdisjoint(wanted.rate for wanted in later.asked)


def test_a_run_whose_file_is_damaged_is_made_again(tmp_path: Path) -> None:
    first = Server()
    expected = found(tmp_path, first)
    (folder,) = tmp_path.iterdir()
    (folder / "run-3.08.json.gz").write_bytes(b"cut")
    later = Server()
    assert found(tmp_path, later) == expected
    assert later.asked == [Try(3.08), Try(3.08, 1)]


def test_an_invalid_run_is_made_once_more(tmp_path: Path) -> None:
    server = Server()
    measure = server.measure

    def first_invalid(wanted: Try) -> Run:
        late = "the client was late" if len(server.asked) == 1 else None
        return replace(measure(wanted), invalid=late)

    server.measure = first_invalid  # type: ignore[method-assign]
    assert found(tmp_path, server).capacity == 2.83
    assert server.asked[:4] == [Try(1.0), Try(2.0), Try(2.0), Try(4.0)]
    assert [made for made, _ in server.recorded][:3] == [Try(1.0), Try(2.0), Try(4.0)]


def test_a_run_that_is_invalid_twice_ends_the_search_and_keeps_the_others(tmp_path: Path) -> None:
    server = Server()
    measure = server.measure

    def later_invalid(wanted: Try) -> Run:
        late = "the client was late" if wanted.rate > 1 else None
        return replace(measure(wanted), invalid=late)

    server.measure = later_invalid  # type: ignore[method-assign]
    with pytest.raises(BenchmarkError, match=r"at 2 .*invalid twice: the client was late; .* kept"):
        found(tmp_path, server)
    later = Server()
    found(tmp_path, later)
    assert later.asked[0] == Try(2.0)


def test_a_run_that_was_stopped_is_a_certain_miss(tmp_path: Path) -> None:
    server = Server()
    measure = server.measure
    server.measure = lambda wanted: replace(  # type: ignore[method-assign]
        measure(wanted), stopped="stopped early" if wanted.rate > 1.5 else None
    )
    result = found(tmp_path, server)
    assert (result.low, result.capacity) == (1.41, 1.41)
    assert {(p.reason, p.certain) for p in result.points if p.rate > 1.5} == {
        ("stopped early", True)
    }
    assert [point.stopped for point in result.points] == [not p.met for p in result.points]


def test_several_searches_can_take_turns(tmp_path: Path) -> None:
    one, other = Server(), Server()
    with searching(tmp_path / "a", one) as first, searching(tmp_path / "b", other) as second:
        going = [first, second]
        while going:
            assert abs(len(one.asked) - len(other.asked)) == 0
            going = [search for search in going if search.step()]
        assert first.result(60) == second.result(60)


def test_a_signal_leaves_the_finished_runs_on_the_disk(tmp_path: Path) -> None:
    server = Server()
    server.before = lambda wanted: (
        os.kill(os.getpid(), signal.SIGTERM) if len(server.asked) == 3 else None
    )
    with ending_on_signals(), pytest.raises(KeyboardInterrupt) as error:
        found(tmp_path, server)
    assert error.value.args == (signal.SIGTERM,)
    (folder,) = tmp_path.iterdir()
    assert sorted(file.name for file in folder.glob("run-*")) == ["run-1.json.gz", "run-2.json.gz"]


def test_a_finished_result_can_be_loaded(tmp_path: Path) -> None:
    with searching(tmp_path, Server()) as search:
        while search.step():
            pass
        result = search.result(60)
        save(search.store.folder / RESULT_NAME, result)
    assert load_results(search.store.folder / RESULT_NAME) == result
