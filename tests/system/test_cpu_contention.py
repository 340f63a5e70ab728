"""What others take of the processors."""

from __future__ import annotations

import psutil
import pytest

from sarathi.system.cpu_contention import CpuTimes, cpu_times, undisturbed, was_quiet


def at(clock: float, own: float = 0.0, busy: float = 0.0, processors: int = 4) -> CpuTimes:
    return CpuTimes(clock, own, busy, processors)


@pytest.mark.parametrize(
    ("threads", "others", "quiet"),
    [(4, 0.0, True), (4, 0.3, True), (4, 1.0, False), (2, 2.0, True), (2, 3.0, False)],
)
def test_a_machine_is_quiet_that_has_a_processor_for_every_thread(
    threads: int, others: float, quiet: bool
) -> None:
    before, after = at(10.0, 5.0, 20.0), at(12.0, 5.0 + 6.0, 20.0 + 6.0 + 2 * others)
    assert was_quiet(before, after, threads) is quiet


def test_no_time_at_all_is_quiet() -> None:
    assert was_quiet(at(1.0), at(1.0), 4)


def test_threads_that_were_kept_from_computing_would_have_been_faster() -> None:
    assert undisturbed(1.0, own=0.9, threads=2) == pytest.approx(0.5)
    assert undisturbed(1.0, own=1.95, threads=2) == 1.0  # hardly any thread ever waited
    assert undisturbed(1.0, own=0.0, threads=2) == 1.0  # a clock without a value


def test_clocks_of_this_machine_go_on() -> None:
    before = cpu_times()
    while cpu_times().own < before.own + 0.02:
        pass
    after = cpu_times()
    assert after.clock > before.clock
    assert after.busy >= before.busy
    assert after.processors >= 1


def test_a_system_without_clocks_has_no_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(percpu: bool) -> None:
        raise FileNotFoundError("/proc/stat")

    before = cpu_times()
    monkeypatch.setattr(psutil, "cpu_times", hidden)
    first, second = cpu_times(), cpu_times()
    assert first.own >= before.own
    assert was_quiet(first, second, first.processors)
