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


# GELU by the error function, or by its approximation with tanh.
Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder, independent of the format of its checkpoint.

    Everything that differs between the families (Llama, Mistral, Yi, Qwen, Phi-3, Falcon, Gemma) is
    data here, so that the decoder itself is written once. The defaults are those of Llama.
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
    local_inv_freq: tuple[float, ...] = ()  # of layers that have a window; empty: those above
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    norm: Literal["rms", "layer"] = "rms"  # RMSNorm, or LayerNorm with a bias
    activation: Activation = "silu"
    gated_mlp: bool = True  # down(act(gate(x)) * up(x)), otherwise down(act(up(x)))
    parallel: bool = False  # attention and MLP both read the layer's input, and are added to it
    mlp_norm: bool = True  # the MLP has its own norm, otherwise it reads what attention reads
    qk_norm: bool = False  # RMSNorm on every query and key head (Qwen3)
    output_norms: bool = False  # norms of what attention and MLP add, too (Gemma 2 and 3)
    embedding_scale: float = 1.0  # of the embeddings, rounded to the served precision
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    # Scores and logits x become cap * tanh(x / cap); 0 is none.
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
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
        for inv_freq in self.inv_freqs:
            if len(inv_freq) * 2 != self.head_dim:
                raise ModelError(
                    f"rotary embedding covers {len(inv_freq) * 2} of {self.head_dim} head "
                    "dimensions; partial rotary embeddings are not supported"
                )
            if not all(math.isfinite(frequency) and frequency >= 0 for frequency in inv_freq):
                raise ModelError("the rotary embedding's base or scaling is too large or too small")
        if not (self.parallel or self.mlp_norm):
            raise ModelError("an MLP after the attention needs a norm of its own")
        if self.parallel and self.output_norms:
            raise ModelError("parallel blocks have one output, and no norms of their own outputs")
        if len(self.sliding_windows) != self.num_layers:
            raise ModelError(
                f"{len(self.sliding_windows)} sliding windows for {self.num_layers} layers"
            )

    @property
    def inv_freqs(self) -> tuple[tuple[float, ...], ...]:
        """The distinct tables of rotary inverse frequencies."""
        return (self.inv_freq, *((self.local_inv_freq,) if self.local_inv_freq else ()))

    def rope_of(self, layer: int) -> int:
        """Return which of `inv_freqs` a layer has."""
        return int(bool(self.local_inv_freq and self.sliding_windows[layer]))

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale
