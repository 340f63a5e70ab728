"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import get_args

from sarathi.backends.options import Device, KvPrecision, Precision
from sarathi.backends.registry import ExecutorName
from sarathi.engine.config import (
    DEFAULT_IN_ORDER_SHARE,
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_MIN_PREFILL_SHARE,
    DEFAULT_TOKEN_BUDGET,
    DEFAULT_TTFT_TARGET,
    MAX_KV_CACHE_MEMORY,
    MAX_NUMBER,
    EngineConfig,
    FairBy,
)
from sarathi.errors import UsageError
from sarathi.models.load_format import LoadFormat
from sarathi.scheduler import ORDERS, POLICIES
from sarathi.units import parse_duration

_Group = argparse._ArgumentGroup  # argparse has no public name for it
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def add_model_argument(parser: argparse.ArgumentParser, **kwargs: object) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder in the Hugging Face layout, a .gguf file, a hub id (org/name), "
        "or smollm2-135m",
        **kwargs,  # type: ignore[arg-type]
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_and_memory(parser.add_argument_group("model and memory"))
    _add_parallel(parser.add_argument_group("execution"))
    _add_scheduling(parser.add_argument_group("scheduling"))
    _add_observing(parser.add_argument_group("observing"))


def _add_model_and_memory(group: _Group) -> None:
    group.add_argument(
        "--load-format",
        choices=get_args(LoadFormat),
        default="auto",
        help="of the weights: auto reads those of MODEL; dummy makes random ones, to measure speed "
        "without a checkpoint, where MODEL is a config.json, a folder with one, a hub id, or the "
        "name of a published model such as mistral-7b (default: %(default)s)",
    )
    group.add_argument(
        "--max-model-len",
        type=positive,
        metavar="TOKENS",
        help="longest prompt and output together (default: what the model and memory allow)",
    )
    group.add_argument(
        "--kv-cache-memory",
        type=num_bytes,
        metavar="SIZE",
        help="memory for keys and values, of one engine on each of its machines or GPUs, such as "
        "2GiB or 512MB (default: up to half of what is free, most of a GPU's)",
    )
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the keys and values of prompts for others that begin alike (default: on)",
    )
    group.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of weights and computation (default: bf16 or f16 if the processor computes in it)",
    )
    group.add_argument(
        "--kv-precision",
        choices=get_args(KvPrecision),
        help="of keys and values in the cache: that of --precision (default), or u8 for half the "
        "memory and some of the accuracy",
    )
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="to compute with, of each stage and rank (default: all cores between them)",
    )


def _add_parallel(group: _Group) -> None:
    group.add_argument(
        "--executor",
        choices=get_args(ExecutorName),
        default="openvino",
        help="what computes: openvino on processors, torch on CUDA devices or processors "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--device",
        choices=get_args(Device),
        help="for --executor torch (default: cuda if there is one)",
    )
    group.add_argument(
        "--pp",
        "--pipeline-parallel-size",
        type=positive,
        default=1,
        metavar="N",
        help="stages that the layers are shared out to, each a process (default: %(default)s)",
    )
    group.add_argument(
        "--tp",
        "--tensor-parallel-size",
        type=positive,
        default=1,
        metavar="N",
        help="ranks that share every layer of a stage, each a process; needs --executor torch "
        "(default: %(default)s)",
    )


def _add_scheduling(group: _Group) -> None:
    group.add_argument(
        "--tbt-target",
        type=duration,
        metavar="DURATION",
        help="longest time between two tokens of an answer, such as 100ms or 0.1 (seconds); "
        "prompts get what it leaves of each iteration (default: 5x the time of an iteration of "
        "decodes alone on this machine, but at most 250ms unless decodes leave too little of that; "
        "printed at start)",
    )
    group.add_argument(
        "--token-budget",
        type=positive,
        metavar="N",
        help="the paper's fixed budget, instead of --tbt-target: tokens one iteration may carry, "
        f"decodes included (default: none; {DEFAULT_TOKEN_BUDGET} for chunked_only; the model's "
        "length for vllm and hybrid_only)",
    )
    group.add_argument(
        "--min-prefill-share",
        type=share,
        default=DEFAULT_MIN_PREFILL_SHARE,
        metavar="SHARE",
        help="of each iteration, for prompts while one waits, even where the target is missed for "
        "it; 0 to less than 1 (default: %(default)s)",
    )
    group.add_argument(
        "--in-order-share",
        type=share,
        default=DEFAULT_IN_ORDER_SHARE,
        metavar="SHARE",
        help="of the work on prompts that follows --order, while the rest goes to the shortest; "
        "above 0, and 1 for strict order (default: %(default)s)",
    )
    group.add_argument(
        "--order",
        choices=ORDERS,
        default="fcfs",
        help="whose prompt is computed first: first come; the least 'priority' of a request; or "
        "the least time left until the TTFT target, less its work (default: %(default)s)",
    )
    group.add_argument(
        "--ttft-target",
        type=duration,
        metavar="DURATION",
        help="time to the first token, for requests that name none; needs --order slack "
        f"(default: {DEFAULT_TTFT_TARGET:g}s)",
    )
    group.add_argument(
        "--fair-by",
        choices=get_args(FairBy),
        help="share the computing of prompts equally: between API keys if there are several, "
        "otherwise between the 'user' of requests (default: not at all)",
    )
    group.add_argument(
        "--max-batch-size",
        type=positive,
        default=DEFAULT_MAX_BATCH_SIZE,
        metavar="N",
        help="requests that run at the same time (default: %(default)s)",
    )
    group.add_argument(
        "--policy",
        choices=POLICIES,
        default="sarathi",
        help="how batches are put together: sarathi, or one of those it is compared with "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="cut a prompt into the same chunks whatever else runs, so that answers do not depend "
        "on the load; costs speed",
    )


def _add_observing(group: _Group) -> None:
    group.add_argument(
        "--iteration-log",
        type=new_file,
        metavar="FILE.jsonl",
        help="a line for every iteration: its batch, predicted and real time, budget",
    )
    group.add_argument(
        "--trace",
        type=new_file,
        metavar="FILE",
        help="every iteration in Chrome's trace format, for https://ui.perfetto.dev",
    )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """
    Raises:
        UsageError: arguments that have no effect, or do not go together.
        ConfigError: likewise.
    """
    if args.ttft_target is not None and args.order != "slack":
        raise UsageError(f"--ttft-target has no effect on --order {args.order}: omit it")
    return EngineConfig(
        policy=args.policy,
        token_budget=args.token_budget,
        tbt_target=args.tbt_target,
        min_prefill_share=args.min_prefill_share,
        in_order_share=args.in_order_share,
        order=args.order,
        ttft_target=DEFAULT_TTFT_TARGET if args.ttft_target is None else args.ttft_target,
        fair_by=args.fair_by,
        prefix_caching=args.enable_prefix_caching,
        deterministic=args.deterministic,
        max_batch_size=args.max_batch_size,
        max_model_len=args.max_model_len,
        kv_cache_memory=args.kv_cache_memory,
        load_format=args.load_format,
        precision=args.precision,
        kv_precision=args.kv_precision,
        threads=args.threads,
        executor=args.executor,
        device=args.device,
        pp=args.pp,
        tp=args.tp,
        iteration_log=args.iteration_log,
        trace=args.trace,
    )


def positive(text: str) -> int:
    """An argparse type: a whole number from 1 to `MAX_NUMBER`."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_NUMBER}")
    return value


def num_bytes(text: str) -> int:
    """An argparse type: a size such as 2GiB, 512MB, 1.5g or 4096 (bytes)."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmg]?i?)b?", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2GiB, 512MB or 4096")
    value = float(match[1]) * _UNITS[match[2]]
    if not 1 <= value <= MAX_KV_CACHE_MEMORY:
        raise argparse.ArgumentTypeError(
            f"{text!r} is out of range, expected 1 to {MAX_KV_CACHE_MEMORY} bytes"
        )
    return int(value)


def duration(text: str) -> float:
    """An argparse type: a time such as 100ms, 1.5s or 0.1 (seconds), in seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1; which of the ends are accepted is not told here."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def new_file(text: str) -> str:
    """An argparse type: the path of a file that can be written, made absolute."""
    path = Path(utf8(str(Path(text).absolute())))
    try:
        writable = os.access(path if path.exists() else path.parent, os.W_OK)
        is_folder = path.is_dir()
    except OSError:  # such as a name that is too long
        writable = is_folder = False
    if is_folder or not writable:
        raise argparse.ArgumentTypeError(f"{text!r} is not a file that can be written")
    return str(path)


def utf8(text: str) -> str:
    """An argparse type: a text that can be sent, to the engine process or over HTTP."""
    try:
        text.encode()
    except UnicodeEncodeError:  # Python makes halves of surrogate pairs of other bytes
        raise argparse.ArgumentTypeError("its bytes are not UTF-8") from None
    return text
