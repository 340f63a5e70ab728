"""What the server logs when the model is ready, and at which level."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import msgspec
import pytest

from sarathi.server.run import log, set_up_logging, summary
from tests.server.fake_engine import INFO


def summary_with(**info) -> str:
    return summary(msgspec.structs.replace(INFO, **info))


def test_a_derived_target_is_logged_with_its_rule():
    text = summary_with(tbt_target=0.1432, tbt_target_reason="5x a decode-only iteration of 29 ms")
    assert "target of 143 ms between tokens (5x a decode-only iteration of 29 ms), " in text


def test_a_given_target_is_logged_as_it_is():
    text = summary_with(tbt_target=1.5)
    assert "target of 1.5 s between tokens, " in text
    assert "5x" not in text


def test_a_fixed_budget_is_logged_instead_of_a_target():
    text = summary_with(tbt_target=None, token_budget=64)
    assert "token budget 64" in text
    assert "target" not in text


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"order": "slack"}, "order slack"),
        ({"fair_by": "tenant"}, "fair by tenant"),
        ({"deterministic": True}, "deterministic"),
        ({"prefix_caching": False}, "no prefix caching"),
    ],
)
def test_only_what_differs_from_the_default_is_logged(info, words):
    assert words in summary_with(**info)
    assert words not in summary_with()


@pytest.fixture
def fresh_logger() -> Iterator[None]:
    logger = logging.getLogger("sarathi")
    handlers, level = logger.handlers, logger.level
    logger.handlers = []
    yield
    logger.handlers = handlers
    logger.setLevel(level)


MESSAGES = ["ready", "warning: slow", "replica 1: error: dead"]


@pytest.mark.usefixtures("fresh_logger")
@pytest.mark.parametrize(
    ("level", "count"), [(None, 3), ("debug", 3), ("info", 3), ("warning", 2), ("error", 1)]
)
def test_messages_of_the_level_and_above_go_to_stderr_each_once(level, count, capsys):
    if level is not None:
        set_up_logging(level)
    for message in MESSAGES:
        log(message)
    logging.getLogger("sarathi.server").error("A stream failed")
    expected = [f"sarathi: {message}" for message in [*MESSAGES[-count:], "A stream failed"]]
    assert capsys.readouterr().err.splitlines() == expected


@pytest.mark.usefixtures("fresh_logger")
def test_a_closed_stderr_stops_nothing(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as closed:
        monkeypatch.setattr("sys.stderr", closed)
        log("ready")
        with contextlib.suppress(OSError):
            closed.close()
