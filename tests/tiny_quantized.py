"""Tiny folders quantised in the ways of other programs, with what their matrices stand for.

Packed value by value, as the formats are described, without any code of the readers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.tiny_models import save_tiny

Tensors = dict[str, np.ndarray]
Random = np.random.Generator
# Tensors of a module by the end of their names, and its matrix.
Pack = Callable[[Random, int, int], tuple[Tensors, np.ndarray]]


@dataclass(frozen=True)
class Scheme:
    """A way to quantise, and what becomes of its matrices."""

    config: Mapping[str, Any]
    pack: Pack
    # Form of a matrix of 64 columns, and what it is called.
    form: str | None
    kind: str


def quantised(
    name: str, folder: Path, family: str = "llama", head: bool = False, num_layers: int = 2
) -> dict[str, np.ndarray]:
    """Saves a model whose layers, and perhaps its head, are quantised in the way `name`.

    Returns all tensors as they would be without quantisation, by name.
    """
    scheme = SCHEMES[name]
    save_tiny(family, folder, num_layers)
    rng = np.random.default_rng(len(name))
    packed: Tensors = {}
    plain = load_file(folder / "model.safetensors")
    for tensor, value in list(plain.items()):
        in_layer = ".layers." in tensor or ".h." in tensor
        if value.ndim == 2 and (in_layer or (head and tensor.startswith("lm_head"))):
            parts, plain[tensor] = scheme.pack(rng, *value.shape)
            module = tensor.removesuffix(".weight")
            packed |= {f"{module}.{part}": array for part, array in parts.items()}
        else:
            packed[tensor] = value
    save_file(packed, folder / "model.safetensors")
    write_config(folder, quantization_config=dict(scheme.config))
    return plain


def save_plain(plain: Mapping[str, np.ndarray], source: Path, folder: Path) -> None:
    """Saves the same model without quantisation."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    save_file(dict(plain), folder / "model.safetensors")
    write_config(folder, quantization_config=None)


def load(folder: Path) -> Tensors:
    """Reads all tensors, of FP8 too, for which the library has no numpy type."""
    kinds = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "BF16": ml_dtypes.bfloat16, "I8": np.int8}
    kinds |= {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64}
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, info in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = info["data_offsets"]
            values = np.frombuffer(data[start + begin : start + end], kinds[info["dtype"]])
            found[name] = values.reshape(info["shape"])
    return found


def write_config(folder: Path, **changes: Any) -> None:
    """Changes fields of the config.json of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def word(values: list[int], bits: int) -> int:
    """Packs values into a word of 32 bits, the first in its lowest bits."""
    unsigned = 0
    for place, value in enumerate(values):
        assert 0 <= value < 2**bits
        unsigned |= int(value) << (bits * place)
    return signed_word(unsigned)


def signed_word(unsigned: int) -> int:
    unsigned %= 2**32
    return unsigned - 2**32 if unsigned >= 2**31 else unsigned


def pack_rows(values: np.ndarray, bits: int) -> np.ndarray:
    """Packs every row of `values` into words; what is missing in the last one is 0."""
    per_word = 32 // bits
    missing = -values.shape[1] % per_word
    padded = np.pad(values.astype(int), ((0, 0), (0, missing)))
    words = [
        [word(list(row[i : i + per_word]), bits) for i in range(0, len(row), per_word)]
        for row in padded
    ]
    return np.array(words, np.int32)


def dequantised(
    codes: np.ndarray, zeros: np.ndarray | int, scales: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """The matrix of integers [rows, columns], with the group of each column."""
    of_column = zeros[:, groups] if isinstance(zeros, np.ndarray) else zeros
    matrix: np.ndarray = (codes - of_column).astype(np.float32) * scales.astype(np.float32)[
        :, groups
    ]
    return matrix


def integers(
    rng: Random, rows: int, columns: int, group: int, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random unsigned integers, zero points, scales, and the group of each column."""
    count = -(-columns // group)
    codes = rng.integers(0, 2**bits, (rows, columns))
    zeros = rng.integers(0, 2**bits, (rows, count))
    scales = (rng.uniform(0.2, 1, (rows, count)) * 0.8 / 2**bits).astype(np.float16)
    return codes, zeros, scales, np.arange(columns) // group


def awq(group: int) -> Pack:
    def pack(rng: Random, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        codes, zeros, scales, groups = integers(rng, rows, columns, group or columns, 4)

        def interleaved(values: np.ndarray) -> np.ndarray:  # [rows, n] to [n, rows / 8]
            return np.array(
                [
                    [
                        word([column[row + i] for i in (0, 2, 4, 6, 1, 3, 5, 7)], 4)
                        for row in range(0, rows, 8)
                    ]
                    for column in values.T.tolist()
                ],
                np.int32,
            )

        tensors = {
            "qweight": interleaved(codes),
            "qzeros": interleaved(zeros),
            "scales": np.ascontiguousarray(scales.T),
        }
        return tensors, dequantised(codes, zeros, scales, groups)

    return pack


def gptq(
    bits: int, group: int, *, symmetric: bool = False, version: int = 1, shuffled: bool = False
) -> Pack:
    def pack(rng: Random, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        codes, zeros, scales, groups = integers(rng, rows, columns, group or columns, bits)
        if symmetric:
            zeros[:] = 2 ** (bits - 1)
        if shuffled:
            rng.shuffle(groups)
        packed_zeros = pack_rows(zeros.T, bits)
        if version == 1:  # 1 less each, which borrows from the next one where it was 0
            ones = sum(1 << shift for shift in range(0, 32, bits))
            packed_zeros = np.array(
                [[signed_word(int(w) - ones) for w in row] for row in packed_zeros], np.int32
            )
        tensors = {
            "qweight": np.ascontiguousarray(pack_rows(codes, bits).T),
            "qzeros": packed_zeros,
            "scales": np.ascontiguousarray(scales.T),
            "g_idx": groups.astype(np.int32),
        }
        return tensors, dequantised(codes, zeros, scales, groups)

    return pack


def compressed(bits: int, group: int, *, symmetric: bool = True, shuffled: bool = False) -> Pack:
    def pack(rng: Random, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        codes, zeros, scales, groups = integers(rng, rows, columns, group or columns, bits)
        tensors = {
            "weight_packed": pack_rows(codes, bits),
            "weight_scale": scales.astype(ml_dtypes.bfloat16),
            "weight_shape": np.array([rows, columns]),
        }
        scales = tensors["weight_scale"]
        if shuffled:
            rng.shuffle(groups)
            tensors["weight_g_idx"] = groups.astype(np.int32)
        if symmetric:
            return tensors, dequantised(codes, 2 ** (bits - 1), scales, groups)
        tensors["weight_zero_point"] = np.ascontiguousarray(pack_rows(zeros.T, bits).T)
        return tensors, dequantised(codes, zeros, scales, groups)

    return pack


def int8(group: int, *, symmetric: bool = True, per_tensor: bool = False) -> Pack:
    def pack(rng: Random, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        codes, zeros, scales, groups = integers(rng, rows, columns, group or columns, 8)
        if per_tensor:
            scales[:] = scales[0, 0]
        tensors = {
            "weight": (codes - 128).astype(np.int8),
            "weight_scale": scales[:1, 0] if per_tensor else scales,
            "input_scale": np.ones(1, np.float16),  # of activations
        }
        if symmetric:
            return tensors, dequantised(codes, 128, scales, groups)
        tensors["weight_zero_point"] = (zeros - 128).astype(np.int8)
        return tensors, dequantised(codes, zeros, scales, groups)

    return pack


def fp8(name: str, block: tuple[int, int], one: tuple[int, ...] | None = None) -> Pack:
    """Blocks of 0 rows or columns have all; `one` is the shape of the scale of all elements."""

    def pack(rng: Random, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        high, wide = block[0] or rows, block[1] or columns
        values = rng.uniform(-400, 400, (rows, columns)).astype(ml_dtypes.float8_e4m3fn)
        count = (-(-rows // high), -(-columns // wide))
        scales = rng.uniform(0.001, 0.004, count).astype(np.float32)
        elements = values.astype(np.float32)
        for row in range(rows):
            for column in range(columns):
                elements[row, column] *= scales[row // high, column // wide]
        return {"weight": values, name: scales if one is None else scales.reshape(one)}, elements

    return pack


def _gptq(bits: int, group: int, **fields: Any) -> dict[str, Any]:
    size = group or -1
    return {"quant_method": "gptq", "bits": bits, "group_size": size, "damp_percent": 0.1, **fields}


def _compressed(form: str, bits: int, group: int | None = None, **weights: Any) -> dict[str, Any]:
    scheme = {
        "targets": ["Linear"],
        "input_activations": None,
        "weights": {"num_bits": bits, "type": "int", "group_size": group, **weights},
    }
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": scheme},
        "format": form,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "sparsity_config": {"format": "dense"},
    }


_AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
_BLOCK = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 24]}
SCHEMES: Mapping[str, Scheme] = {
    "awq": Scheme({**_AWQ, "group_size": 32}, awq(32), "int4g32z", "AWQ int4"),
    "awq-row": Scheme({**_AWQ, "group_size": -1}, awq(0), "int4g64z", "AWQ int4"),
    "gptq": Scheme(
        _gptq(4, 32, sym=True, desc_act=False), gptq(4, 32, symmetric=True), "int4g32", "GPTQ int4"
    ),
    "gptq-zeros": Scheme(
        _gptq(4, 32, sym=False, checkpoint_format="gptq"), gptq(4, 32), "int4g32z", "GPTQ int4"
    ),
    "gptq-v2": Scheme(
        _gptq(4, 16, checkpoint_format="gptq_v2"), gptq(4, 16, version=2), "int4g16z", "GPTQ int4"
    ),
    "gptq-8": Scheme(_gptq(8, 32, sym=True), gptq(8, 32, symmetric=True), "int8g32", "GPTQ int8"),
    "gptq-8-zeros": Scheme(_gptq(8, 32, sym=False), gptq(8, 32), "int8g32z", "GPTQ int8"),
    "gptq-row": Scheme(_gptq(4, 0, sym=False), gptq(4, 0), "int4g64z", "GPTQ int4"),
    "gptq-wide": Scheme(_gptq(4, 128, sym=False), gptq(4, 128), "int4g64z", "GPTQ int4"),
    "gptq-act-order": Scheme(
        _gptq(4, 32, desc_act=True, sym=False),
        gptq(4, 32, shuffled=True),
        None,
        "GPTQ int4 with uneven groups",
    ),
    "gptq-uneven": Scheme(
        _gptq(4, 40, sym=True), gptq(4, 40, symmetric=True), None, "GPTQ int4 with uneven groups"
    ),
    "int4": Scheme(_compressed("pack-quantized", 4, 32), compressed(4, 32), "int4g32", "int4"),
    "int4-row": Scheme(_compressed("pack-quantized", 4), compressed(4, 0), "int4g64", "int4"),
    "int4-zeros": Scheme(
        _compressed("pack-quantized", 4, 16, symmetric=False),
        compressed(4, 16, symmetric=False),
        "int4g16z",
        "int4",
    ),
    "int4-act-order": Scheme(
        _compressed("pack-quantized", 4, 32, actorder="group"),
        compressed(4, 32, shuffled=True),
        None,
        "int4 with uneven groups",
    ),
    "int8-packed": Scheme(
        _compressed("pack-quantized", 8, 32, symmetric=False),
        compressed(8, 32, symmetric=False),
        "int8g32z",
        "int8",
    ),
    "int8": Scheme(_compressed("int-quantized", 8), int8(0), "int8g64", "int8"),
    "int8-zeros": Scheme(
        _compressed("int-quantized", 8, symmetric=False),
        int8(0, symmetric=False),
        "int8g64z",
        "int8",
    ),
    "int8-groups": Scheme(_compressed("naive-quantized", 8, 32), int8(32), "int8g32", "int8"),
    "int8-tensor": Scheme(
        _compressed("int-quantized", 8, strategy="tensor"),
        int8(0, per_tensor=True),
        "int8g64",
        "int8",
    ),
    "fp8-blocks": Scheme(_BLOCK, fp8("weight_scale_inv", (16, 24)), None, "F8_E4M3"),
    "fp8-tensor": Scheme(
        {"quant_method": "fp8", "activation_scheme": "static"},
        fp8("weight_scale", (0, 0), ()),
        None,
        "F8_E4M3",
    ),
    "float8-rows": Scheme(
        _compressed("float-quantized", 8, type="float", strategy="channel"),
        fp8("weight_scale", (1, 0)),
        None,
        "F8_E4M3",
    ),
    "float8-tensor": Scheme(
        _compressed("float-quantized", 8, type="float", strategy="tensor"),
        fp8("weight_scale", (0, 0), (1,)),
        None,
        "F8_E4M3",
    ),
    "float8-blocks": Scheme(
        _compressed("float-quantized", 8, type="float", block_structure=[32, 16]),
        fp8("weight_scale", (32, 16)),
        None,
        "F8_E4M3",
    ),
}
