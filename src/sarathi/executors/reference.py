"""The decoder in plain numpy: one sequence, whole, no cache. What other executors must equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sarathi.models.config import ModelConfig
from sarathi.models.decoder import decode
from sarathi.models.stage import Stage
from sarathi.models.weights import Tensors

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
_ROWS = 4096  # of a matrix, widened at a time


def reference(
    config: ModelConfig,
    stage: Stage,
    weights: Tensors,
    token_ids: Sequence[int],
    received: F32 | None = None,
) -> F32:
    """What a stage makes of one sequence, computed in float32: logits after every token,
    [tokens, vocab_size], or what goes to the next stage, [tokens, hidden_size].

    Weights are widened piece by piece, so that little memory is needed. Time is quadratic in the
    sequence: for short sequences only.

    Args:
        received: what the stage before has computed, where there is one.
    """
    ids = np.asarray(token_ids, np.int64)
    return decode(_NumpyOperations(config, weights, ids, received), config, stage)


class _NumpyOperations:
    def __init__(
        self, config: ModelConfig, weights: Tensors, ids: I64, received: F32 | None
    ) -> None:
        self._config = config
        self._weights = weights
        self._ids = ids
        self._received = received
        angles = np.outer(np.arange(len(ids)), np.array(config.inv_freq))
        self._cos = np.cos(angles).astype(np.float32)[:, None, :]
        self._sin = np.sin(angles).astype(np.float32)[:, None, :]

    def _weight(self, name: str) -> F32:
        return self._weights[name].astype(np.float32)

    def embed(self, weight: str) -> F32:
        rows: F32 = self._weights[weight][self._ids].astype(np.float32)
        return rows

    def received(self) -> F32:
        assert self._received is not None
        return self._received

    def linear(self, x: F32, weight: str, bias: str | None = None) -> F32:
        matrix = self._weights[weight]
        # In pieces: widening all of a head at once would be the peak of a server's memory.
        y: F32 = np.concatenate(
            [
                x @ matrix[row : row + _ROWS].astype(np.float32).T
                for row in range(0, len(matrix), _ROWS)
            ],
            axis=-1,
        )
        return y if bias is None else y + self._weight(bias)

    def rms_norm(self, x: F32, weight: str) -> F32:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        scale: F32 = 1 / np.sqrt(mean + np.float32(self._config.norm_eps))
        return x * scale * self._weight(weight)

    def layer_norm(self, x: F32, weight: str, bias: str) -> F32:
        centred = x - np.mean(x, axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        scale: F32 = 1 / np.sqrt(variance + np.float32(self._config.norm_eps))
        normed: F32 = centred * scale * self._weight(weight) + self._weight(bias)
        return normed

    def head_norm(self, x: F32, weight: str, num_heads: int) -> F32:
        return self.rms_norm(self._heads(x, num_heads), weight).reshape(x.shape)

    def rotate(self, x: F32, num_heads: int) -> F32:
        first, second = np.split(self._heads(x, num_heads), 2, axis=-1)
        rotated = (
            first * self._cos - second * self._sin,
            second * self._cos + first * self._sin,
        )
        return np.concatenate(rotated, axis=-1).reshape(x.shape)

    def attend(self, query: F32, key: F32, value: F32, layer: int) -> F32:
        config = self._config
        groups = config.num_heads // config.num_kv_heads
        q = self._heads(query, config.num_heads)
        k = np.repeat(self._heads(key, config.num_kv_heads), groups, axis=1)
        v = np.repeat(self._heads(value, config.num_kv_heads), groups, axis=1)
        distance = np.subtract.outer(np.arange(len(q)), np.arange(len(q)))
        hidden = distance < 0
        if window := config.sliding_windows[layer]:
            hidden |= distance >= window
        scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(config.head_dim**-0.5)
        scores[:, hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed: F32 = np.einsum("hqk,khd->qhd", weights, v)
        return mixed.reshape(query.shape)

    def _heads(self, x: F32, num_heads: int) -> F32:
        return x.reshape(len(x), num_heads, self._config.head_dim)

    def add(self, a: F32, b: F32) -> F32:
        return a + b

    def multiply(self, a: F32, b: F32) -> F32:
        return a * b

    def silu(self, x: F32) -> F32:
        with np.errstate(over="ignore"):  # exp(-x) may reach infinity, where silu is 0
            return np.asarray(x / (1 + np.exp(-x)), np.float32)

    def gelu(self, x: F32) -> F32:
        return np.asarray(x * (1 + _erf(x / np.sqrt(2))) / 2, np.float32)

    def reduce(self, x: F32) -> F32:
        return x

    def sampled_rows(self, x: F32) -> F32:
        return x

    def logits(self, x: F32, weight: str) -> F32:
        return self.linear(x, weight)


def _erf(x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The error function within 1.5e-7 (Abramowitz and Stegun, 7.1.26); numpy has none."""
    size = np.abs(x.astype(np.float64))
    t = 1 / (1 + 0.3275911 * size)
    polynomial = np.polynomial.polynomial.polyval(
        t, (0.0, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    )
    found: npt.NDArray[np.float64] = np.sign(x) * (1 - polynomial * np.exp(-size * size))
    return found
