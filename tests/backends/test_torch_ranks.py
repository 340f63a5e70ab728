"""Ranks that share the layers compute what one rank computes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sarathi.backends.step import StepPart, join_parts
from sarathi.backends.torch.process_group import (
    DistributedGroup,
    ProcessGroup,
    Rendezvous,
    interface_towards,
)
from sarathi.errors import ExecutorError, ModelError
from sarathi.models.decoder import pipeline_stages
from sarathi.models.model import open_model
from sarathi.models.sharding import Shard
from sarathi.sampling.params import SamplingParams
from tests import tiny_models
from tests.backends.engines import engine, load_torch, run
from tests.backends.ranks import HOST, Crew, everywhere, ranks
from tests.backends.test_parity import LENGTHS, chunk

# Families and numbers of ranks: with key heads for each rank and fewer, one norm and two, biases,
# an untied head and a tied one, windows.
CASES = [
    ("llama", 2),
    ("llama", 4),
    ("llama-tied", 2),
    ("llama-biases", 4),
    ("yi", 4),
    ("mistral-sliding", 2),
    ("qwen3-wide-heads", 4),
    ("phi3", 2),
    ("gemma3-scaled", 2),
    ("falcon-40b", 2),
    ("falcon-40b", 4),
    ("falcon-180b", 2),
    ("falcon-serial", 4),
]


GREEDY = SamplingParams(max_tokens=20, temperature=0)


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(3)
    yield crew
    crew.close()


@pytest.mark.parametrize(("family", "count"), CASES)
def test_the_same_tokens(crew: Crew, family: str, count: int, tmp_path: Path) -> None:
    tiny_models.save_tiny(family, tmp_path)
    rng = np.random.default_rng(count)
    prompts = [rng.integers(2, tiny_models.VOCAB_SIZE, n).tolist() for n in LENGTHS]
    alone = load_torch(tmp_path)
    step = chunk(prompts[2], 0, 50)
    expected: Any
    expected, tokens = alone.execute(step).copy(), run(engine(alone, budget=32), prompts, GREEDY)
    with ranks(crew, tmp_path, count) as several:
        np.testing.assert_allclose(several.execute(step), expected, atol=1e-4)
        assert run(engine(several, budget=32), prompts, GREEDY) == tokens
        assert several.weight_bytes < alone.weight_bytes


def test_more_ranks_than_can_share_the_heads(tmp_path: Path) -> None:
    tiny_models.save_tiny("falcon-180b", tmp_path)
    with pytest.raises(ModelError, match="14 heads cannot be shared out equally to 4 ranks"):
        load_torch(tmp_path, shard=Shard(0, 4))


def test_hidden_states_reach_the_other_ranks(crew: Crew, tmp_path: Path) -> None:
    """Of a later stage only the first rank is given them, and the check needs no weights."""
    tiny_models.save_tiny("falcon-180b", tmp_path)
    alone = [
        load_torch(tmp_path, stage=stage)
        for stage in pipeline_stages(open_model(tmp_path).config, 3)
    ]
    step = chunk([5, 6, 7, 8], 0, 4)
    hidden = alone[0].execute(step).copy()
    expected: Any = alone[1].execute(step, hidden).copy()
    with ranks(crew, tmp_path, 2, stage=alone[1].stage) as several:
        found = several.execute(step, hidden)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        several.check()


def test_half_precision_sums_and_deterministic_ones(crew: Crew, tmp_path: Path) -> None:
    tiny_models.save_tiny("llama-biases", tmp_path)
    options: dict[str, Any] = {"precision": "bf16", "deterministic": True}
    prompt = list(range(2, 40))
    expected = load_torch(tmp_path, **options).execute(chunk(prompt, 0, 38)).copy()
    with ranks(crew, tmp_path, 4, **options) as several:
        found = several.execute(chunk(prompt, 0, 38)).copy()
        assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
        first = several.execute(chunk(prompt, 0, 1)).copy()
        mates = [StepPart([prompt[0]], 0, [block], samples=True) for block in range(9)]
        assert np.array_equal(several.execute(join_parts(mates, 32))[8], first[0])


def collectives(group: ProcessGroup) -> tuple[bool, ...]:
    rank, size = group.rank, group.size
    mine = torch.tensor([[float(rank), 1.0]])
    total = sum(range(size))
    found = [
        torch.equal(group.all_reduce(mine.to(dtype)), torch.tensor([[total, size]], dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    found.append(torch.equal(group.broadcast(torch.full((3,), float(rank))), torch.zeros(3)))
    gathered = group.gather(torch.tensor([[float(rank)], [10.0 + rank]]))
    every = torch.tensor([[float(r) for r in range(size)], [10.0 + r for r in range(size)]])
    found.append(torch.equal(gathered, every if rank == 0 else every[:, rank : rank + 1]))
    return tuple(found)


@pytest.mark.parametrize("count", [2, 4])
def test_collective_operations(crew: Crew, count: int) -> None:
    assert everywhere(crew, count, collectives) == [(True,) * 5] * count


def leaves(group: ProcessGroup) -> str:
    group.all_reduce(torch.zeros(1))  # both are connected now
    if group.rank == 1:
        return "left"
    try:
        group.all_reduce(torch.zeros(1))
    except ExecutorError as error:
        return str(error)
    return "nothing noticed"


def test_a_rank_that_has_gone(crew: Crew) -> None:
    error, left = everywhere(crew, 2, leaves)
    assert left == "left"
    assert error.startswith("rank 0 of 2 could not sum: another rank has ended")


class TestConnecting:
    def test_a_rank_that_never_connects(self) -> None:
        with pytest.raises(ExecutorError, match="rank 0 of 2 could not connect to the other ranks"):
            DistributedGroup(Rendezvous.open(HOST, 0.3), 0, 2, torch.device("cpu"), 0.3)

    def test_a_group_after_one_that_failed(self, crew: Crew) -> None:
        with pytest.raises(ExecutorError):
            DistributedGroup(Rendezvous.open(HOST, 0.3), 0, 2, torch.device("cpu"), 0.3)
        assert everywhere(crew, 2, collectives) == [(True,) * 5] * 2

    def test_a_rendezvous_that_does_not_answer(self) -> None:
        with socket.create_server((HOST, 0)) as server:
            address = f"{HOST}:{server.getsockname()[1]}"
        with pytest.raises(ExecutorError, match=f"cannot be reached at {address}: is it running"):
            Rendezvous.join(address, 0.5)

    def test_an_address_of_another_machine(self) -> None:
        with pytest.raises(
            ExecutorError, match=r"cannot be reached under the address 192\.0\.2\.1"
        ):
            Rendezvous.open("192.0.2.1", 0.5)

    def test_the_store_listens_at_one_address_only(self) -> None:
        port = int(Rendezvous.open(HOST, 1.0).address.rpartition(":")[2])
        with pytest.raises(OSError):  # noqa: PT011 - refused
            socket.create_connection(("127.0.0.2", port), 1.0)

    def test_interfaces(self) -> None:
        found = interface_towards(HOST)
        assert found is not None
        assert found.startswith("lo")
        assert interface_towards("no-address") is None
