"""Model configuration and weights from a GGUF file."""

from __future__ import annotations

import math
import mmap

import gguf.quants
import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from sarathi.models.config import MAX_HEAD_DIM, MAX_LAYERS, ModelConfig, ModelError
from sarathi.models.gguf_file import GgufFile, TensorPlace
from sarathi.models.gguf_names import name_map
from sarathi.models.gguf_vocabulary import end_of_generation_ids
from sarathi.models.names import Rows, Source
from sarathi.models.rotary import Frequencies, default_inv_freq, linear_scaled
from sarathi.models.weights import Array

SUPPORTED_ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "falcon")

_UNQUANTISED = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
_ROPE_FACTORS = "rope_freqs.weight"
_LONG_ROPE_FACTORS = "rope_factors_long.weight"


def read_config(file: GgufFile) -> ModelConfig:
    """The configuration in the metadata of `file`; `ModelError` for what is not supported."""
    if (file.integer("split.count", 1) or 1) > 1:
        raise ModelError(
            f"{file.path} is one part of a split GGUF file, which is not supported: "
            "merge the parts with `llama-gguf-split --merge`"
        )
    arch = file.text("general.architecture")
    if arch not in SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"{file.path}: general.architecture is {arch!r}, "
            f"supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
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
    falcon = arch == "falcon"
    norm_eps = "layer_norm_epsilon" if falcon else "layer_norm_rms_epsilon"
    return ModelConfig(
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
        bos_token_id=file.integer("tokenizer.ggml.bos_token_id"),
        eos_token_ids=end_of_generation_ids(file),
    )


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
    if theta <= 0 or factor < 0:
        raise ModelError(
            f"{file.path}: rope.freq_base is {theta:g} and rope.scaling.factor {factor:g}, "
            "expected positive numbers"
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
    window = file.integer(f"{arch}.attention.sliding_window") or 0
    pattern = file.numbers(f"{arch}.attention.sliding_window_pattern")
    if pattern is None or not window:
        return (window,) * num_layers
    if pattern.dtype.kind != "b" or pattern.size != num_layers:
        raise ModelError(
            f"{file.path}: {arch}.attention.sliding_window_pattern must be a list of "
            f"{num_layers} booleans"
        )
    return tuple(window if slides else 0 for slides in pattern.tolist())


def read_tensor(
    file: GgufFile, name: str, interleaved_heads: int = 0, rows: Rows | None = None
) -> Array:
    """One tensor by its name in the file: a view if unquantised, dequantised to float32 if not.

    With `interleaved_heads`, the rows of each of so many heads are put from the order of
    rotation pairs (0, 1), (2, 3) ... into that of halves (0, d/2), (1, d/2 + 1) ...
    With `rows`, those rows alone are read.
    """
    place = file.tensors[name]
    kind = _quantisation(file, name, place)
    dtype = _UNQUANTISED.get(kind)
    if dtype is not None:
        stored = _stored(file, name, place.offset, place.shape, dtype)
    else:
        try:
            stored_shape = gguf.quants.quant_shape_to_byte_shape(place.shape, kind)
        except (ValueError, IndexError) as error:
            raise ModelError(f"{file.path}: tensor {name}: {error}") from error
        stored = _stored(file, name, place.offset, stored_shape, np.dtype(np.uint8))
    # Rows are quantised one by one, so they may be picked and moved before they are dequantised.
    if rows is not None:
        stored = rows.take(stored)
    if interleaved_heads:
        pairs = stored.reshape(interleaved_heads, -1, 2, *stored.shape[1:])
        stored = pairs.swapaxes(1, 2).reshape(stored.shape)
    if dtype is not None:
        return stored
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
    file: GgufFile, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> Array:
    count = math.prod(shape)
    end = offset + count * dtype.itemsize
    if end > len(file.mapping):
        raise ModelError(
            f"{file.path} is truncated: tensor {name} ends at byte {end} of {len(file.mapping)}"
        )
    view = np.frombuffer(file.mapping, dtype, count, offset).reshape(shape)
    return np.require(view, requirements="A")


class GgufWeights:
    """The tensors of a GGUF file under the names of Hugging Face checkpoints.

    Raises `ModelError` on construction if the file ends before its last tensor does.
    """

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self._file = file
        self._names = name_map(config)
        # Converters to GGUF reorder queries and keys of this architecture alone.
        interleaved = config.architecture == "llama"
        self._interleaved_heads = (
            {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}
            if interleaved
            else {}
        )
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

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._names.find(name).name in self._file.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        source = self._find(name)
        stored = self._file.tensors[source.name].shape
        return source.rows.shape(source.name, stored) if source.rows else stored

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        stored_name = self._find(name).name
        kind = _quantisation(self._file, stored_name, self._file.tensors[stored_name])
        return _UNQUANTISED.get(kind)

    def __getitem__(self, name: str) -> Array:
        source = self._find(name)
        module = name.rpartition(".")[0].split(".", 3)[-1]
        heads = self._interleaved_heads.get(module, 0)
        return read_tensor(self._file, source.name, heads, source.rows)

    def _find(self, name: str) -> Source:
        source = self._names.find(name)
        if source.name not in self._file.tensors:
            raise ModelError(f"{self._file.path} has no tensor {source.name}")
        return source
