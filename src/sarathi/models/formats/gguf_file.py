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
_HEADER = struct.Struct("<IQQ")  # version, numbers of tensors and of values
_ARRAY_HEADER = struct.Struct("<IQ")  # type of the elements, and how many there are
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class _Array:
    kind: int  # type number of the elements
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
        self._values: dict[str, str | int | float | _Array] = {}
        self._read: set[str] = set()
        try:
            self.tensors: Mapping[str, TensorInfo] = self._parse()
        except (struct.error, OverflowError, UnicodeDecodeError) as error:
            raise self._invalid("its header is truncated or corrupt") from error

    def __contains__(self, key: str) -> bool:
        return self._get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def is_array(self, key: str) -> bool:
        """Return whether the value is a list."""
        return isinstance(self._get(key), _Array)

    def text(self, key: str, default: str | None = None) -> str | None:
        """Return a string, or the default."""
        value = self._get(key, default)
        if value is not None and not isinstance(value, str):
            raise self._wrong_type(key, "a string")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a finite number of any numeric type."""
        value = self._get(key, default)
        if not isinstance(value, int | float):
            raise self._wrong_type(key, "a number")
        if not math.isfinite(value):
            raise self._wrong_type(key, "a finite number")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int | None:
        """Return an integer, or the default."""
        value = self._get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self._wrong_type(key, "an integer")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong_type(key, "true or false")
        return value

    def texts(self, key: str) -> list[str] | None:
        """Return a list of strings; bytes that are not UTF-8 are replaced."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, _Array) or value.kind != _STRING:
            raise self._wrong_type(key, "a list of strings")
        return self._strings(value.count, value.offset)

    def numbers(self, key: str) -> npt.NDArray[np.generic] | None:
        """Return a list of numbers or booleans; a single number is a list of one."""
        value = self._get(key)
        if value is None:
            return None
        if isinstance(value, int | float):
            return np.array([value])
        if isinstance(value, str) or value.kind not in _SCALARS:
            raise self._wrong_type(key, "a list of numbers")
        return np.frombuffer(self.mapping, _SCALARS[value.kind], value.count, value.offset)

    def unread(self, prefix: str) -> dict[str, str | int | float | None]:
        """Return the keys that were not read, without the `prefix` they have; None for a list."""
        return {
            key.removeprefix(prefix): None if isinstance(value, _Array) else value
            for key, value in self._values.items()
            if key.startswith(prefix) and key not in self._read
        }

    def error(self, message: str) -> ModelError:
        """Return an error about the file, for its reader to raise."""
        return ModelError(f"{self.path}: {message}")

    def _get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        return self._values.get(key, default)

    def _strings(self, count: int, at: int) -> list[str]:
        strings, buffer, size_at = [], self.mapping, _U64.unpack_from
        for _ in range(count):
            end = at + 8 + size_at(buffer, at)[0]
            strings.append(buffer[at + 8 : end].decode("utf-8", "replace"))
            at = end
        return strings

    def _parse(self) -> dict[str, TensorInfo]:
        if self.mapping[: len(GGUF_MAGIC)] != GGUF_MAGIC:
            raise self._invalid(f"it does not begin with GGUF{lfs_hint(self.path)}")
        at = len(GGUF_MAGIC)
        version, tensor_count, value_count = _HEADER.unpack_from(self.mapping, at)
        if version not in (2, 3):
            big_endian = version & 0xFFFF == 0 and version != 0
            found = "big-endian data" if big_endian else f"version {version}"
            raise self._invalid(f"it has {found}, supported are little-endian versions 2 and 3")
        at += _HEADER.size
        for _ in range(value_count):
            key, at = self._name(at)
            if key in self._values:
                raise self._invalid(f"it gives {key} twice")
            self._values[key], at = self._value(at)
        tensors: dict[str, TensorInfo] = {}
        for _ in range(tensor_count):
            name, at = self._name(at)
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

    def _name(self, at: int) -> tuple[str, int]:
        end = self._end(_STRING, 1, at)
        return self.mapping[at + 8 : end].decode("utf-8"), end

    def _value(self, at: int) -> tuple[str | int | float | _Array, int]:
        (kind,) = _U32.unpack_from(self.mapping, at)
        at += _U32.size
        if kind == _ARRAY:
            kind, count = _ARRAY_HEADER.unpack_from(self.mapping, at)
            at += _ARRAY_HEADER.size
            return _Array(kind, count, at), self._end(kind, count, at)
        end = self._end(kind, 1, at)
        if kind == _STRING:
            return self._strings(1, at)[0], end
        value: int | float = np.frombuffer(self.mapping, _SCALARS[kind], 1, at)[0].item()
        return value, end

    def _end(self, kind: int, count: int, at: int) -> int:
        """Return where so many values end that begin `at`."""
        if kind == _STRING:
            buffer, size_at = self.mapping, _U64.unpack_from
            for _ in range(count):
                at += 8 + size_at(buffer, at)[0]
        elif kind in _SCALARS:
            at += count * _SCALARS[kind].itemsize
        else:
            raise self._invalid(f"it has a value of the unknown type {kind}")
        if at > len(self.mapping):
            raise self._invalid("its header is truncated or corrupt")
        return at

    def _tensor_info(self, name: str, at: int) -> tuple[TensorInfo, int]:
        (dimensions,) = _U32.unpack_from(self.mapping, at)
        if dimensions > _MAX_DIMENSIONS:
            raise self._invalid(f"tensor {name} has {dimensions} dimensions")
        layout = struct.Struct(f"<{dimensions}QIQ")
        *shape, kind, offset = layout.unpack_from(self.mapping, at + 4)
        return TensorInfo(tuple(reversed(shape)), kind, offset), at + 4 + layout.size

    def _invalid(self, why: str) -> ModelError:
        return ModelError(f"{self.path} is not a usable GGUF file: {why}")

    def _wrong_type(self, key: str, expected: str) -> ModelError:
        return self.error(f"{key} is not {expected}")
