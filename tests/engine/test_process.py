"""What the engine process says to a terminal."""

from __future__ import annotations

from sarathi.engine.messages import Stats
from sarathi.engine.process import in_words


def test_a_line_about_how_it_goes() -> None:
    stats = Stats(3, 12, 50, 10, 100, 0, 1000, 4000, 1000, 0, 0.031, 0.118)
    assert in_words(stats) == (
        "3 running, 12 waiting; predicted iteration times are off by 3.1 % (median) and 11.8 % "
        "(P90); 25 % of prompt tokens came from the prefix cache"
    )


def test_before_the_first_prompt() -> None:
    assert "0 % of prompt tokens" in in_words(Stats(0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0.0, 0.0))
