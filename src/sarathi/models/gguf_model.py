"""Model configuration and weights from a GGUF file."""

from __future__ import annotations

import math
import mmap
from collections.abc import Set

import gguf.quants
import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from sarathi.models.config import (
    MAX_HEAD_DIM,
    MAX_LAYERS,
    MAX_NUMBER,
    MIN_NUMBER,
    ModelConfig,
    ModelError,
)
from sarathi.models.gguf_file import GgufFile, TensorPlace
from sarathi.models.gguf_names import supported_architecture
from sarathi.models.harmless_fields import is_harmless_key
from sarathi.models.mapping import mapped, read_part
from sarathi.models.rotary import Frequencies, default_inv_freq, linear_scaled
from sarathi.models.weights import ALL, Array

_UNQUANTISED = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
_MINUS_ONE = 2**32 - 1  # as converters write -1 for none
_ROPE_FACTORS = "rope_freqs.weight"
_LONG_ROPE_FACTORS = "rope_factors_long.weight"


def read_config(file: GgufFile) -> ModelConfig:
    """The configuration in the metadata of `file`; `ModelError` for what is not supported."""
    if (kind := file.text("general.type", "model")) != "model":
        raise ModelError(
            f"{file.path}: general.type is {kind!r}, expected a model"
            + (": merge an adapter into its base model" if kind == "adapter" else "")
        )
    if (file.integer("split.count", 1) or 1) > 1:
        raise ModelError(
            f"{file.path} is one part of a split GGUF file, which is not supported: "
            "merge the parts with `llama-gguf-split --merge`"
        )
    arch = supported_architecture(file)
    if file.integer(f"{arch}.expert_count", 0):
        raise ModelError(
            f"{file.path}: {arch}.expert_count is set, only dense models are supported"
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file.path} has no matrix token_embd.weight")
    hidden_size = _size(file, f"{arch}.embedding_length")
    num_layers = _size(file, f"{arch}.block_count", maximum=MAX_LAYERS)
    num_heads = _size(file, f"{arch}.attention.head_count")
    head_dim = _size(
        file, f"{arch}.attention.key_length", hidden_size // num_heads, maximum=MAX_HEAD_DIM
    )
    if _size(file, f"{arch}.attention.value_length", head_dim) != head_dim:
        raise ModelError(f"{file.path}: keys and values of different length are not supported")
    scale = file.number(f"{arch}.attention.scale", 0.0)
    if scale and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-5):
        raise ModelError(
            f"{file.path}: {arch}.attention.scale is {scale:g}, supported is 1 / sqrt({head_dim})"
        )
    falcon = arch == "falcon"
    norm_eps = "layer_norm_epsilon" if falcon else "layer_norm_rms_epsilon"
    config = ModelConfig(
        architecture=arch,
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        intermediate_size=_size(file, f"{arch}.feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_size(file, f"{arch}.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        norm_eps=file.number(f"{arch}.attention.{norm_eps}", 1e-6),
        max_position=_size(file, f"{arch}.context_length"),
        inv_freq=tuple(_inv_freq(file, arch, head_dim).tolist()),
        sliding_windows=_sliding_windows(file, arch, num_layers),
        qkv_bias=not {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}.isdisjoint(file.tensors),
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        norm="layer" if falcon else "rms",
        activation="gelu" if falcon else "silu",
        gated_mlp=not falcon,
        parallel=falcon,
        mlp_norm=not falcon or "blk.0.attn_norm_2.weight" in file.tensors,
        tie_word_embeddings="output.weight" not in file.tensors,
    )
    for name, value in file.unread(f"{arch}.").items():
        if not is_harmless_key(arch, name, value):
            shown = "a list" if value is None else repr(value)
            raise ModelError(
                f"{file.path}: {arch}.{name} is {shown}, which is not supported: it may change the "
                "model"
            )
    return config


def _size(file: GgufFile, key: str, default: int | None = None, *, maximum: int = 2**31 - 1) -> int:
    values = file.numbers(key)
    if values is None:
        if default is None:
            raise ModelError(f"{file.path}: {key} is missing")
        return default
    distinct = set(values.tolist())
    if len(distinct) != 1:
        raise ModelError(f"{file.path}: {key} differs between layers, which is not supported")
    (value,) = distinct
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise ModelError(f"{file.path}: {key} is {value}, expected an integer from 1 to {maximum}")
    return value


def _inv_freq(file: GgufFile, arch: str, head_dim: int) -> Frequencies:
    rotated = _size(file, f"{arch}.rope.dimension_count", head_dim, maximum=MAX_HEAD_DIM)
    theta = file.number(f"{arch}.rope.freq_base", 10000.0)
    # Files older than rope.scaling.type have the factor of linear scaling alone.
    factor = file.number(
        f"{arch}.rope.scaling.factor", file.number(f"{arch}.rope.scale_linear", 1.0)
    )
    # A factor of 0 is none.
    if not all(MIN_NUMBER <= number <= MAX_NUMBER for number in (theta, factor or 1.0)):
        raise ModelError(
            f"{file.path}: rope.freq_base is {theta:g} and rope.scaling.factor {factor:g}, "
            f"expected numbers from {MIN_NUMBER:g} to {MAX_NUMBER:g}"
        )
    scaling = file.text(f"{arch}.rope.scaling.type", "linear")
    if scaling not in ("none", "linear"):
        raise ModelError(
            f"{file.path}: {arch}.rope.scaling.type is {scaling!r}, supported are none, linear "
            "and frequency factors (llama3)"
        )
    if _LONG_ROPE_FACTORS in file.tensors:
        raise ModelError(
            f"{file.path} has {_LONG_ROPE_FACTORS}: frequencies that depend on the length of the "
            "prompt (longrope) are not supported"
        )
    inv_freq = default_inv_freq(rotated, theta)
    if scaling == "linear" and factor not in (0.0, 1.0):
        inv_freq = linear_scaled(inv_freq, factor)
    if _ROPE_FACTORS in file.tensors:
        factors = read_tensor(file, _ROPE_FACTORS).astype(np.float32)
        if factors.shape != inv_freq.shape or not (factors > 0).all():
            raise ModelError(
                f"{file.path}: {_ROPE_FACTORS} must hold {inv_freq.size} positive factors"
            )
        inv_freq = inv_freq / factors
    return inv_freq


def _sliding_windows(file: GgufFile, arch: str, num_layers: int) -> tuple[int, ...]:
    """One window a layer; the pattern is a list of booleans, or one number n for n - 1 of n."""
    window = file.integer(f"{arch}.attention.sliding_window") or 0
    key = f"{arch}.attention.sliding_window_pattern"
    pattern = file.numbers(key)
    if window < 1 or window == _MINUS_ONE:
        return (0,) * num_layers
    if pattern is None:
        return (window,) * num_layers
    slides = pattern.tolist()
    if pattern.dtype.kind in "iu" and not file.is_array(key):
        period = slides[0]
        slides = [period < 1 or layer % period < period - 1 for layer in range(num_layers)]
    if len(slides) != num_layers or not set(slides) <= {0, 1}:
        raise ModelError(
            f"{file.path}: {key} must be a list of {num_layers} booleans, or the number of layers "
            "of which the last one does not slide"
        )
    return tuple(window if each else 0 for each in slides)


def read_tensor(
    file: GgufFile, name: str, rows: slice = ALL, columns: slice = ALL, interleaved: int = 0
) -> Array:
    """A part of a tensor by its name in the file, read now: as float32 if it is quantised.

    With `interleaved`, every head of so many rows is put from the order of rotation pairs (0, 1),
    (2, 3) ... into that of halves (0, d/2), (1, d/2 + 1) ...
    Of a matrix, only the heads and blocks of quantised values that hold the part are read.
    """
    place = file.tensors[name]
    shape = place.shape or (1,)
    kind = _quantisation(file, name, place)
    dtype = _UNQUANTISED.get(kind)
    block, width = (1, 1) if dtype is not None else GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise ModelError(
            f"{file.path}: tensor {name} has rows of {shape[-1]} values, {kind.name} has blocks "
            f"of {block}"
        )
    part = [len(range(size)[wanted]) for size, wanted in zip(shape, (rows, columns), strict=False)]
    if 0 in part:
        return np.empty(part, dtype or np.float32)
    stored_shape = (*shape[:-1], shape[-1] // block * width)
    read: tuple[slice, slice] = (ALL, ALL)
    cut: tuple[slice, ...] = (rows,)
    if len(shape) == 2:
        heads, rows = _units(shape[0], rows, interleaved or 1)
        blocks, columns = _units(shape[1], columns, block)
        read = (heads, slice(blocks.start // block * width, blocks.stop // block * width))
        cut = (rows, columns)
    stored = _stored(file, name, place.offset, stored_shape, dtype or np.dtype(np.uint8), *read)
    # Rows are quantised one by one, so they may be moved before they are dequantised.
    if interleaved:
        pairs = stored.reshape(-1, interleaved // 2, 2, *stored.shape[1:])
        stored = pairs.swapaxes(1, 2).reshape(stored.shape)
    values = stored if dtype is not None else _dequantised(file, name, kind, stored)
    return np.ascontiguousarray(values[cut])


def _units(size: int, wanted: slice, unit: int) -> tuple[slice, slice]:
    """Whole units that hold `wanted` of `size` things, and where among these it is."""
    part = range(size)[wanted]
    first = part.start // unit * unit
    return slice(first, -(-part.stop // unit) * unit), slice(part.start - first, part.stop - first)


def _dequantised(file: GgufFile, name: str, kind: GGMLQuantizationType, stored: Array) -> Array:
    try:
        values: Array = gguf.quants.dequantize(stored, kind)
    except NotImplementedError as error:
        raise ModelError(
            f"{file.path}: tensor {name} has the quantisation type {kind.name}, "
            "which cannot be dequantised"
        ) from error
    return values


def _quantisation(file: GgufFile, name: str, place: TensorPlace) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType(place.kind)
    except ValueError:
        raise ModelError(
            f"{file.path}: tensor {name} has the unknown quantisation type {place.kind}"
        ) from None


def _stored(
    file: GgufFile,
    name: str,
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    rows: slice,
    columns: slice,
) -> Array:
    end = offset + math.prod(shape) * dtype.itemsize
    if end > len(file.mapping):
        raise ModelError(
            f"{file.path} is truncated: tensor {name} ends at byte {end} of {len(file.mapping)}"
        )
    return read_part(file.mapping, offset, shape, dtype, rows, columns)


class GgufWeights:
    """The tensors of a GGUF file under their names there.

    Raises `ModelError` on construction if the file ends before its last tensor does.
    """

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self._file = file
        # Converters to GGUF reorder queries and keys of this architecture alone.
        self._interleaved = config.head_dim if config.architecture == "llama" else 0
        for name, place in file.tensors.items():
            block, size = GGML_QUANT_SIZES[_quantisation(file, name, place)]
            bytes_needed = math.prod(place.shape) // block * size
            if place.offset + bytes_needed > len(file.mapping):
                raise ModelError(
                    f"{file.path} is truncated: tensor {name} ends at byte "
                    f"{place.offset + bytes_needed} of {len(file.mapping)}"
                )

    @property
    def mappings(self) -> tuple[mmap.mmap, ...]:
        """The mapped file, for advice to the kernel about its pages."""
        return (self._file.mapping,)

    @property
    def names(self) -> Set[str]:
        """All but the factors that are a part of the configuration."""
        return self._file.tensors.keys() - {_ROPE_FACTORS}

    def __contains__(self, name: object) -> bool:
        return name in self._file.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._place(name).shape

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        if self._rows_of_heads(name):
            return None
        return _UNQUANTISED.get(_quantisation(self._file, name, self._place(name)))

    def __getitem__(self, name: str) -> Array:
        dtype = self.stored_dtype(name)
        if dtype is None:
            return self.part(name)
        place = self._place(name)
        return mapped(self._file.mapping, place.offset, place.shape, dtype)

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        self._place(name)
        return read_tensor(self._file, name, rows, columns, self._rows_of_heads(name))

    def _rows_of_heads(self, name: str) -> int:
        """How many rows a head has that is to be put in order; 0 where there is none."""
        return self._interleaved if ".attn_q." in name or ".attn_k." in name else 0

    def _place(self, name: str) -> TensorPlace:
        try:
            return self._file.tensors[name]
        except KeyError:
            raise ModelError(f"{self._file.path} has no tensor {name}") from None
