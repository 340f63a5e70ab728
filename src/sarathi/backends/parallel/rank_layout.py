"""Which process computes what: stages of layers, and the ranks that share each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sarathi.errors import ModelError
from sarathi.models.decoder import Stage, pipeline_stages
from sarathi.models.model_config import ModelConfig
from sarathi.models.sharding import Shard, shard_config


class RankId(NamedTuple):
    """One process: its stage, and its rank within the stage, both counted from 0."""

    stage: int
    rank: int

    def __str__(self) -> str:
        return f"stage {self.stage}, rank {self.rank}"


@dataclass(frozen=True)
class ParallelLayout:
    """`pp` stages of equally many layers, each shared by `tp` ranks; one process for each rank."""

    pp: int = 1
    tp: int = 1

    @property
    def ranks(self) -> tuple[RankId, ...]:
        """All processes, stage by stage."""
        return tuple(RankId(stage, rank) for stage in range(self.pp) for rank in range(self.tp))

    @property
    def engine_rank(self) -> RankId:
        """The engine process itself, which samples: so logits are never sent."""
        return RankId(self.pp - 1, 0)

    @property
    def worker_ranks(self) -> tuple[RankId, ...]:
        """The other processes, in the order of `ranks`."""
        return tuple(rank_id for rank_id in self.ranks if rank_id != self.engine_rank)

    def shard(self, rank_id: RankId) -> Shard:
        """Return the share of its stage that a process computes."""
        return Shard(rank_id.rank, self.tp)

    def stages(self, config: ModelConfig) -> tuple[Stage, ...]:
        """Return the layers of every stage; for errors see `check`."""
        return pipeline_stages(config, self.pp)

    def check(self, config: ModelConfig) -> None:
        """Raise `ModelError`, with what is possible, unless the layers, and the heads and MLP
        features of one, can be divided equally."""
        self.stages(config)
        try:
            shard_config(config, self.tp)
        except ModelError as error:
            possible = ", ".join(map(str, possible_ranks(config)))
            raise ModelError(f"{error}; possible numbers of ranks are {possible}") from None


def possible_ranks(config: ModelConfig) -> tuple[int, ...]:
    """Return the numbers of ranks that can share a layer."""

    def can_share(count: int) -> bool:
        try:
            shard_config(config, count)
        except ModelError:
            return False
        return True

    return tuple(filter(can_share, range(1, config.num_heads + 1)))
