"""What is told of predictions and what came of them."""

from __future__ import annotations

import pytest

from sarathi.scheduler.budget.latency_model import Accuracy, AccuracyWindow


def test_nothing_is_known_at_first_and_some_lateness_presumed() -> None:
    assert AccuracyWindow().accuracy == Accuracy(0.0, 0.0, 0, 0.1)


def test_lateness_is_that_of_one_in_twenty_iterations_with_prompt() -> None:
    window = AccuracyWindow()
    for number in range(100):
        window.add(1.0, 1.0 + number / 100, with_prompt=True)
        window.add(1.0, 9.0, with_prompt=False)
    assert window.accuracy.late == pytest.approx(0.95, abs=0.05)


def test_early_iterations_are_not_late() -> None:
    window = AccuracyWindow()
    for _ in range(64):
        window.add(1.0, 0.5, with_prompt=True)
    assert window.accuracy.late == 0.0
    assert window.accuracy.median == pytest.approx(1.0)
