"""What whoever waits for an engine is told of its loading."""

from __future__ import annotations

import time
from collections.abc import Callable

from sarathi.backends.footprint import footprint
from sarathi.backends.model_instance import InstancePart
from sarathi.backends.options import ExecutorOptions
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.registry import load_backend
from sarathi.engine.startup.kv_cache_size import KvCache, gigabytes
from sarathi.models.model_config import ModelConfig

_INTERVAL = 2.0  # seconds between two lines about one process
_BLOCK = 1024  # tokens, over which the bytes of one are averaged: quantised ones share scales


class LoadReport:
    """Lines about the processes of one engine."""

    def __init__(
        self,
        config: ModelConfig,
        layout: ParallelLayout,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            report: called with each line.
            clock: seconds.
        """
        self._config = config
        self._layout = layout
        self._stages = layout.stages(config)
        self._report = report
        self._clock = clock
        self._told = dict.fromkeys(layout.ranks, clock())

    def layout(self, options: ExecutorOptions) -> None:
        """Which process will hold what, before anything is loaded.

        Raises:
            ExecutorError: this machine does not compute in the precision asked for.
        """
        precision, kv_precision = load_backend(options).choose_precisions()
        for place in self._layout.ranks:
            size = footprint(
                self._config,
                self._stages[place.stage],
                self._layout.shard(place),
                precision=precision,
                kv_precision=kv_precision,
                block_size=_BLOCK,
            )
            self._report(
                f"{self._name(place)}: {self._layers(place)}, "
                f"{gigabytes(size.weight_bytes)} of weights in {precision}, "
                f"{size.block_bytes / _BLOCK / 1e3:.1f} kB of keys and values a token"
            )

    def progress(self, place: RankId, share: float) -> None:
        """So much of its tensors has a process read."""
        now = self._clock()
        if now > self._told[place] + _INTERVAL:
            self._told[place] = now
            self._report(f"{self._name(place)}: {share:.0%} of {self._layers(place)} read")

    def loaded(self, part: InstancePart) -> None:
        self._report(
            f"{self._name(part.rank_id)}: {self._layers(part.rank_id)} loaded, "
            f"{gigabytes(part.weight_bytes)} in {part.seconds:.1f} s"
        )

    def cache(self, cache: KvCache, parts: tuple[InstancePart, ...]) -> None:
        """What memory has been found for keys and values."""
        each = ", ".join(
            f"{gigabytes(cache.num_blocks * part.block_bytes)} in {self._name(part.rank_id)}"
            for part in parts
        )
        self._report(f"keys and values of up to {cache.tokens} tokens: {each}")

    def _name(self, place: RankId) -> str:
        return "one process" if self._layout == ParallelLayout() else str(place)

    def _layers(self, place: RankId) -> str:
        layers = self._stages[place.stage].layers
        return f"layers {layers.start} to {layers.stop - 1}"
