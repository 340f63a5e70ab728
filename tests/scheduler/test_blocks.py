from __future__ import annotations

import pytest

from sarathi.scheduler import BlockPool, Request, StopCriteria


def owner(name: int = 0) -> Request:
    return Request(name, range(5), StopCriteria(1), 0.0)


def test_blocks_go_back_and_forth() -> None:
    pool = BlockPool(4, block_size=2)
    first, second = owner(1), owner(2)
    pool.allocate(first, 3)
    pool.allocate(second, 1)
    assert sorted(first.blocks + second.blocks) == [0, 1, 2, 3]
    assert pool.num_free == 0
    pool.release(first)
    assert first.blocks == []
    assert pool.num_free == 3
    pool.check([first, second])


def test_reserved_blocks_are_free_but_not_available() -> None:
    pool = BlockPool(4, block_size=2)
    pool.reserve(3)
    assert (pool.num_free, pool.num_available) == (4, 1)
    with pytest.raises(ValueError, match="cannot allocate 2 of 1"):
        pool.allocate(owner(), 2)
    pool.unreserve(3)
    assert pool.num_available == 4


def test_what_is_not_there_cannot_be_reserved_or_given_back() -> None:
    pool = BlockPool(2, block_size=2)
    with pytest.raises(ValueError, match="reserve 3 of 2"):
        pool.reserve(3)
    with pytest.raises(ValueError, match="give back 1 of 0"):
        pool.unreserve(1)


def test_missing_blocks_round_up_and_never_go_below_zero() -> None:
    pool = BlockPool(4, block_size=4)
    request = owner()
    assert [pool.missing(request, n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    pool.allocate(request, 2)
    assert pool.missing(request, 3) == 0


def test_the_check_notices_a_block_with_two_owners_and_a_lost_block() -> None:
    pool = BlockPool(2, block_size=4)
    first, second = owner(1), owner(2)
    pool.allocate(first, 1)
    second.blocks.append(first.blocks[0])
    with pytest.raises(AssertionError):
        pool.check([first, second])
    with pytest.raises(AssertionError):
        pool.check([])


@pytest.mark.parametrize(("blocks", "size"), [(0, 4), (4, 0)])
def test_an_empty_pool_is_refused(blocks: int, size: int) -> None:
    with pytest.raises(ValueError, match="pool needs"):
        BlockPool(blocks, size)
