"""How an engine is run: what the command line, the server and the offline class have in common."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

import msgspec

from sarathi.backends.options import Device, KvPrecision, Precision
from sarathi.backends.registry import BACKENDS, ExecutorName
from sarathi.errors import ConfigError
from sarathi.models.load_format import LoadFormat
from sarathi.scheduler import ORDERS, POLICIES
from sarathi.system.machine import usable_cores

DEFAULT_TOKEN_BUDGET = 256
DEFAULT_MAX_BATCH_SIZE = 128
DEFAULT_MIN_PREFILL_SHARE = 0.1
DEFAULT_IN_ORDER_SHARE = 0.5
DEFAULT_TTFT_TARGET = 5.0  # seconds
DEFAULT_DRAIN_SECONDS = 30.0
_USUAL_STEP = 8192  # tokens, where a latency target decides
_DETERMINISTIC_CHUNK = 128  # tokens; not measured, or two machines would cut differently

# Far beyond any machine; what is above would end in an overflow somewhere below.
MAX_NUMBER = 2**31 - 1
MAX_KV_CACHE_MEMORY = 2**62  # bytes
MAX_RANKS = 1024
MAX_REPLICAS = 256

FairBy = Literal["tenant"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    policy: str = "sarathi"  # a row of `scheduling.POLICIES`
    token_budget: int | None = None  # tokens of one iteration, decodes included
    tbt_target: float | None = None  # seconds; None with no token_budget: derived from the machine
    min_prefill_share: float = DEFAULT_MIN_PREFILL_SHARE  # of an iteration, while a prompt waits
    in_order_share: float = DEFAULT_IN_ORDER_SHARE  # of prompt work; the rest: shortest first
    order: str = "fcfs"  # a key of `scheduling.ORDERS`
    ttft_target: float = DEFAULT_TTFT_TARGET  # seconds, of requests that name none; for `slack`
    fair_by: FairBy | None = None
    prefix_caching: bool = True
    deterministic: bool = False  # chunk boundaries depend on the request alone
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE  # requests that run at the same time
    max_model_len: int | None = None  # tokens; None: as many as model and memory allow
    kv_cache_memory: int | None = None  # bytes; None: out of the memory that is free
    load_format: LoadFormat = "auto"
    precision: Precision | None = None  # None: the fastest that the processor computes in
    kv_precision: KvPrecision | None = None  # None: the same as precision
    threads: int | None = None  # of each process that computes; None: all cores between them
    engines_here: int = 1  # that share the memory of this machine, this one included
    number_here: int = 0  # of this one among them
    executor: ExecutorName = "openvino"
    device: Device | None = None  # of the torch executor; None: cuda if there is one
    pp: int = 1  # pipeline stages
    tp: int = 1  # ranks that share the layers of each stage
    iteration_log: str | None = None  # path of a JSON lines file
    trace: str | None = None  # path of a Chrome trace file

    def __post_init__(self) -> None:
        _one_of("policy", self.policy, POLICIES)
        _one_of("order", self.order, ORDERS)
        _one_of("executor", self.executor, get_args(ExecutorName))
        _one_of("load_format", self.load_format, get_args(LoadFormat))
        if self.fair_by is not None:
            _one_of("fair_by", self.fair_by, get_args(FairBy))
        if self.device is not None:
            _one_of("device", self.device, get_args(Device))
        for name, most in (
            ("token_budget", MAX_NUMBER),
            ("max_batch_size", MAX_NUMBER),
            ("max_model_len", MAX_NUMBER),
            ("kv_cache_memory", MAX_KV_CACHE_MEMORY),
            ("threads", MAX_NUMBER),
            ("engines_here", MAX_NUMBER),
            ("pp", MAX_RANKS),
            ("tp", MAX_RANKS),
        ):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}, expected 1 to {most}")
        for name in ("tbt_target", "ttft_target"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}, expected a time above 0")
        if not 0 <= self.min_prefill_share < 1:
            raise ConfigError(
                f"min_prefill_share is {self.min_prefill_share}, expected 0 to less than 1"
            )
        if not 0 < self.in_order_share <= 1:
            raise ConfigError(f"in_order_share is {self.in_order_share}, expected above 0 up to 1")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.token_budget is not None and self.tbt_target is not None:
            raise ConfigError(
                "token_budget and tbt_target exclude each other: the one fixes the tokens of an "
                "iteration, the other its time"
            )
        if self.token_budget is not None and not POLICIES[self.policy].limited:
            raise ConfigError(f"token_budget has no effect on the policy {self.policy}: omit it")
        if self.tbt_target is not None and self.policy != "sarathi":
            raise ConfigError(f"tbt_target has no effect on the policy {self.policy}: omit it")
        if self.deterministic and self.policy != "sarathi":
            raise ConfigError("deterministic needs the policy sarathi")
        backend = BACKENDS[self.executor]
        if self.tp > 1 and not backend.has_tensor_parallelism:
            able = [name for name, each in BACKENDS.items() if each.has_tensor_parallelism]
            raise ConfigError(f"tp above 1 needs the executor {' or '.join(able)}")
        if self.device is not None and not backend.has_devices:
            able = [name for name, each in BACKENDS.items() if each.has_devices]
            raise ConfigError(f"device needs the executor {' or '.join(able)}")
        if not backend.has_kv_precision and self.kv_precision not in (None, self.precision):
            raise ConfigError(
                f"kv_precision is {self.kv_precision}, expected that of precision: the executor "
                f"{self.executor} has one for both"
            )
        log, trace = self.iteration_log, self.trace
        if log is not None and trace is not None and Path(log).resolve() == Path(trace).resolve():
            raise ConfigError(f"--iteration-log and --trace are the same file {trace}")

    @property
    def fixed_budget(self) -> int | None:
        """The tokens of an iteration; None where a latency target takes their place, or nothing."""
        if self.token_budget is not None:
            return self.token_budget
        budgeted = POLICIES[self.policy].budgeted and self.policy != "sarathi"
        return DEFAULT_TOKEN_BUDGET if budgeted else None

    @property
    def chunk(self) -> int | None:
        """Where `deterministic` cuts prompts, in tokens; None where the budget says."""
        if not self.deterministic:
            return None
        return _DETERMINISTIC_CHUNK if self.token_budget is None else self.token_budget

    @property
    def latency_budget(self) -> bool:
        """Whether the budget follows from a latency target, given or derived."""
        return self.policy == "sarathi" and self.token_budget is None

    def max_step_tokens(self, max_model_len: int) -> int:
        """Return the most tokens of an iteration for which a GPU keeps memory.

        Args:
            max_model_len: tokens of the longest request.
        """
        most = self.fixed_budget
        if most is None:
            most = min(_USUAL_STEP, max_model_len) if self.latency_budget else max_model_len
        return max(most, self.max_batch_size)


def share_of_machine(config: EngineConfig, replicas: int, number: int = 0) -> EngineConfig:
    """For one of several engines on the same machine: its part of the cores, GPUs and memory.

    Args:
        number: of the engine among them.
    """
    threads = config.threads
    if threads is None:
        threads = max(1, usable_cores() // (replicas * config.pp * config.tp))
    return msgspec.structs.replace(
        config, threads=threads, engines_here=replicas, number_here=number
    )


class Launch(msgspec.Struct, frozen=True):
    """What an engine process is told on its command line, as JSON."""

    path: str
    config: EngineConfig
    parent: int | None  # process id: the engine ends when that does; None: on another machine


def _one_of(name: str, value: str, accepted: Collection[str]) -> None:
    if value not in accepted:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(accepted)}")
