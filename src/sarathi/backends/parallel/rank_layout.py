"""Which process computes what: stages of layers, and ranks that share each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sarathi.errors import ModelError
from sarathi.models.decoder import Stage, pipeline_stages
from sarathi.models.model_config import ModelConfig
from sarathi.models.sharding import Shard, shard_config


class RankId(NamedTuple):
    """Where one process stands; counted from 0."""

    stage: int
    rank: int

    def __str__(self) -> str:
        return f"stage {self.stage}, rank {self.rank}"


@dataclass(frozen=True)
class ParallelLayout:
    """`pp` stages of equally many layers, each of them shared by `tp` ranks; a process for each."""

    pp: int = 1
    tp: int = 1

    @property
    def places(self) -> tuple[RankId, ...]:
        """All of them, stage by stage, the ranks of each in order."""
        return tuple(RankId(stage, rank) for stage in range(self.pp) for rank in range(self.tp))

    @property
    def engine(self) -> RankId:
        """Held by the engine process itself, which samples: so logits never travel."""
        return RankId(self.pp - 1, 0)

    @property
    def workers(self) -> tuple[RankId, ...]:
        """The places of the other processes, in the order of `places`."""
        return tuple(place for place in self.places if place != self.engine)

    def ranks(self, stage: int) -> tuple[RankId, ...]:
        """Those that share the layers of one stage."""
        return tuple(RankId(stage, rank) for rank in range(self.tp))

    def shard(self, place: RankId) -> Shard:
        return Shard(place.rank, self.tp)

    def stages(self, config: ModelConfig) -> tuple[Stage, ...]:
        """
        Raises:
            ModelError: the layers cannot be shared out equally; the message says what is possible.
        """
        return pipeline_stages(config, self.pp)

    def check(self, config: ModelConfig) -> None:
        """
        Raises:
            ModelError: the layers, or the heads and MLP features of one, cannot be shared out
                equally; the message says what is possible.
        """
        self.stages(config)
        try:
            shard_config(config, self.tp)
        except ModelError as error:
            possible = ", ".join(map(str, possible_ranks(config)))
            raise ModelError(f"{error}; possible numbers of ranks are {possible}") from None


def possible_ranks(config: ModelConfig) -> tuple[int, ...]:
    """Numbers of ranks that can share a layer."""

    def shares(count: int) -> bool:
        try:
            shard_config(config, count)
        except ModelError:
            return False
        return True

    return tuple(filter(shares, range(1, config.num_heads + 1)))
