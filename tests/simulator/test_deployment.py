from __future__ import annotations

from typing import Any

import pytest

from sarathi.errors import SimulationError
from tests.simulator.deployments import deployment


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tp": 0}, "tp is 0, expected 1 to 32 (the heads of mistral-7b)"),
        ({"tp": 64}, "tp is 64, expected 1 to 32"),
        ({"tp": 3}, "tp is 3, expected a divisor of the 32 heads of mistral-7b"),
        ({"tp": 16, "device": "a100-pairwise", "nodes": 2}, "nodes is 2, expected 4 to 4"),
        ({"pp": 33}, "pp is 33, expected 1 to 32 (the layers of mistral-7b)"),
        ({"pp": 2, "nodes": 3}, "nodes is 3, expected 1 to 2"),
        ({"max_model_len": 0}, "max_model_len is 0, expected at least 1"),
        ({"memory_utilization": 1.5}, "memory_utilization is 1.5, expected above 0, at most 1"),
        ({"bytes_per_weight": 0}, "bytes_per_weight is 0, expected above 0"),
        ({"model": "falcon-180b", "tp": 16}, "tp is 16, expected a divisor of the 232 heads"),
        (
            {"model": "smollm2-135m", "tp": 9},
            "tp is 9, expected a divisor of the 1536 inter",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SimulationError) as refused:
        deployment(**fields)
    assert message in str(refused.value)


def test_as_few_nodes_as_possible() -> None:
    assert deployment("llama2-70b", "a40", tp=4, pp=2).num_nodes == 1
    assert deployment("falcon-180b", "a100-pairwise", tp=4, pp=2).num_nodes == 2
    assert deployment("falcon-180b", "a100-pairwise", tp=8).num_nodes == 2
    assert deployment("llama2-70b", "a40", tp=4, pp=2, nodes=2).num_nodes == 2


def test_boundaries_between_nodes() -> None:
    assert deployment("falcon-180b", "a100-pairwise", tp=4, pp=2).crossings == 1
    assert deployment("llama2-70b", "a40", tp=4, pp=2).crossings == 0
    assert deployment("llama2-70b", "a40", tp=2, pp=8).crossings == 1
    assert deployment("llama2-70b", "a40", tp=2, pp=4, nodes=4).crossings == 3


def test_the_price_is_of_all_workers() -> None:
    assert deployment("llama2-70b", "a40", tp=4, pp=2).price == pytest.approx(8 * 1.28)
    assert deployment(device="l4").price is None
