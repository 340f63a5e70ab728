"""How an engine is run: the options that the command line, the server and `LLM` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from sarathi.backends import registry
from sarathi.errors import ConfigError
from sarathi.models.locate import LoadFormat
from sarathi.options import Count, NewFile, Option, Seconds, Size, check_options
from sarathi.scheduler import ORDERS, POLICIES
from sarathi.system.machine import usable_cores
from sarathi.telemetry.recorder import BudgetUnit

MAX_REPLICAS = 256
_TOKEN_BUDGET = 256  # of the policies that need one
_USUAL_STEP = 8192  # tokens, where a latency target decides
_TTFT_TARGET = 5.0  # seconds
_DETERMINISTIC_CHUNK = 128  # tokens; not measured, or two machines would cut differently

FairBy = Literal["tenant"]
Ranks = Annotated[int, msgspec.Meta(ge=1, le=1024)]

_PRECISIONS = {"auto": None, "float32": "f32", "bfloat16": "bf16", "float16": "f16", "half": "f16"}


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The options of an engine. Durations are in seconds, sizes in bytes.

    `ConfigError` if a value is out of range, or two exclude each other.
    """

    load_format: Annotated[
        LoadFormat,
        Option(
            "where the weights come from: auto reads those of MODEL; dummy makes random ones, to "
            "measure speed "
            "without a checkpoint, where MODEL is a config.json, a folder with one, a hub id, or "
            "the name of a published model such as mistral-7b",
            group="model and memory",
        ),
    ] = "auto"
    max_model_len: Annotated[
        Count | None,
        Option(
            "most tokens of a prompt and its output together",
            default="what the model and memory allow",
            metavar="TOKENS",
        ),
    ] = None
    kv_cache_memory: Annotated[
        Size | None,
        Option(
            "memory of the KV cache, of one engine on each of its machines or GPUs, such as "
            "2GiB or 512MB",
            default="up to half of what is free, most of a GPU's",
        ),
    ] = None
    gpu_memory_utilization: Annotated[
        float,
        msgspec.Meta(gt=0, le=1),
        Option(
            "part of each GPU's memory for weights, activations and KV cache together",
            metavar="SHARE",
        ),
    ] = registry.GPU_MEMORY_UTILIZATION
    prefix_caching: Annotated[
        bool,
        Option(
            "reuse the KV cache of prompts for later ones with the same prefix",
            name="enable-prefix-caching",
        ),
    ] = True
    precision: Annotated[
        registry.Precision | None,
        Option(
            "number format of weights and computation",
            default="bf16 or f16 if the processor computes in it",
            aliases=("dtype",),
            spellings=_PRECISIONS,
        ),
    ] = None
    kv_precision: Annotated[
        registry.KvPrecision | None,
        Option(
            "number format of the KV cache: that of --precision, or u8, which takes about half "
            "the memory of bf16",
            default="u8 on CPUs, unless --precision f32 or --deterministic is given; otherwise "
            "that of --precision",
        ),
    ] = None
    quantization: Annotated[
        registry.Quantization,
        Option(
            "how matrices are served: auto as the checkpoint has them, in int8 where their own "
            "form would be slow; exact always as the checkpoint has them; int8 and int4 quantised "
            "at load; none in --precision",
        ),
    ] = "auto"
    kernels: Annotated[
        registry.Kernels,
        Option(
            "what computes attention and products with quantised weights: operations of OpenVINO's "
            "plugin, or this project's native ones, which a C++ compiler makes at the first start; "
            "auto takes those where they are faster: with AVX2, but no AVX-512"
        ),
    ] = "auto"
    threads: Annotated[
        Count | None, Option("threads of each stage and rank", default="all cores between them")
    ] = None
    engines_here: Count = 1  # that share the memory of this machine, this one included
    number_here: int = 0  # of this one among them

    executor: Annotated[
        registry.ExecutorName,
        Option(
            "backend that runs the model: openvino on CPUs, torch on CUDA devices or CPUs",
            group="execution",
        ),
    ] = "openvino"
    device: Annotated[
        registry.Device | None, Option("device of --executor torch", default="cuda if there is one")
    ] = None
    pp: Annotated[
        Ranks,
        Option(
            "pipeline stages that share the layers, each a process",
            aliases=("pipeline-parallel-size",),
        ),
    ] = 1
    tp: Annotated[
        Ranks,
        Option(
            "tensor-parallel ranks that share every layer of a stage, each a process; needs "
            "--executor torch",
            aliases=("tensor-parallel-size",),
        ),
    ] = 1

    tbt_target: Annotated[
        Seconds | None,
        Option(
            "longest time between two tokens of an answer, such as 100ms or 0.1 (seconds); "
            "prompts get what it leaves of each iteration",
            default="5x the time of an iteration of decodes alone on this machine, but at most "
            "250ms unless decodes leave too little of that; printed at start",
            group="scheduling",
        ),
    ] = None
    token_budget: Annotated[
        Count | None,
        Option(
            "the paper's fixed budget, instead of --tbt-target: tokens of one iteration, decodes "
            "included",
            default=f"none; {_TOKEN_BUDGET} for chunked_only; the model's length for vllm and "
            "hybrid_only",
            aliases=("max-num-batched-tokens",),
        ),
    ] = None
    min_prefill_share: Annotated[
        float,
        msgspec.Meta(ge=0, lt=1),
        Option(
            "part of each iteration for prompts while one waits, even where the target is missed "
            "for it",
            metavar="SHARE",
        ),
    ] = 0.1
    in_order_share: Annotated[
        float,
        msgspec.Meta(gt=0, le=1),
        Option(
            "part of the work on prompts that follows --order; the rest goes to the shortest; 1 "
            "for strict order",
            metavar="SHARE",
        ),
    ] = 0.5
    order: Annotated[
        str,
        Option(
            "which prompt is computed first: the first to arrive (fcfs); the one with the least "
            "'priority' field; or the one with the least time left until its TTFT target, less its "
            "work (slack)",
            choices=ORDERS,
        ),
    ] = "fcfs"
    ttft_target: Annotated[
        Seconds, Option("time to the first token, for requests that name none; needs --order slack")
    ] = _TTFT_TARGET
    fair_by: Annotated[
        FairBy | None,
        Option(
            "share the computation of prompts equally: between API keys if there are several, "
            "otherwise between the 'user' of requests",
            default="not at all",
        ),
    ] = None
    max_batch_size: Annotated[
        Count, Option("most requests that run at the same time", aliases=("max-num-seqs",))
    ] = 128
    policy: Annotated[
        str,
        Option(
            "how batches are put together: sarathi, or one of those it is compared with",
            choices=POLICIES,
        ),
    ] = "sarathi"
    deterministic: Annotated[
        bool,
        Option(
            "cut a prompt into the same chunks whatever else runs, so that answers do not depend "
            "on the load; costs speed"
        ),
    ] = False

    iteration_log: Annotated[
        NewFile | None,
        Option(
            "file for a line on every iteration: its batch, predicted and real time, budget",
            group="observability",
            metavar="FILE.jsonl",
        ),
    ] = None
    trace: Annotated[
        NewFile | None,
        Option("file for every iteration in Chrome's trace format, for https://ui.perfetto.dev"),
    ] = None

    def __post_init__(self) -> None:
        check_options(self, lambda name, message: ConfigError(f"{name} {message}"))
        if self.token_budget is not None and self.tbt_target is not None:
            raise ConfigError(
                "token_budget and tbt_target exclude each other: the one fixes the tokens of an "
                "iteration, the other its time"
            )
        if self.token_budget is not None and not POLICIES[self.policy].accepts_budget:
            raise ConfigError(f"token_budget has no effect on the policy {self.policy}: omit it")
        if self.tbt_target is not None and not POLICIES[self.policy].stall_free:
            raise ConfigError(f"tbt_target has no effect on the policy {self.policy}: omit it")
        if self.ttft_target != _TTFT_TARGET and self.order != "slack":
            raise ConfigError(f"ttft_target has no effect on the order {self.order}: omit it")
        if self.deterministic and not POLICIES[self.policy].stall_free:
            raise ConfigError("deterministic needs the policy sarathi")
        backend = registry.BACKENDS[self.executor]
        if self.tp > 1 and not backend.has_tensor_parallelism:
            able = [name for name, each in registry.BACKENDS.items() if each.has_tensor_parallelism]
            raise ConfigError(f"tp above 1 needs the executor {' or '.join(able)}")
        if self.device is not None and not backend.has_devices:
            able = [name for name, each in registry.BACKENDS.items() if each.has_devices]
            raise ConfigError(f"device needs the executor {' or '.join(able)}")
        if self.gpu_memory_utilization != registry.GPU_MEMORY_UTILIZATION and (
            self.device == "cpu" or not backend.has_devices
        ):
            raise ConfigError("gpu_memory_utilization has no effect on CPUs: omit it")
        if not backend.has_kv_precision and self.kv_precision not in (None, self.precision):
            raise ConfigError(
                f"kv_precision is {self.kv_precision}, expected that of precision: the executor "
                f"{self.executor} has one for both"
            )
        if not backend.has_quantization and self.quantization not in ("auto", "none"):
            raise ConfigError(
                f"quantization is {self.quantization}, expected auto or none: the executor "
                f"{self.executor} serves weights in its precision"
            )
        if not backend.has_kernels and self.kernels != "auto":
            raise ConfigError(
                f"kernels is {self.kernels}, expected auto: the executor {self.executor} has "
                "its own"
            )
        log, trace = self.iteration_log, self.trace
        if log is not None and trace is not None and Path(log).resolve() == Path(trace).resolve():
            raise ConfigError(f"--iteration-log and --trace are the same file {trace}")

    @property
    def fixed_budget(self) -> int | None:
        """The tokens of an iteration; None where a latency target takes their place, or nothing."""
        if self.token_budget is not None:
            return self.token_budget
        policy = POLICIES[self.policy]
        requires_tokens = policy.requires_budget and not policy.stall_free
        return _TOKEN_BUDGET if requires_tokens else None

    @property
    def budget_unit(self) -> BudgetUnit | None:
        """The unit of `Batch.allowance`; None for a policy without a budget."""
        if self.latency_budget:
            return "seconds"
        return None if self.fixed_budget is None else "tokens"

    @property
    def chunk(self) -> int | None:
        """Where `deterministic` cuts prompts, in tokens; None where the budget decides."""
        if not self.deterministic:
            return None
        return _DETERMINISTIC_CHUNK if self.token_budget is None else self.token_budget

    @property
    def latency_budget(self) -> bool:
        """Whether the budget follows from a latency target, given or derived."""
        return POLICIES[self.policy].stall_free and self.token_budget is None

    def max_step_tokens(self, max_model_len: int) -> int:
        """Return the most tokens of an iteration for which a GPU keeps memory."""
        most = self.fixed_budget
        if most is None:
            most = min(_USUAL_STEP, max_model_len) if self.latency_budget else max_model_len
        return max(most, self.max_batch_size)


def share_of_machine(config: EngineConfig, replicas: int, number: int = 0) -> EngineConfig:
    """Return the configuration of engine `number` of those that share cores, GPUs and memory."""
    threads = config.threads
    if threads is None:
        threads = max(1, usable_cores() // (replicas * config.pp * config.tp))
    return msgspec.structs.replace(
        config, threads=threads, engines_here=replicas, number_here=number
    )


class Launch(msgspec.Struct, frozen=True):
    """What an engine process gets on its command line, as JSON."""

    path: str
    config: EngineConfig
    parent: int | None  # process id: the engine ends when that does; None: on another machine
