"""The configuration of a model: sizes and switches of one decoder-only transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sarathi.errors import ModelError

# Deep enough for every published model; keeps a corrupt count from filling the memory.
MAX_LAYERS = 4096
MAX_HEAD_DIM = 65536
# For numbers that frequencies are computed from, so that these stay within float32.
MIN_NUMBER, MAX_NUMBER = 1e-30, 1e30


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder, independent of the format of its checkpoint.

    Everything that differs between the families (Llama, Mistral, Yi, Qwen, Phi-3, Falcon) is data
    here, so that the decoder itself is written once. The defaults are those of Llama.
    """

    architecture: str  # as the checkpoint names it: "LlamaForCausalLM", "qwen2", ...
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position: int  # tokens, prompt and output together
    inv_freq: tuple[float, ...]  # rotary inverse frequencies, head_dim / 2, any scaling applied
    sliding_windows: tuple[int, ...]  # one a layer, tokens; 0 is full attention
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    norm: Literal["rms", "layer"] = "rms"  # RMSNorm, or LayerNorm with a bias
    activation: Literal["silu", "gelu"] = "silu"  # gelu is the exact one, by the error function
    gated_mlp: bool = True  # down(act(gate(x)) * up(x)), otherwise down(act(up(x)))
    parallel: bool = False  # attention and MLP both read the layer's input, and are added to it
    mlp_norm: bool = True  # the MLP has its own norm, otherwise it reads what attention reads
    qk_norm: bool = False  # RMSNorm on every query and key head (Qwen3)
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_layers"),
            *("num_heads", "num_kv_heads", "head_dim", "max_position"),
        ):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if len(self.inv_freq) * 2 != self.head_dim:
            raise ModelError(
                f"rotary embedding covers {len(self.inv_freq) * 2} of {self.head_dim} head "
                "dimensions; partial rotary embeddings are not supported"
            )
        if not all(math.isfinite(frequency) and frequency >= 0 for frequency in self.inv_freq):
            raise ModelError("the rotary embedding's base or scaling is too large or too small")
        if not (self.parallel or self.mlp_norm):
            raise ModelError("an MLP after the attention needs a norm of its own")
        if len(self.sliding_windows) != self.num_layers:
            raise ModelError(
                f"{len(self.sliding_windows)} sliding windows for {self.num_layers} layers"
            )
