"""The `quantization_config` of a Hugging Face folder: how its matrices are packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sarathi.models.json_fields import Fields

Method = Literal["awq", "gptq", "compressed-tensors", "fp8"]

_FIELD = "quantization_config"
# Of compressed-tensors: what its other formats store are no integers or FP8.
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """What the tensors of a quantised folder do not say themselves."""

    method: Method
    bits: int = 0  # of AWQ and GPTQ
    # The numbers of columns that may share a scale, as well as all of a row.
    groups: frozenset[int] = frozenset()
    symmetric: bool = False  # of GPTQ: every zero point is the middle
    needs_zeros: bool = False  # of compressed-tensors: no scheme of integers is symmetric
    act_order: bool = False  # whether the columns of a group need not be consecutive
    zero_offset: int = 0  # what is to be added to the zero points of GPTQ
    block: tuple[int, int] | None = None  # rows and columns that share a scale, of FP8


def read_quantization(fields: Fields) -> QuantizationConfig | None:
    """Return how the weights are quantised; None if they are not.

    Fields about how the integers were found, or that repeat what the tensors have, are not read,
    and neither are those about activations, which are not quantised as the checkpoint has it.
    Raises `ModelError` that names the method, or the field, for what is not supported.
    """
    if not fields.value(_FIELD):
        return None
    inner = fields.object(_FIELD)
    assert inner is not None
    method = inner.value("quant_method")
    if not isinstance(method, str) or method not in _READERS:
        *others, last = _READERS
        raise inner.wrong("quant_method", f"{', '.join(others)} or {last}")
    return _READERS[method](inner)


def _awq(fields: Fields) -> QuantizationConfig:
    version = fields.text("version", "gemm")
    if version.lower() != "gemm":
        raise fields.wrong("version", "gemm")
    if not fields.boolean("zero_point", True):
        raise fields.wrong("zero_point", "true")
    return QuantizationConfig(
        method="awq", bits=_bits(fields, "bits", (4,)), groups=_groups(fields, "group_size", 128)
    )


def _gptq(fields: Fields) -> QuantizationConfig:
    key = "checkpoint_format" if "checkpoint_format" in fields else "format"
    checkpoint = fields.text(key, "gptq")
    if checkpoint not in ("gptq", "gptq_v2"):
        raise fields.wrong(key, "gptq or gptq_v2")
    # Repacked tensors, matrices that are added to the quantised ones, rotated activations.
    _refuse(fields, "is_marlin_format", "false")
    _refuse(fields, "adapter", "none: merge it")
    _refuse(fields, "rotation", "none")
    if fields.text("pack_dtype", "int32") != "int32":
        raise fields.wrong("pack_dtype", "int32")
    dynamic = fields.object("dynamic")
    if dynamic is not None and not all(rule.startswith("-:") for rule in dynamic.data):
        raise fields.wrong("dynamic", "only rules for modules that are not quantised (-:...)")
    return QuantizationConfig(
        method="gptq",
        bits=_bits(fields, "bits", (4, 8)),
        groups=_groups(fields, "group_size", 128),
        symmetric=fields.boolean("sym", False),
        act_order=fields.boolean("desc_act", False),
        # The first version subtracts 1 before it packs zero points.
        zero_offset=1 if checkpoint == "gptq" else 0,
    )


def _compressed_tensors(fields: Fields) -> QuantizationConfig:
    sparsity = fields.object("sparsity_config")
    if sparsity is not None and sparsity.text("format", "dense") != "dense":
        raise sparsity.wrong("format", "dense")
    _refuse(fields, "transform_config", "none: rotations of activations are not supported")
    schemes = fields.object("config_groups")
    if schemes is None or not schemes.data:
        raise fields.wrong("config_groups", "an object with a scheme for each group of modules")
    groups: set[int] = set()
    blocks: set[tuple[int, int]] = set()
    act_order = False
    symmetric: list[bool] = []  # of the schemes of integers
    for name in schemes.data:
        scheme = schemes.object(name)
        weights = None if scheme is None else scheme.object("weights")
        if scheme is None or weights is None:  # activations only
            continue
        holder = scheme if "format" in scheme else fields
        if holder.text("format", "") not in _FORMATS:
            raise holder.wrong("format", f"one of {', '.join(_FORMATS)}")
        kind = weights.text("type", "int")
        if kind not in ("int", "float"):
            raise weights.wrong("type", "int or float")
        _bits(weights, "num_bits", (4, 8) if kind == "int" else (8,))
        groups |= _groups(weights, "group_size", -1)
        if kind == "int":
            symmetric.append(weights.boolean("symmetric", True))
        act_order |= weights.value("actorder") in ("group", "dynamic", True)
        if (block := _block(weights, "block_structure")) is not None:
            blocks.add(block)
    if len(blocks) > 1:
        raise fields.wrong("config_groups", "the same block_structure in all schemes")
    return QuantizationConfig(
        method="compressed-tensors",
        groups=frozenset(groups),
        needs_zeros=bool(symmetric) and not any(symmetric),
        act_order=act_order,
        block=next(iter(blocks), None),
    )


def _fp8(fields: Fields) -> QuantizationConfig:
    if fields.text("fmt", "e4m3") != "e4m3":
        raise fields.wrong("fmt", "e4m3")
    return QuantizationConfig(method="fp8", block=_block(fields, "weight_block_size"))


_READERS: Mapping[str, Callable[[Fields], QuantizationConfig]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
}


def _bits(fields: Fields, name: str, supported: tuple[int, ...]) -> int:
    bits = fields.value(name)
    if isinstance(bits, bool) or bits not in supported:
        raise fields.wrong(name, " or ".join(map(str, supported)))
    return int(bits)


def _groups(fields: Fields, name: str, default: int) -> frozenset[int]:
    """Return the group size; none if all columns share a scale, which files write as -1."""
    size = fields.optional_size(name, default)
    return frozenset([size] if size else [])


def _block(fields: Fields, name: str) -> tuple[int, int] | None:
    sizes: Any = fields.value(name)
    if isinstance(sizes, str):  # as old files have it
        sizes = [int(size) if size.isdecimal() else 0 for size in sizes.split("x")]
    if sizes is None:
        return None
    if not (
        isinstance(sizes, list)
        and len(sizes) == 2
        and all(isinstance(size, int) and size > 0 for size in sizes)
    ):
        raise fields.wrong(name, "two integers of at least 1, rows and columns")
    return int(sizes[0]), int(sizes[1])


def _refuse(fields: Fields, name: str, expected: str) -> None:
    """Raise `ModelError` unless a field is absent, null, false or empty."""
    if fields.value(name):
        raise fields.wrong(name, expected)
