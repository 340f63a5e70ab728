"""Where a checkpoint keeps the decoder's tensors: under which names, in which of their rows."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from sarathi.errors import ModelError
from sarathi.models.model_config import ModelConfig
from sarathi.models.quantized import IntegerForm, QuantizedRows, concatenate
from sarathi.models.weights import ALL, Array, StoredWeights


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of each of the `groups` groups, `size` rows each, of a tensor."""

    groups: int
    size: int
    start: int
    stop: int

    def take(self, tensor: Array) -> Array:
        """Return those rows: a view where they are contiguous, a copy otherwise."""
        row_shape = tensor.shape[1:]
        grouped = tensor.reshape(self.groups, self.size, *row_shape)
        return grouped[:, self.start : self.stop].reshape(-1, *row_shape)

    def pieces(self, wanted: slice) -> list[slice]:
        """Return the slices of the tensor with the `wanted` ones of those rows, one a group."""
        each = self.stop - self.start
        rows = range(self.groups * each)[wanted]
        pieces = []
        last = max(rows.start, rows.stop - 1) // each  # of no rows, one empty piece
        for group in range(rows.start // each, last + 1):
            begin, end = max(rows.start, group * each), min(rows.stop, (group + 1) * each)
            # The tensor's rows before this group's that are not of these.
            skipped = group * (self.size - each) + self.start
            pieces.append(slice(begin + skipped, end + skipped))
        return pieces

    def shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of `take` of a tensor of shape `stored`."""
        rows = self.groups * self.size
        if not stored or stored[0] != rows:
            raise ModelError(
                f"tensor {name} has shape {stored}, the model's configuration asks for {rows} rows"
            )
        return (self.groups * (self.stop - self.start), *stored[1:])


@dataclass(frozen=True)
class Source:
    """A tensor or a module of a checkpoint by its name there, or some rows of it."""

    name: str
    rows: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """From the decoder's names (`models/tensor_layout.py`) to a checkpoint's.

    A module that is not listed has the same name in both.
    """

    outside: Mapping[str, str] = field(default_factory=dict)  # modules outside the layers
    layers: str = "model.layers."  # what the names of all modules in layers begin with
    inside: Mapping[str, Source] = field(default_factory=dict)  # modules of a layer
    centred_norms: bool = False  # whether norms are stored less 1: trained around 0 (Gemma)

    def find(self, name: str) -> Source:
        """Return the tensor with `name`, and its rows."""
        module, _, kind = name.rpartition(".")
        parts = module.split(".", 3)
        if len(parts) < 4 or parts[:2] != ["model", "layers"]:
            return Source(f"{self.outside.get(module, module)}.{kind}")
        source = self.inside.get(parts[3], Source(parts[3]))
        return Source(f"{self.layers}{parts[2]}.{source.name}.{kind}", source.rows)


def renamed(modules: Mapping[str, str]) -> dict[str, Source]:
    """Return modules that differ only in their name."""
    return {ours: Source(theirs) for ours, theirs in modules.items()}


def fused(module: str, parts: Mapping[str, int], groups: int = 1) -> dict[str, Source]:
    """Return modules stacked in one: each of `groups` has so many rows of every part, in order."""
    stops = list(accumulate(parts.values()))
    return {
        part: Source(module, Rows(groups, stops[-1], stop - rows, stop))
        for (part, rows), stop in zip(parts.items(), stops, strict=True)
    }


def fused_qkv(module: str, config: ModelConfig) -> dict[str, Source]:
    """Return the attention's projections in one module: all queries, then keys, then values."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return fused(
        module, {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    )


class NamedWeights:
    """The tensors of a checkpoint under the decoder's names; see `Weights`."""

    def __init__(self, stored: StoredWeights, names: NameMap) -> None:
        self._stored = stored
        self._names = names
        self.mappings: tuple[mmap.mmap, ...] = stored.mappings

    def layer_of(self, stored_name: str) -> int | None:
        """Return the layer of a tensor of the checkpoint; None for one outside the layers."""
        found = re.match(re.escape(self._names.layers) + r"([0-9]{1,9})(\.|$)", stored_name)
        return None if found is None else int(found[1])

    @property
    def stored_names(self) -> Set[str]:
        """The checkpoint's own names of its tensors."""
        return self._stored.names

    def stored_name(self, name: str) -> str:
        """Return the checkpoint's name of the tensor that contains `name`."""
        return self._names.find(name).name

    def is_zero_bias(self, stored_name: str) -> bool:
        """Return whether a tensor of the checkpoint is a bias of zeros."""
        return stored_name.endswith(".bias") and not np.any(self._stored[stored_name])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._names.find(name).name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        source = self._names.find(name)
        stored = self._stored.shape(source.name)
        return source.rows.shape(source.name, stored) if source.rows else stored

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        source = self._names.find(name)
        if self._is_centred(name):
            return None
        if source.rows and source.rows.groups > 1:  # not contiguous
            return None
        return self._stored.stored_dtype(source.name)

    def __getitem__(self, name: str) -> Array:
        source = self._names.find(name)
        if self._is_centred(name):
            return self.part(name)
        if source.rows is None:
            return self._stored[source.name]
        if self._stored.stored_dtype(source.name) is None:
            return self.part(name)  # without computing the other rows
        return source.rows.take(self._stored[source.name])

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        source = self._names.find(name)
        pieces = [rows] if source.rows is None else source.rows.pieces(rows)
        parts = [self._stored.part(source.name, piece, columns) for piece in pieces]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found.astype(np.float32) + np.float32(1) if self._is_centred(name) else found

    def stored_type(self, name: str) -> str:
        return self._stored.stored_type(self._names.find(name).name)

    def form(self, name: str) -> IntegerForm | None:
        return self._stored.form(self._names.find(name).name)

    def quantized(self, name: str, rows: slice = ALL) -> QuantizedRows:
        source = self._names.find(name)
        pieces = [rows] if source.rows is None else source.rows.pieces(rows)
        return concatenate([self._stored.quantized(source.name, piece) for piece in pieces])

    def _is_centred(self, name: str) -> bool:
        return self._names.centred_norms and name.endswith("norm.weight")
