"""What a replica did with its time and its memory."""

from __future__ import annotations

from sarathi.bench.results import ReplicaUse


class ReplicaUsage:
    """Counts as a replica goes along. Times are seconds of the virtual clock."""

    def __init__(self, num_stages: int, num_blocks: int) -> None:
        self.busy = [0.0] * num_stages
        self.overhead = 0.0
        self.tokens = 0
        self.decodes = 0
        self.iterations = 0
        self._num_blocks = num_blocks
        self._active = 0.0
        self._active_since: float | None = None
        self._seen = 0.0
        self._block_seconds = 0.0
        self._most_blocks = 0

    def work_comes(self, now: float) -> None:
        if self._active_since is None:
            self._active_since = self._seen = now

    def blocks_used(self, blocks: int, now: float) -> None:
        """So many blocks were in use since the call before."""
        self._block_seconds += blocks * (now - self._seen)
        self._seen = now
        if blocks > self._most_blocks:
            self._most_blocks = blocks

    def work_ends(self, now: float) -> None:
        if self._active_since is not None:
            self._active += now - self._active_since
            self._active_since = None

    def result(self, preemptions: int) -> ReplicaUse:
        active = self._active
        return ReplicaUse(
            iterations=self.iterations,
            tokens=self.tokens,
            decodes=self.decodes,
            preemptions=preemptions,
            active=active,
            busy=self.busy,
            bubbles=[max(0.0, active - busy) for busy in self.busy],
            overhead=self.overhead,
            kv_mean=self._block_seconds / (active * self._num_blocks) if active else 0.0,
            kv_max=self._most_blocks / self._num_blocks,
        )
