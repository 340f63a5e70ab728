"""The container format GGUF: metadata and tensor descriptions, read lazily from the mapped file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian versions 2 and 3.
The reader of the `gguf` package makes several array objects for each of some hundred thousand
vocabulary strings; here strings are skipped at first and decoded when they are read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sarathi.errors import ModelError
from sarathi.models.formats.checkpoint_files import GGUF_MAGIC, lfs_hint, map_file

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, np.dtype[np.generic]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class _Value:
    kind: int  # type number of the format; of the elements if it is an array
    is_array: bool
    count: int
    offset: int  # bytes from the beginning of the file


@dataclass(frozen=True)
class TensorInfo:
    """Shape, type and position of one tensor; `shape` in numpy order (rows first)."""

    shape: tuple[int, ...]
    kind: int  # GGMLQuantizationType
    offset: int  # bytes from the beginning of the file


class GgufFile:
    """One mapped GGUF file.

    Getters return `default` for an absent key and raise `ModelError` naming key and type if the
    value has another type. Construction raises `ModelError` for anything but a complete header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mapping = map_file(path)
        self._values: dict[str, _Value] = {}
        self._read: set[str] = set()
        try:
            self.tensors: Mapping[str, TensorInfo] = self._parse()
        except (struct.error, OverflowError, UnicodeDecodeError) as error:
            raise self._invalid("its header is truncated or corrupt") from error

    def __contains__(self, key: str) -> bool:
        return self._get(key) is not None

    def keys(self) -> Iterator[str]:
        return iter(self._values)

    def is_array(self, key: str) -> bool:
        value = self._get(key)
        return value is not None and value.is_array

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self._get(key)
        if value is None:
            return default
        if value.kind != _STRING or value.is_array:
            raise self._wrong_type(key, "a string")
        return self._strings(value)[0]

    def number(self, key: str, default: float) -> float:
        """Return a finite number of any numeric type."""
        if key not in self:
            return default
        number = float(self._scalar(key, "a number"))
        if not math.isfinite(number):
            raise self._wrong_type(key, "a finite number")
        return number

    def integer(self, key: str, default: int | None = None) -> int | None:
        if key not in self:
            return default
        array = self._scalar(key, "an integer")
        if array.dtype.kind not in "iu":
            raise self._wrong_type(key, "an integer")
        return int(array)

    def boolean(self, key: str, default: bool) -> bool:
        if key not in self:
            return default
        array = self._scalar(key, "true or false")
        if array.dtype.kind != "b":
            raise self._wrong_type(key, "true or false")
        return bool(array)

    def texts(self, key: str) -> list[str] | None:
        """Return a list of strings; bytes that are not UTF-8 are replaced."""
        value = self._get(key)
        if value is None:
            return None
        if value.kind != _STRING or not value.is_array:
            raise self._wrong_type(key, "a list of strings")
        return self._strings(value)

    def numbers(self, key: str) -> npt.NDArray[np.generic] | None:
        """Return a list of numbers or booleans; a single number is a list of one."""
        value = self._get(key)
        if value is None:
            return None
        if value.kind not in _SCALARS:
            raise self._wrong_type(key, "a list of numbers")
        return np.frombuffer(self.mapping, _SCALARS[value.kind], value.count, value.offset)

    def unread(self, prefix: str) -> dict[str, Any]:
        """Return the keys that were not read, without the `prefix` they have; None for a list."""
        return {
            key.removeprefix(prefix): None if value.is_array else self._shown(key, value)
            for key, value in self._values.items()
            if key.startswith(prefix) and key not in self._read
        }

    def _shown(self, key: str, value: _Value) -> Any:
        return self._strings(value)[0] if value.kind == _STRING else self._scalar(key, "").item()

    def _get(self, key: str) -> _Value | None:
        self._read.add(key)
        return self._values.get(key)

    def _scalar(self, key: str, expected: str) -> np.generic:
        value = self._values[key]
        if value.is_array or value.kind not in _SCALARS:
            raise self._wrong_type(key, expected)
        scalar: np.generic = np.frombuffer(self.mapping, _SCALARS[value.kind], 1, value.offset)[0]
        return scalar

    def _strings(self, value: _Value) -> list[str]:
        strings, at, buffer, size_at = [], value.offset, self.mapping, _U64.unpack_from
        for _ in range(value.count):
            end = at + 8 + size_at(buffer, at)[0]
            strings.append(buffer[at + 8 : end].decode("utf-8", "replace"))
            at = end
        return strings

    def _parse(self) -> dict[str, TensorInfo]:
        if self.mapping[: len(GGUF_MAGIC)] != GGUF_MAGIC:
            raise self._invalid(f"it does not begin with GGUF{lfs_hint(self.path)}")
        (version,) = _U32.unpack_from(self.mapping, 4)
        if version not in (2, 3):
            big_endian = version & 0xFFFF == 0 and version != 0
            found = "big-endian data" if big_endian else f"version {version}"
            raise self._invalid(f"it has {found}, supported are little-endian versions 2 and 3")
        (tensor_count,) = _U64.unpack_from(self.mapping, 8)
        (value_count,) = _U64.unpack_from(self.mapping, 16)
        at = 24
        for _ in range(value_count):
            key, at = self._string(at)
            if key in self._values:
                raise self._invalid(f"it gives {key} twice")
            self._values[key], at = self._value(at)
        tensors: dict[str, TensorInfo] = {}
        for _ in range(tensor_count):
            name, at = self._string(at)
            if name in tensors:
                raise self._invalid(f"it gives tensor {name} twice")
            tensors[name], at = self._tensor_info(name, at)
        alignment = self.integer("general.alignment", _DEFAULT_ALIGNMENT) or 0
        if alignment < 1 or alignment & (alignment - 1):
            raise self._invalid(f"general.alignment is {alignment}, expected a power of two")
        data = -(-at // alignment) * alignment
        return {
            name: TensorInfo(info.shape, info.kind, info.offset + data)
            for name, info in tensors.items()
        }

    def _string(self, at: int) -> tuple[str, int]:
        end = at + 8 + _U64.unpack_from(self.mapping, at)[0]
        self._check_end(end)
        return self.mapping[at + 8 : end].decode("utf-8"), end

    def _value(self, at: int) -> tuple[_Value, int]:
        (kind,) = _U32.unpack_from(self.mapping, at)
        at += 4
        is_array = kind == _ARRAY
        count = 1
        if is_array:
            (kind,) = _U32.unpack_from(self.mapping, at)
            (count,) = _U64.unpack_from(self.mapping, at + 4)
            at += 12
        value = _Value(kind, is_array, count, at)
        if kind == _STRING:
            buffer, size_at = self.mapping, _U64.unpack_from
            for _ in range(count):
                at += 8 + size_at(buffer, at)[0]
        elif kind in _SCALARS:
            at += count * _SCALARS[kind].itemsize
        else:
            raise self._invalid(f"it has a value of the unknown type {kind}")
        self._check_end(at)
        return value, at

    def _tensor_info(self, name: str, at: int) -> tuple[TensorInfo, int]:
        (dimensions,) = _U32.unpack_from(self.mapping, at)
        if dimensions > _MAX_DIMENSIONS:
            raise self._invalid(f"tensor {name} has {dimensions} dimensions")
        layout = struct.Struct(f"<{dimensions}QIQ")
        *shape, kind, offset = layout.unpack_from(self.mapping, at + 4)
        return TensorInfo(tuple(reversed(shape)), kind, offset), at + 4 + layout.size

    def _check_end(self, end: int) -> None:
        if end > len(self.mapping):
            raise self._invalid("its header is truncated or corrupt")

    def _invalid(self, why: str) -> ModelError:
        return ModelError(f"{self.path} is not a usable GGUF file: {why}")

    def _wrong_type(self, key: str, expected: str) -> ModelError:
        return ModelError(f"{self.path}: {key} is not {expected}")
