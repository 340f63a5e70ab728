"""Which process has what, and what cannot be shared out."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId, possible_ranks
from sarathi.errors import ModelError
from sarathi.models.model_config import ModelConfig
from sarathi.models.sharding import Shard

# The sizes of SmolLM2-135M, whose 3 key heads make it a hard one to share out.
CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    norm_eps=1e-5,
    max_position=8192,
    inv_freq=(1.0,) * 32,
    sliding_windows=(0,) * 30,
)


def test_places_go_stage_by_stage() -> None:
    layout = ParallelLayout(pp=2, tp=3)
    assert layout.ranks == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    assert str(layout.ranks[3]) == "stage 1, rank 0"


def test_the_engine_has_the_place_that_gives_logits() -> None:
    layout = ParallelLayout(pp=2, tp=3)
    assert layout.engine_rank == (1, 0)
    assert layout.stages(CONFIG)[layout.engine_rank.stage].last
    assert set(layout.worker_ranks) == set(layout.ranks) - {layout.engine_rank}


def test_one_process_has_no_workers() -> None:
    layout = ParallelLayout()
    assert layout.ranks == (layout.engine_rank,)
    assert layout.worker_ranks == ()


def test_every_layer_is_in_one_stage() -> None:
    stages = ParallelLayout(pp=5).stages(CONFIG)
    assert [layer for stage in stages for layer in stage.layers] == list(range(30))


def test_ranks_have_different_shards() -> None:
    layout = ParallelLayout(tp=3)
    assert [layout.shard(rank_id) for rank_id in layout.ranks] == [Shard(i, 3) for i in range(3)]


def test_it_can_be_sent() -> None:
    for value in (ParallelLayout(2, 3), RankId(1, 2)):
        assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


@pytest.mark.parametrize(
    "layout",
    [ParallelLayout(), ParallelLayout(pp=2), ParallelLayout(tp=3), ParallelLayout(pp=10, tp=3)],
)
def test_what_divides_is_accepted(layout: ParallelLayout) -> None:
    layout.check(CONFIG)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (ParallelLayout(pp=4), "30 layers .* only to 1, 2, 3, 5, 6, 10, 15, 30$"),
        (ParallelLayout(tp=2), "9 heads .* to 2 ranks; possible numbers of ranks are 1, 3$"),
        (
            ParallelLayout(tp=9),
            "1536 MLP features .* to 9 ranks; possible numbers of ranks are 1, 3$",
        ),
        (ParallelLayout(tp=18), "9 heads .* to 18 ranks"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(
    layout: ParallelLayout, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        layout.check(CONFIG)


def test_ranks_may_share_a_key_head_but_not_have_one_and_a_half() -> None:
    wide = replace(CONFIG, num_heads=12, intermediate_size=1536)
    assert possible_ranks(wide) == (1, 3, 6, 12)
