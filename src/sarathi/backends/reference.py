"""The decoder in plain numpy: whole sequences, no cache. Executors are tested against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sarathi.models.decoder import (
    GATED_PROJECTIONS,
    NORM,
    QKV_PROJECTIONS,
    Stage,
    attention_module,
    forward,
    forward_layers,
)
from sarathi.models.model_config import ModelConfig
from sarathi.models.weights import Tensors, rounded

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
_ROWS = 4096  # of a matrix that are converted to float32 at a time


def reference(
    config: ModelConfig,
    stage: Stage,
    weights: Tensors,
    token_ids: Sequence[int],
    hidden: F32 | None = None,
    lengths: Sequence[int] | None = None,
    *,
    with_head: bool = True,
) -> F32:
    """Compute a stage on one or several sequences in float32.

    Weights are converted piece by piece, so that little memory is needed, and once for all
    sequences. Time is quadratic in the number of tokens: for short sequences only. Returns the
    logits after every token, [tokens, vocab_size], or the hidden states for the next stage,
    [tokens, hidden_size].

    Args:
        token_ids: of all sequences, one after the other.
        hidden: the hidden states of the previous stage; None for the first one.
        lengths: tokens of each sequence; None for a single one.
        with_head: False for the normalised hidden states of the last stage instead of its logits.
    """
    ids = np.asarray(token_ids, np.int64)
    sequences = np.array([len(ids)] if lengths is None else lengths)
    ops = _NumpyOperations(config, weights, ids, hidden, sequences)
    if with_head:
        return forward(ops, config, stage)
    return ops.norm(forward_layers(ops, config, stage), NORM)


class _NumpyOperations:
    def __init__(
        self, config: ModelConfig, weights: Tensors, ids: I64, hidden: F32 | None, lengths: I64
    ) -> None:
        self._config = config
        self._weights = weights
        self._ids = ids
        self._hidden = hidden
        self._sequence = np.repeat(np.arange(len(lengths)), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        angles = [np.outer(positions, np.array(inv_freq)) for inv_freq in config.inv_freqs]
        self._ropes = [
            [table.astype(np.float32)[:, None, :] for table in (np.cos(angle), np.sin(angle))]
            for angle in angles
        ]

    def embed(self, weight: str) -> F32:
        rows = self._weights[weight][self._ids]
        scale = rounded(self._config.embedding_scale, rows.dtype)
        return rows.astype(np.float32) * np.float32(scale)

    def recv_hidden(self) -> F32:
        assert self._hidden is not None
        return self._hidden

    def linear(self, x: F32, name: str, bias: bool = False) -> F32:
        y = self._product(x, f"{name}.weight")
        return y + self._weight(f"{name}.bias") if bias else y

    def norm(self, x: F32, name: str) -> F32:
        if self._config.norm == "rms":
            return self._rms_norm(x, name)
        centred = x - np.mean(x, axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        scale: F32 = 1 / np.sqrt(variance + np.float32(self._config.norm_eps))
        scaled: F32 = centred * scale * self._weight(f"{name}.weight")
        return scaled + self._weight(f"{name}.bias")

    def add_norm(self, residual: F32, delta: F32, name: str) -> tuple[F32, F32]:
        x = residual + delta
        return x, self.norm(x, name)

    def qkv(self, x: F32, name: str, bias: bool) -> tuple[F32, F32, F32]:
        query, key, value = (self.linear(x, f"{name}.{part}", bias) for part in QKV_PROJECTIONS)
        return query, key, value

    def attention(self, query: F32, key: F32, value: F32, layer: int) -> F32:
        config, name = self._config, attention_module(layer)
        q, k, v = self._heads(query), self._heads(key), self._heads(value)
        if config.qk_norm:
            q = self._rms_norm(q, f"{name}.q_norm")
            k = self._rms_norm(k, f"{name}.k_norm")
        q, k = (_apply_rope(x, *self._ropes[config.rope_of(layer)]) for x in (q, k))
        groups = config.num_heads // config.num_kv_heads
        k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
        distance = np.subtract.outer(np.arange(len(q)), np.arange(len(q)))
        masked = (distance < 0) | (self._sequence[:, None] != self._sequence)
        if window := config.sliding_windows[layer]:
            masked |= distance >= window
        scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(config.score_scale)
        scores = capped(scores, config.attention_soft_cap)
        scores[:, masked] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed: F32 = np.einsum("hqk,khd->qhd", weights, v)
        return mixed.reshape(query.shape)

    def gated(self, x: F32, name: str, bias: bool) -> F32:
        gate, up = (self.linear(x, f"{name}.{part}", bias) for part in GATED_PROJECTIONS)
        return self.activate(gate) * up

    def activate(self, x: F32) -> F32:
        match self._config.activation:
            case "gelu":
                return np.asarray(x * (1 + _erf(x / np.sqrt(2))) / 2, np.float32)
            case "gelu_tanh":
                inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
                return np.asarray(x * (1 + np.tanh(inner)) / 2, np.float32)
        with np.errstate(over="ignore"):  # exp(-x) may reach infinity, where SiLU is 0
            return np.asarray(x / (1 + np.exp(-x)), np.float32)

    def add(self, a: F32, b: F32) -> F32:
        return a + b

    def reduce(self, x: F32) -> F32:
        return x

    def sampled_rows(self, x: F32) -> F32:
        return x

    def logits(self, x: F32, weight: str) -> F32:
        return capped(self._product(x, weight), self._config.logit_soft_cap)

    def _weight(self, name: str) -> F32:
        return self._weights[name][:].astype(np.float32)

    def _product(self, x: F32, weight: str) -> F32:
        matrix = self._weights[weight]
        # In pieces: converting a whole head at once would be the peak of a server's memory.
        pieces = [
            x @ matrix[row : row + _ROWS].astype(np.float32).T
            for row in range(0, len(matrix), _ROWS)
        ]
        return np.concatenate(pieces, axis=-1)

    def _rms_norm(self, x: F32, name: str) -> F32:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        scale: F32 = 1 / np.sqrt(mean + np.float32(self._config.norm_eps))
        return x * scale * self._weight(f"{name}.weight")

    def _heads(self, x: F32) -> F32:
        """Split the features into heads, [tokens, heads, head_dim]."""
        return x.reshape(len(x), -1, self._config.head_dim)


def _apply_rope(x: F32, cos: F32, sin: F32) -> F32:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def capped(x: F32, cap: float) -> F32:
    """Cap softly at `cap`; 0 is none."""
    return np.float32(cap) * np.tanh(x / np.float32(cap)) if cap else x


def _erf(x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the error function within 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    size = np.abs(x.astype(np.float64))
    t = 1 / (1 + 0.3275911 * size)
    polynomial = np.polynomial.polynomial.polyval(
        t, (0.0, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    )
    found: npt.NDArray[np.float64] = np.sign(x) * (1 - polynomial * np.exp(-size * size))
    return found
