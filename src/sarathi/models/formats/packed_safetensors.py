"""The weights of a Hugging Face folder, quantised or not."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sarathi.errors import ModelError
from sarathi.models.formats.huggingface_checkpoint import SafetensorsWeights
from sarathi.models.formats.packed_matrices import (
    PackedTensors,
    StoredMatrix,
    awq_matrix,
    gptq_matrix,
    packed_matrix,
    scaled_matrix,
)
from sarathi.models.formats.quantization_config import (
    Method,
    QuantizationConfig,
    read_quantization,
)
from sarathi.models.json_fields import Fields
from sarathi.models.quantized import IntegerForm, QuantizedRows
from sarathi.models.weights import ALL, Array, StoredWeights


@dataclass(frozen=True)
class _Packing:
    """How the matrix of a module is stored: in tensors with its name and these suffixes."""

    marker: str  # which modules have it
    others: tuple[str, ...]
    find: Callable[[PackedTensors, str, QuantizationConfig], StoredMatrix]


_INTEGERS = ("qzeros", "scales")
_PACKED = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
_PACKINGS: Mapping[Method, tuple[_Packing, ...]] = {
    "awq": (_Packing("qweight", _INTEGERS, awq_matrix),),
    "gptq": (_Packing("qweight", (*_INTEGERS, "g_idx"), gptq_matrix),),
    "compressed-tensors": (
        _Packing("weight_packed", _PACKED, packed_matrix),
        _Packing("weight_scale", ("weight", "weight_zero_point"), scaled_matrix),
    ),
    "fp8": (
        _Packing("weight_scale_inv", ("weight",), scaled_matrix),
        _Packing("weight_scale", ("weight",), scaled_matrix),
    ),
}
_PARTS = frozenset((*_INTEGERS, *_PACKED, "g_idx", "qweight"))
# Fixed scales with which other engines quantise activations and the KV cache.
_OF_ACTIVATIONS = re.compile(r".*\.((in|out)put|activation|[qkv])_(scale|zero_point)")


def open_weights(folder: Path) -> StoredWeights:
    """Map the tensors of a folder; `ModelError` if they do not match its quantization_config."""
    stored = SafetensorsWeights(folder)
    config = read_quantization(Fields.read(folder / "config.json"))
    return stored if config is None else PackedSafetensors(stored, config)


class PackedSafetensors:
    """The tensors of a quantised folder, as if a matrix were one tensor `weight`.

    The tensors that a matrix consists of are left out. Everything else, the modules that are not
    quantised among it, is as it is stored. Shapes and types are checked on construction, numbers
    when they are read.
    """

    def __init__(self, stored: SafetensorsWeights, config: QuantizationConfig) -> None:
        self._stored = stored
        self.mappings: tuple[mmap.mmap, ...] = stored.mappings
        self._matrices: dict[str, StoredMatrix] = {}
        parts: set[str] = set()
        for packing in _PACKINGS[config.method]:
            for name in sorted(stored.names - parts):
                module, _, suffix = name.rpartition(".")
                if suffix == packing.marker:
                    self._matrices[f"{module}.weight"] = packing.find(stored, module, config)
                    parts.update((name, *(f"{module}.{other}" for other in packing.others)))
        markers = {packing.marker for packing in _PACKINGS[config.method]}
        orphans = sorted(
            name
            for name in stored.names - parts
            if name.rpartition(".")[2] in _PARTS - markers and config.method != "fp8"
        )
        if self._matrices and orphans:
            module = orphans[0].rpartition(".")[0]
            wanted = " or ".join(f"{module}.{marker}" for marker in sorted(markers))
            raise ModelError(f"the checkpoint has tensor {orphans[0]}, but no {wanted}")
        if not self._matrices:
            wanted = " or ".join(f"*.{packing.marker}" for packing in _PACKINGS[config.method])
            raise ModelError(
                f"quantization_config in config.json says {config.method}, but there is no tensor "
                f"{wanted}: remove it from the file if the weights are not quantised"
            )
        both = sorted(self._matrices.keys() & stored.names - parts)
        if both:
            raise ModelError(f"the checkpoint has tensor {both[0]} twice, quantised and not")
        plain = {name for name in stored.names - parts if not _OF_ACTIVATIONS.fullmatch(name)}
        self.names: Set[str] = frozenset(plain | self._matrices.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def shape(self, name: str) -> tuple[int, ...]:
        matrix = self._matrices.get(name)
        return self._stored.shape(name) if matrix is None else matrix.shape

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        return None if name in self._matrices else self._stored.stored_dtype(name)

    def stored_type(self, name: str) -> str:
        matrix = self._matrices.get(name)
        return self._stored.stored_type(name) if matrix is None else matrix.kind

    def __getitem__(self, name: str) -> Array:
        return self.part(name) if name in self._matrices else self._stored[name]

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        if name not in self._matrices:
            return self._stored.part(name, rows, columns)
        if not range(self.shape(name)[0])[rows]:
            return np.empty((0, self.shape(name)[1]), np.float32)[:, columns]
        found = self._read(name, rows)
        elements = found.dequantized() if isinstance(found, QuantizedRows) else found
        return np.ascontiguousarray(elements[:, columns])

    def form(self, name: str) -> IntegerForm | None:
        matrix = self._matrices.get(name)
        return None if matrix is None else matrix.form

    def quantized(self, name: str, rows: slice = ALL) -> QuantizedRows:
        found = self._read(name, rows) if name in self._matrices else None
        if not isinstance(found, QuantizedRows):
            raise ModelError(f"tensor {name} has no integer form")
        return found

    def _read(self, name: str, rows: slice) -> QuantizedRows | Array:
        matrix = self._matrices[name]
        wanted = range(matrix.shape[0])[rows]
        return matrix.read(wanted.start, wanted.stop)
