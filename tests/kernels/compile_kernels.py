"""Compile kernels for a GPU that need not be there.

Run as a script, without TRITON_INTERPRET, it prints a line of JSON for each: the number of matrix
instructions, and what ptxas reports about registers, spills and serialized instructions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from sarathi.backends.torch.attention_plan import AttentionShape, select_config
from sarathi.backends.torch.kernels.attention_kernel import _attention
from sarathi.backends.torch.kernels.sampling_kernels import Tiles, sample

TYPES = {"bf16": 2, "fp16": 2, "fp32": 4}  # bytes
POINTERS = ("query", "keys", "values", "output", "sinks")


def compile_attention(
    dtype: str,
    shape: AttentionShape,
    *,
    decode_only: bool,
    has_window: bool = False,
    capability: int = 90,
) -> dict[str, object]:
    """Report on one kernel."""
    config = select_config(shape, TYPES[dtype], decode_only=decode_only)
    types = dict.fromkeys(POINTERS, f"*{dtype}")
    types |= {"tables": "*i32", "items": "*i32", "table_width": "i32", "window": "i32"}
    types |= {"partial_output": "*fp32", "partial_lse": "*fp32", "scale": "fp32"}
    types |= {"soft_cap": "fp32"}
    constants = {
        "NUM_HEADS": shape.num_heads,
        "NUM_KV_HEADS": shape.num_kv_heads,
        "HEAD_DIM": shape.head_dim,
        "HEAD_DIM_TILE": triton.next_power_of_2(shape.head_dim),
        "BLOCK_SIZE": shape.block_size,
        "PREFILL_ROWS": 0 if decode_only else config.prefill.rows,
        "PREFILL_KEYS": config.prefill.keys,
        "PREFILL_STAGES": config.prefill.num_stages,
        "DECODE_ROWS": config.decode.rows,
        "DECODE_KEYS": config.decode.keys,
        "DECODE_STAGES": config.decode.num_stages,
        "HAS_WINDOW": has_window,
        "HAS_SOFT_CAP": False,
        "HAS_SINKS": False,
    }
    options: dict[str, object] = {"num_warps": config.num_warps, "enable_fp_fusion": True}
    if config.max_registers is not None:
        options["maxnreg"] = config.max_registers
    return {
        "dtype": dtype,
        "head_dim": shape.head_dim,
        "decode_only": decode_only,
        **compile_kernel(_attention, types, constants, options, capability),
    }


def compile_sample(vocab_size: int, capability: int = 90) -> dict[str, object]:
    """Report on the kernel that samples one token for each row."""
    tiles = Tiles()
    types = {"logits": "*fp32", "stride": "i32", "table": "*i64", "marks": "*i32"}
    types |= {"values": "*fp32", "columns": "*i32", "tokens": "*i64", "last_tokens": "*i64"}
    constants = {"VOCAB": vocab_size, "BLOCK": tiles.block, "WAYS": tiles.ways}
    options = {"num_warps": tiles.num_warps, "enable_fp_fusion": False}
    return {
        "vocab_size": vocab_size,
        **compile_kernel(sample, types, constants, options, capability),
    }


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    options: Mapping[str, object],
    capability: int,
) -> dict[str, object]:
    """Report on one kernel.

    Args:
        types: of its arguments; those that are not there are among the `constants`.
    """
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        # Pointers are multiples of 16 bytes, as those of tensors are.
        {
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(names)
            if types.get(name, "").startswith("*")
        },
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=dict(options))
    ptx = compiled.asm["ptx"]
    architecture = re.search(r"\.target (\w+)", ptx)
    assert architecture is not None
    command = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture[1]}"]
    command += ["-o", os.devnull, "/dev/stdin"]
    done = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True)

    def number(pattern: str) -> int:
        return max(map(int, re.findall(pattern, done.stderr)), default=0)

    return {
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "registers": number(r"Used (\d+) registers"),
        "spilled_bytes": number(r"(\d+) bytes spill stores"),
        "shared_bytes": compiled.metadata.shared,
        "serialized": "serialized" in done.stderr,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="bf16", choices=TYPES)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--heads", type=int, nargs=2, default=(32, 8))
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=(300, 32000))
    parser.add_argument("--window", action="store_true")
    parser.add_argument("--capability", type=int, default=90)
    options = parser.parse_args()
    shape = AttentionShape(options.heads[0], options.heads[1], options.head_dim)
    for decode_only in (False, True):
        report = compile_attention(
            options.dtype,
            shape,
            decode_only=decode_only,
            has_window=options.window,
            capability=options.capability,
        )
        print(json.dumps(report))
    for vocab_size in options.vocab_sizes:
        print(json.dumps(compile_sample(vocab_size, options.capability)))


if __name__ == "__main__":
    main()
