"""Which operations of a graph are native ones, compiled from this project's sources."""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from openvino.utils.node_factory import NodeFactory

from sarathi.backends.openvino.native_attention import NativeAttention, attention_problem
from sarathi.backends.openvino.native_build import NativeBuildError, native_library
from sarathi.backends.openvino.native_matmul import NativeMatmul, matmul_problem
from sarathi.backends.registry import Kernels, KvPrecision, Precision
from sarathi.errors import ExecutorError
from sarathi.models.model_config import ModelConfig
from sarathi.models.quantized import IntegerForm

_FROM_BYTES = 32 << 20  # of weights: below, an answer takes less time than compiling
_CPUINFO = Path("/proc/cpuinfo")
REQUIRED_FLAGS = frozenset({"avx2", "fma", "f16c"})


@dataclass(frozen=True)
class NativeKernels:
    """Makes native nodes, of what is not None; the plugin computes all else."""

    attention: NativeAttention | None = None
    matmul: NativeMatmul | None = None


@dataclass(frozen=True)
class Computation:
    """What a model's graph has to compute."""

    config: ModelConfig
    precision: Precision
    kv_precision: KvPrecision
    forms: Collection[IntegerForm]  # of the matrices in integers
    may_round: bool  # activations to int8
    plugin_rounds: bool  # whether the plugin would do so for one of the forms
    weight_bytes: int


def choose_kernels(asked: Kernels, computation: Computation) -> tuple[NativeKernels, str]:
    """Return the native operations that a model uses, and a description for the operator.

    `auto` means native ones where they were measured to be faster. What is missing for them is no
    reason not to start: the plugin's take their place, and the description says why.

    Raises:
        ExecutorError: native was asked for and nothing can be.
    """
    if asked == "plugin":
        return NativeKernels(), "plugin"
    c, flags = computation, processor_flags()
    of_attention = attention_problem(c.config, c.precision, c.kv_precision)
    of_matmul = matmul_problem(c.forms, c.precision, c.may_round)
    if asked == "auto" and c.plugin_rounds:
        of_matmul = "the plugin's are in int8, too"
    problem = ""
    if not flags >= REQUIRED_FLAGS:
        needed = "an x86-64 processor with AVX2, FMA and F16C is needed, and Linux"
        problem = f"{needed} ({platform.machine()})"
    elif of_attention and of_matmul:
        problem = f"attention: {of_attention}; products: {of_matmul}"
    if asked == "auto" and (problem or "avx512f" in flags or c.weight_bytes < _FROM_BYTES):
        return NativeKernels(), "plugin"
    try:
        if problem:
            raise NativeBuildError(problem)
        library, factory = native_library(), NodeFactory()
        factory.add_extension(library)
    except (NativeBuildError, RuntimeError) as error:
        if asked == "native":
            raise ExecutorError(f"--kernels native is not possible: {error}") from error
        return NativeKernels(), f"plugin, since native is not possible: {error}"
    attention = None if of_attention else NativeAttention(c.config, factory)
    matmul = None if of_matmul else NativeMatmul(factory, library)
    names = [name for name, used in (("attention", attention), ("products", matmul)) if used]
    return NativeKernels(attention, matmul), f"native {' and '.join(names)}"


@cache
def processor_flags() -> frozenset[str]:
    """Return the names of the processor's features, as Linux has them; none elsewhere."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), ":")
    return frozenset(flags.split(":", 1)[1].split())
