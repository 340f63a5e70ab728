"""Llama models of any size with random weights in Q4_0 and a real tokenizer, as GGUF files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

_SPREAD = 0.02  # standard deviation of weights
_NIBBLES = 4.61  # standard deviation of what four random bits stand for
_Q4_0, _F32 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.F32


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a model whose head is its embedding."""

    hidden: int = 2048
    layers: int = 16
    heads: int = 32
    kv_heads: int = 8
    inner: int = 8192
    vocabulary: int = 128256
    context: int = 8192

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and the shape of each; matrices have two dimensions."""
        head = self.hidden // self.heads
        yield "token_embd.weight", (self.vocabulary, self.hidden)
        yield "output_norm.weight", (self.hidden,)
        for layer in range(self.layers):
            for name, shape in (
                ("attn_norm", (self.hidden,)),
                ("attn_q", (self.heads * head, self.hidden)),
                ("attn_k", (self.kv_heads * head, self.hidden)),
                ("attn_v", (self.kv_heads * head, self.hidden)),
                ("attn_output", (self.hidden, self.heads * head)),
                ("ffn_norm", (self.hidden,)),
                ("ffn_gate", (self.inner, self.hidden)),
                ("ffn_up", (self.inner, self.hidden)),
                ("ffn_down", (self.hidden, self.inner)),
            ):
                yield f"blk.{layer}.{name}.weight", shape


LLAMA_1B = LlamaShape()  # of Llama 3.2


def write_random_llama(
    path: Path, tokenizer: Path, shape: LlamaShape = LLAMA_1B, seed: int = 0
) -> None:
    """Write a model with the tokenizer of another GGUF file, filled up with tokens of their own."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(shape.vocabulary)
    _copy_tokenizer(writer, tokenizer, shape.vocabulary)
    sizes = dict(shape.tensors())
    for name, dims in sizes.items():
        if len(dims) == 1:
            writer.add_tensor_info(name, dims, np.dtype(np.float32), 4 * dims[0], _F32)
        else:
            row = gguf.quant_shape_to_byte_shape(dims, _Q4_0)
            writer.add_tensor_info(name, row, np.dtype(np.uint8), int(np.prod(row)), _Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for dims in sizes.values():  # one at a time: they are not held in memory together
        array = np.ones(dims, np.float32) if len(dims) == 1 else _random_blocks(rng, dims)
        writer.write_tensor_data(array)
    writer.close()


def tensor_bytes(path: Path) -> int:
    """Return the bytes of all tensors of a GGUF file."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)


def _random_blocks(rng: np.random.Generator, dims: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return rows of blocks: a scale in f16, then 32 weights of four bits."""
    rows, row_bytes = gguf.quant_shape_to_byte_shape(dims, _Q4_0)
    weights, size = gguf.GGML_QUANT_SIZES[_Q4_0]
    blocks = rng.integers(0, 256, (rows, dims[1] // weights, size), np.uint8)
    # Scales of both signs: four bits stand for -8 to 7, whose mean is not zero.
    signs = rng.choice(np.array([-1, 1], np.float16), blocks.shape[:2])
    scales = (signs * np.float16(_SPREAD / _NIBBLES)).astype("<f2")
    blocks[:, :, :2] = scales[:, :, None].view(np.uint8)
    return blocks.reshape(rows, row_bytes)


def _copy_tokenizer(writer: gguf.GGUFWriter, source: Path, vocabulary: int) -> None:
    reader = gguf.GGUFReader(source)
    for name, field in reader.fields.items():
        if not name.startswith("tokenizer."):
            continue
        value: Any = field.contents()
        if name == gguf.Keys.Tokenizer.LIST:
            if len(value) > vocabulary:
                raise ValueError(f"the tokenizer has {len(value)} tokens, more than {vocabulary}")
            value = [*value, *(f"<more_{i}>" for i in range(len(value), vocabulary))]
        elif name == gguf.Keys.Tokenizer.TOKEN_TYPE:
            value = [*value, *[int(gguf.TokenType.NORMAL)] * (vocabulary - len(value))]
        elif name == gguf.Keys.Tokenizer.SCORES:
            value = [*value, *[-1e9] * (vocabulary - len(value))]
        kinds = field.types
        writer.add_key_value(name, value, kinds[0], kinds[-1] if len(kinds) > 1 else None)
