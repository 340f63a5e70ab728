"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from typing import get_args

from sarathi.engine.config import (
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_TOKEN_BUDGET,
    EngineConfig,
)
from sarathi.executors.precision import KvPrecision, Precision
from sarathi.scheduling import POLICIES

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
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--token-budget",
        type=positive,
        metavar="N",
        help="tokens one iteration may carry, decodes included; less means shorter gaps between "
        f"tokens, more means faster prompts (default: {DEFAULT_TOKEN_BUDGET})",
    )
    group.add_argument(
        "--policy",
        choices=POLICIES,
        default="sarathi",
        help="how batches are put together: sarathi, or one of those it is compared with "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--max-batch-size",
        type=positive,
        default=DEFAULT_MAX_BATCH_SIZE,
        metavar="N",
        help="requests that run at the same time (default: %(default)s)",
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
        help="memory for keys and values, such as 2GiB or 512MB (default: up to half of what is "
        "free)",
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
        "--threads", type=positive, metavar="N", help="to compute with (default: one a core)"
    )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        policy=args.policy,
        token_budget=args.token_budget,
        max_batch_size=args.max_batch_size,
        max_model_len=args.max_model_len,
        kv_cache_memory=args.kv_cache_memory,
        precision=args.precision,
        kv_precision=args.kv_precision,
        threads=args.threads,
    )


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def num_bytes(text: str) -> int:
    """An argparse type: a size such as 2GiB, 512MB, 1.5g or 4096 (bytes)."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmg]?i?)b?", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2GiB, 512MB or 4096")
    value = int(float(match[1]) * _UNITS[match[2]])
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than one byte")
    return value
