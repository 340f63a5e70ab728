"""The sizes of a decoder-only transformer, as far as they decide what it costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A dense decoder: attention and a multilayer perceptron in each of `layers`.

    Biases and norms are left out of the number of parameters; they are a ten-thousandth of it.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    gated: bool = True  # two projections up, one of them through the activation
    parallel: bool = False  # attention and perceptron side by side, with one all-reduce for both
    tied: bool = False  # the head is the embedding
    norms: int = 2  # a layer
    head_norms: bool = False  # one more on every query and key head
    max_position: int = 0  # tokens the model was trained for; 0 is unknown
    window: int = 0  # tokens that layers with a sliding window attend to; 0 is all
    windowed_layers: int = 0

    @property
    def layer_parameters(self) -> int:
        projections = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return self.hidden * (projections + (3 if self.gated else 2) * self.intermediate)

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        tables = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + tables

    @property
    def kv_elements(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim

    def kv_bytes(self, bytes_per_element: float = 2) -> float:
        """Keys and values of one token in all layers."""
        return self.layers * self.kv_elements * bytes_per_element

    def mean_keys(self, start: int, length: int) -> tuple[float, float]:
        """Tokens that each row of a chunk attends to in a layer with a window, on average.

        Returns:
            Those before the chunk, and those of the chunk itself.
        """
        own = _mean_capped(0, length, self.window)
        return _mean_capped(start, length, self.window) - own, own


def _mean_capped(start: int, length: int, cap: int) -> float:
    """Mean over x from `start` to `start + length` of the lesser of x and `cap`."""
    end = start + length
    if end <= cap:
        return start + length / 2
    if start >= cap:
        return float(cap)
    return ((cap - start) * (start + cap) / 2 + (end - cap) * cap) / length


def _llama(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocab: int,
    max_position: int, tied: bool = False,
) -> ModelShape:  # fmt: skip
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate=intermediate,
        vocab=vocab,
        max_position=max_position,
        tied=tied,
    )


def _falcon(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, norms: int, tied: bool
) -> ModelShape:
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        intermediate=4 * hidden,
        vocab=65024,
        gated=False,
        parallel=True,
        norms=norms,
        tied=tied,
        max_position=2048,
    )


# From the config.json that each model was published with. Falcon-180B's published number of
# parameters, 179.5 billion, is that of a head of its own.
MODELS = {
    shape.name: shape
    for shape in (
        _llama("mistral-7b", 32, 4096, 32, 8, 14336, 32000, 32768),  # Instruct v0.2: no window
        _llama("yi-34b", 60, 7168, 56, 8, 20480, 64000, 200000),  # the one with 200K
        _llama("llama2-70b", 80, 8192, 64, 8, 28672, 32000, 4096),
        _falcon("falcon-180b", 80, 14848, 232, 8, norms=2, tied=False),
        _llama("llama2-7b", 32, 4096, 32, 32, 11008, 32000, 4096),
        _llama("llama2-13b", 40, 5120, 40, 40, 13824, 32000, 4096),
        _llama("llama3-8b", 32, 4096, 32, 8, 14336, 128256, 8192),
        _llama("llama3-70b", 80, 8192, 64, 8, 28672, 128256, 8192),
        _llama("codellama-34b", 48, 8192, 64, 8, 22016, 32000, 16384),
        _llama("qwen2.5-7b", 28, 3584, 28, 4, 18944, 152064, 32768),
        _llama("qwen2.5-72b", 80, 8192, 64, 8, 29568, 152064, 32768),
        _falcon("falcon-40b", 60, 8192, 128, 8, norms=2, tied=True),
        _llama("smollm2-135m", 30, 576, 9, 3, 1536, 49152, 8192, tied=True),
    )
}
