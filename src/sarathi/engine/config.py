"""How an engine is run: what the command line, the server and the offline class have in common."""

from __future__ import annotations

import msgspec

from sarathi.executors.precision import KvPrecision, Precision
from sarathi.scheduling import POLICIES

DEFAULT_TOKEN_BUDGET = 256
DEFAULT_MAX_BATCH_SIZE = 128


class ConfigError(ValueError):
    """An option is out of range; the message names it and says what is accepted."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    policy: str = "sarathi"  # a row of `scheduling.POLICIES`
    token_budget: int | None = None  # tokens of one iteration, decodes included; None: the default
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE  # requests that run at the same time
    max_model_len: int | None = None  # tokens; None: as many as model and memory allow
    kv_cache_memory: int | None = None  # bytes; None: out of the memory that is free
    precision: Precision | None = None  # None: the fastest that the processor computes in
    kv_precision: KvPrecision | None = None  # None: the same as precision
    threads: int | None = None  # None: one a core

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"policy is {self.policy!r}, expected one of {', '.join(POLICIES)}")
        for name in (
            "token_budget",
            "max_batch_size",
            "max_model_len",
            "kv_cache_memory",
            "threads",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        if self.token_budget is not None and not POLICIES[self.policy].budgeted:
            raise ConfigError(f"token_budget has no effect on the policy {self.policy}: omit it")

    @property
    def budget(self) -> int | None:
        """The token budget in force, None where the policy has none."""
        if not POLICIES[self.policy].budgeted:
            return None
        return DEFAULT_TOKEN_BUDGET if self.token_budget is None else self.token_budget


class Launch(msgspec.Struct, frozen=True):
    """What an engine process is told on its command line, as JSON."""

    path: str
    config: EngineConfig
    parent: int  # process id: the engine ends when that process does
