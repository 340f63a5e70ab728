"""Checkpoints in the Hugging Face layout: configuration, and weights that are never copied.

The safetensors library copies each tensor when asked for numpy arrays, so the format (an 8-byte
header length, a JSON header, then the data; https://huggingface.co/docs/safetensors) is read here.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from sarathi.errors import ModelError
from sarathi.models.families import ARCHITECTURES
from sarathi.models.formats.checkpoint_files import (
    lfs_hint,
    map_file,
    mapped_array,
    read_part,
    request,
)
from sarathi.models.formats.harmless_fields import is_harmless_field
from sarathi.models.formats.quantization_config import read_quantization
from sarathi.models.json_fields import Fields
from sarathi.models.model_config import ModelConfig
from sarathi.models.name_map import NameMap
from sarathi.models.quantized import IntegerForm, QuantizedRows
from sarathi.models.weights import ALL, Array

_BY_MODEL_TYPE = {family.model_type: name for name, family in ARCHITECTURES.items()}


def read_config(folder: Path) -> ModelConfig:
    """Return the model that the `config.json` of `folder` describes.

    Absent fields take the defaults of the `transformers` library. Raises `ModelError` naming the
    field for anything that is missing, of the wrong type, not supported, or not known.
    """
    fields = Fields.read(folder / "config.json")
    architecture = _architecture(fields)
    read_quantization(fields)  # refuses what cannot be served
    config = ARCHITECTURES[architecture].read_config(fields, architecture)
    fields.refuse_unread(is_harmless_field)
    return config


def name_map(config: ModelConfig) -> NameMap:
    """Return where checkpoints of `config` keep their tensors."""
    named = ARCHITECTURES[config.architecture].name_map
    return NameMap() if named is None else named(config)


def _architecture(fields: Fields) -> str:
    names = fields.value("architectures")
    model_type = fields.text("model_type", "")
    if not names:
        names = [_BY_MODEL_TYPE.get(model_type, model_type)]
    if not isinstance(names, list) or names[0] not in tuple(ARCHITECTURES):
        field = "architectures" if fields.data.get("architectures") else "model_type"
        if "text_config" in fields:
            raise fields.wrong(
                field,
                "a text model: this one is multimodal, of which not even the text part is served "
                "(a GGUF file with that part is)",
            )
        supported = ARCHITECTURES if field == "architectures" else _BY_MODEL_TYPE
        raise fields.wrong(field, f"one of {', '.join(supported)}")
    name = str(names[0])
    if model_type and _BY_MODEL_TYPE.get(model_type) != name:
        # transformers selects the class by this one.
        raise fields.wrong(
            "model_type", f"{ARCHITECTURES[name].model_type}, for architectures {name}"
        )
    return name


_DTYPES: Mapping[str, npt.DTypeLike] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# Those of integers and scales that weights are computed from.
_PACKED_DTYPES: Mapping[str, npt.DTypeLike] = {
    **_DTYPES,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
_WHOLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    mapping: mmap.mmap
    start: int  # bytes from the beginning of the file
    end: int


class SafetensorsWeights:
    """The tensors of `model.safetensors`, else of the shards in `model.safetensors.index.json`.

    Where there are both, the whole file counts, as in `transformers`: what is left of an earlier
    save is the shards. A tensor that two shards have is taken from the one that the index names.

    Arrays are read-only views of the mapped files, save for some columns of a matrix. Raises
    `ModelError` for missing, truncated or inconsistent files on construction, so that a broken
    checkpoint never fails half way.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, _Entry] = {}
        self.mappings: tuple[mmap.mmap, ...] = ()
        weight_map, files = _files(folder)
        for file in files:
            path = folder / file
            mapping = map_file(path)
            self.mappings += (mapping,)
            for name, entry in _parse(path, mapping).items():
                if name not in self._entries or weight_map.get(name) == file:
                    self._entries[name] = entry

    @property
    def names(self) -> Set[str]:
        return self._entries.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def stored_dtype(self, name: str) -> np.dtype[np.generic]:
        entry = self._entry(name)
        if entry.dtype.startswith("F8_"):
            raise ModelError(
                f"tensor {name} in {self._folder} has type {entry.dtype} and no scales "
                f"({name}_scale or {name}_scale_inv, with a quantization_config)"
            )
        if entry.dtype not in _DTYPES:
            raise ModelError(
                f"tensor {name} in {self._folder} has type {entry.dtype}, "
                f"supported are {', '.join(_DTYPES)}"
            )
        return np.dtype(_DTYPES[entry.dtype])

    def __getitem__(self, name: str) -> Array:
        entry = self._entry(name)
        return mapped_array(entry.mapping, entry.start, entry.shape, self.stored_dtype(name))

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        entry = self._entry(name)
        dtype = self.stored_dtype(name)
        return read_part(entry.mapping, entry.start, entry.shape, dtype, rows, columns)

    def packed(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        """Read a part of a tensor as `part` does, also one of integers or of a type of scales."""
        entry = self._entry(name)
        if entry.dtype not in _PACKED_DTYPES:
            raise ModelError(
                f"tensor {name} in {self._folder} has type {entry.dtype}, "
                f"supported are {', '.join(_PACKED_DTYPES)}"
            )
        dtype = np.dtype(_PACKED_DTYPES[entry.dtype])
        if columns == ALL:
            return read_part(entry.mapping, entry.start, entry.shape, dtype, rows, columns)
        # Matrices with columns for rows of the model are read some columns at a time: to request
        # the bytes between them for each again takes longer than all else.
        request(entry.mapping, entry.start, entry.end - entry.start)
        return mapped_array(entry.mapping, entry.start, entry.shape, dtype)[rows, columns]

    def stored_type(self, name: str) -> str:
        return self._entry(name).dtype

    def form(self, name: str) -> IntegerForm | None:
        return None

    def quantized(self, name: str, rows: slice = ALL) -> QuantizedRows:
        raise ModelError(f"tensor {name} in {self._folder} is not quantised")

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise ModelError(f"{self._folder} has no tensor {name}") from None


def _files(folder: Path) -> tuple[Mapping[str, str], list[str]]:
    """Return the file of each tensor, if there is an index, and all files of `folder`."""
    if (folder / _WHOLE).is_file():
        return {}, [_WHOLE]
    index = folder / f"{_WHOLE}.index.json"
    if not index.is_file():
        raise _no_safetensors(folder)
    shards = Fields.read(index).object("weight_map")
    if shards is None or not shards.data:
        raise ModelError(f"{index}: weight_map is missing")
    weight_map = shards.data
    paths = [PurePosixPath(name if isinstance(name, str) else "") for name in weight_map.values()]
    if not all(path.parts and not path.is_absolute() and ".." not in path.parts for path in paths):
        raise ModelError(
            f"{index}: weight_map must give the name of a file in this folder for every tensor"
        )
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, which {index.name} lists")
    return weight_map, names


def _no_safetensors(folder: Path) -> ModelError:
    """Return the error with what there is instead, and what can be done about it."""
    names = sorted(path.name for path in folder.iterdir())
    shards = [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    others = [name for name in names if name.endswith(".safetensors")]
    if {"openvino_model.xml", "openvino_model.bin"} & set(names):
        there = "an OpenVINO model, from which no weights are read: give the original folder"
    elif any(name.endswith(".onnx") for name in names) or "onnx" in names:
        there = "an ONNX model, which is not supported: give the original folder"
    elif "adapter_model.safetensors" in names:
        there = "a LoRA adapter, which is not supported: merge it into its base model"
    elif shards:
        there = (
            f"{', '.join(shards[:3])}{', ...' if len(shards) > 3 else ''}, but no {_WHOLE}.index."
            "json that says which tensor is where: fetch that file, too"
        )
    elif others:
        there = f"{', '.join(others)}: supported is {_WHOLE}, rename the file if that is what it is"
    elif any(name.endswith((".bin", ".pth", ".pt")) for name in names):
        there = (
            "pytorch files (.bin), which are not supported: load it with transformers and save it "
            "again with save_pretrained to convert it"
        )
    else:
        return ModelError(f"{folder} has no {_WHOLE}")
    return ModelError(f"{folder} has no {_WHOLE}; it has {there}")


def _parse(path: Path, mapping: mmap.mmap) -> dict[str, _Entry]:
    size = len(mapping)
    request(mapping, 0, 8)
    header_size = int.from_bytes(mapping[:8], "little")
    data_start = 8 + header_size
    if size < 8 or header_size > _MAX_HEADER_BYTES or data_start > size:
        raise ModelError(f"{path} is truncated or not a safetensors file{lfs_hint(path)}")
    request(mapping, 0, data_start)
    try:
        header = json.loads(mapping[8:data_start])
        return {
            name: _entry(path, name, info, mapping, data_start)
            for name, info in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} has an invalid safetensors header: {error}") from error


def _entry(
    path: Path, name: str, info: Mapping[str, Any], mapping: mmap.mmap, data_start: int
) -> _Entry:
    shape = tuple(int(size) for size in info["shape"])
    start, end = (data_start + int(offset) for offset in info["data_offsets"])
    if not data_start <= start <= end or min(shape, default=0) < 0:
        raise ModelError(f"{path}: tensor {name} has an invalid shape or position")
    if end > len(mapping):
        raise ModelError(f"{path} is truncated: tensor {name} ends at byte {end} of {len(mapping)}")
    dtype = str(info["dtype"])
    size = np.dtype(_PACKED_DTYPES[dtype]).itemsize if dtype in _PACKED_DTYPES else None
    if size is not None and math.prod(shape) * size != end - start:
        raise ModelError(
            f"{path}: tensor {name} of shape {shape} does not fill {end - start} bytes"
        )
    return _Entry(dtype, shape, mapping, start, end)
