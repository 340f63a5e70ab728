from __future__ import annotations

import msgspec
import pytest
from fake_engine import INFO

from sarathi.server.run import summary


def line(**info) -> str:
    return summary(msgspec.structs.replace(INFO, **info))


def test_a_derived_target_is_told_with_its_rule():
    told = line(tbt_target=0.1432, tbt_target_reason="5x a decode-only iteration of 29 ms")
    assert "target of 143 ms between tokens (5x a decode-only iteration of 29 ms), " in told


def test_a_given_target_is_told_as_it_is():
    told = line(tbt_target=1.5)
    assert "target of 1.5 s between tokens, " in told
    assert "5x" not in told


def test_a_fixed_budget_takes_the_targets_place():
    told = line(tbt_target=None, token_budget=64)
    assert "token budget 64" in told
    assert "target" not in told


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"order": "slack"}, "order slack"),
        ({"fair_by": "tenant"}, "fair by tenant"),
        ({"deterministic": True}, "deterministic"),
        ({"prefix_caching": False}, "no prefix caching"),
    ],
)
def test_what_differs_from_the_default_is_told_and_only_that(info, words):
    assert words in line(**info)
    assert words not in line()
