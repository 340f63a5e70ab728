"""The derived time between tokens, from start to start."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from sarathi.engine.scheduler_factory import TypicalDecodes, derived_target
from sarathi.engine.startup.profile import (
    Conditions,
    MeasuredLatency,
    keep_fastest,
    promised_target,
)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sarathi" / "latency"


CONDITIONS: Conditions = {
    "processor": "A",
    "processors": [0, 1],
    "cores": 2,
    "devices": [],
    "hosts": [],
    "versions": "1",
    "model": "abc",
    "executor": "openvino",
    "precision": "bf16",
    "kv_precision": "bf16",
    "deterministic": False,
    "threads": None,
    "pp": 1,
    "tp": 1,
    "engines_here": 1,
    "requests": 32,
    "context": 512,
}


def test_typical_decodes_are_those_that_an_engine_can_have() -> None:
    assert TypicalDecodes(32, 512).fitting(128, 8192) == (32, 512)
    assert TypicalDecodes(32, 512).fitting(8, 100) == (8, 50)
    assert TypicalDecodes(32, 512).work == (32, 0.0, 32 * 512, 32)


class TestRule:
    @pytest.mark.parametrize(
        ("iteration", "target"),
        [(0.01, 0.05), (0.04, 0.2), (0.05, 0.25), (0.1, 0.25), (0.125, 0.25), (0.5, 1.0)],
    )
    def test_five_iterations_that_only_decode_up_to_what_readers_notice(
        self, iteration: float, target: float
    ) -> None:
        """Two iterations if decodes alone take more than half of that."""
        assert derived_target(iteration).seconds == pytest.approx(target)

    @pytest.mark.parametrize(
        ("iteration", "reason"),
        [
            (0.04, "5x a decode-only iteration of 40 ms"),
            (
                0.1,
                "the most that a reader should wait, less than 5x a decode-only iteration of "
                "100 ms",
            ),
            (0.5, "2x a decode-only iteration of 500 ms"),
        ],
    )
    def test_the_reason_is_given(self, iteration: float, reason: str) -> None:
        assert derived_target(iteration).reason == reason


class TestFastest:
    def test_a_slower_start_keeps_the_fastest(self) -> None:
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.04, True)) == MeasuredLatency(
            0.04, True, 1
        )
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.4, True)) == MeasuredLatency(
            0.04, True, 2
        )
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.03, True)) == MeasuredLatency(
            0.03, True, 3
        )
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.04, True)) == MeasuredLatency(
            0.03, True, 4
        )

    def test_measurements_count_before_estimates(self) -> None:
        keep_fastest(CONDITIONS, MeasuredLatency(0.05, False))
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.04, False)) == MeasuredLatency(
            0.04, False, 2
        )
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.06, True)) == MeasuredLatency(
            0.06, True, 3
        )
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.01, False)) == MeasuredLatency(
            0.06, True, 4
        )

    @pytest.mark.parametrize(
        "change",
        [{"model": "d"}, {"processors": [0]}, {"threads": 1}, {"precision": "f32"}, {"pp": 2}],
    )
    def test_other_conditions_are_another_matter(self, change: dict[str, object]) -> None:
        keep_fastest(CONDITIONS, MeasuredLatency(0.04, True))
        other = {**CONDITIONS, **change}
        assert keep_fastest(other, MeasuredLatency(0.4, True)) == MeasuredLatency(0.4, True, 1)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b"[]",
            b"null",
            b'{"format": 99}',
        ],
    )
    def test_a_corrupt_file_is_written_again(self, text: bytes, folder: Path) -> None:
        keep_fastest(CONDITIONS, MeasuredLatency(0.04, True))
        (path,) = folder.iterdir()
        path.write_bytes(text)
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.4, True)) == MeasuredLatency(0.4, True, 1)
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.5, True)) == MeasuredLatency(0.4, True, 2)

    @pytest.mark.parametrize(
        "change",
        [{"seconds": -1.0}, {"seconds": 0.0}, {"seconds": 1e300}, {"starts": 0}, {"starts": -5}],
    )
    def test_so_is_one_with_impossible_numbers(
        self, change: dict[str, float], folder: Path
    ) -> None:
        keep_fastest(CONDITIONS, MeasuredLatency(0.04, True))
        (path,) = folder.iterdir()
        entry = msgspec.json.decode(path.read_bytes())
        entry["measured"].update(change)
        path.write_bytes(msgspec.json.encode(entry))
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.4, True)) == MeasuredLatency(0.4, True, 1)

    def test_a_file_of_another_machine_under_the_same_name_is_not_believed(
        self, folder: Path
    ) -> None:
        keep_fastest(CONDITIONS, MeasuredLatency(0.04, True))
        (path,) = folder.iterdir()
        path.write_bytes(path.read_bytes().replace(b'"A"', b'"B"'))
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.4, True)) == MeasuredLatency(0.4, True, 1)

    def test_a_folder_that_cannot_be_written_is_no_error(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        keep_fastest(CONDITIONS, MeasuredLatency(0.04, True))
        monkeypatch.setattr(os, "fdopen", full)
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.01, True)) == MeasuredLatency(
            0.01, True, 2
        )
        assert len(list(folder.iterdir())) == 1

    def test_a_file_in_place_of_the_folder_is_no_error(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True)
        folder.write_text("")
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.04, True)) == MeasuredLatency(
            0.04, True, 1
        )

    def test_engines_that_start_at_the_same_time_leave_a_file_that_can_be_read(
        self, folder: Path
    ) -> None:
        def start(number: int) -> float:
            return keep_fastest(CONDITIONS, MeasuredLatency(0.1 + number / 1000, True)).seconds

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(start, range(200)))
        assert all(math.isfinite(one) for one in found)
        assert len(list(folder.iterdir())) == 1
        assert keep_fastest(CONDITIONS, MeasuredLatency(0.01, True)).starts > 1


class TestPromise:
    def test_it_stays_the_same_when_the_machine_is_busy(self) -> None:
        first = promised_target(CONDITIONS, MeasuredLatency(0.04, True))
        later = [
            promised_target(CONDITIONS, MeasuredLatency(seconds, quiet))
            for seconds, quiet in ((0.3, True), (0.03, False), (0.041, True))
        ]
        assert first == (0.2, "5x a decode-only iteration of 40 ms")
        assert {target.seconds for target in later} == {0.2}
        assert later[-1].reason == ("5x a decode-only iteration of 40 ms, the fastest of 4 starts")

    def test_an_estimate_is_named_as_one(self) -> None:
        reason = promised_target(CONDITIONS, MeasuredLatency(0.04, False)).reason
        assert reason == "5x a decode-only iteration of 40 ms, estimated on a busy machine"

    def test_a_token_passes_all_stages(self) -> None:
        stages = {**CONDITIONS, "pp": 3}
        assert promised_target(stages, MeasuredLatency(0.01, True)).seconds == pytest.approx(0.15)
