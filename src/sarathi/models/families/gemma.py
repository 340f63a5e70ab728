"""Gemma 1 to 3: scaled embeddings, GELU by tanh, norms of outputs, soft caps, local rope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sarathi.models.families.llama import read_layer_types
from sarathi.models.json_fields import Fields
from sarathi.models.model_config import MAX_HEAD_DIM, MAX_LAYERS, ModelConfig
from sarathi.models.name_map import NameMap, renamed
from sarathi.models.rope import inv_freq_of, read_inv_freq

_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True)
class _Generation:
    """What absent fields mean, as in the library's configuration class of the architecture."""

    vocab_size: int
    num_heads: int
    num_kv_heads: int
    max_position: int = 8192
    full_every: int = 0  # of so many layers the last has no window; 0: none has one
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0


_GENERATIONS: Mapping[str, _Generation] = {
    "GemmaForCausalLM": _Generation(vocab_size=256000, num_heads=16, num_kv_heads=16),
    "Gemma2ForCausalLM": _Generation(
        vocab_size=256000,
        num_heads=8,
        num_kv_heads=4,
        full_every=2,
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
    ),
    "Gemma3ForCausalLM": _Generation(
        vocab_size=262208, num_heads=8, num_kv_heads=4, max_position=131072, full_every=6
    ),
}


def read_config(fields: Fields, architecture: str) -> ModelConfig:
    """Return the configuration that a config.json describes; see `Family`."""
    generation = _GENERATIONS[architecture]
    is_first, is_third = (architecture == f"Gemma{n}ForCausalLM" for n in ("", "3"))
    _check_activation(fields)
    hidden_size = fields.required("hidden_size")
    num_layers = fields.required("num_hidden_layers", MAX_LAYERS)
    head_dim = fields.integer("head_dim", 256, MAX_HEAD_DIM)
    max_position = fields.integer("max_position_embeddings", generation.max_position)
    attention_scale: float | None = None
    soft_caps = (0.0, 0.0)
    sliding_windows = (0,) * num_layers
    local_inv_freq: tuple[float, ...] = ()
    if not is_first:
        scalar = fields.number("query_pre_attn_scalar", 256.0)
        attention_scale = None if scalar == head_dim else scalar**-0.5
        soft_caps = (
            _soft_cap(fields, "attn_logit_softcapping", generation.attention_soft_cap),
            _soft_cap(fields, "final_logit_softcapping", generation.logit_soft_cap),
        )
        sliding_windows = _sliding_windows(fields, num_layers, generation.full_every)
    if is_third:
        if soft_caps[0]:  # of which `transformers` takes no notice
            raise fields.wrong("attn_logit_softcapping", "null: Gemma 3 does not cap scores")
        inv_freq, local_inv_freq = _inv_freqs(fields, head_dim, max_position)
    else:
        inv_freq = tuple(read_inv_freq(fields, head_dim, max_position).tolist())
    bias = fields.boolean("attention_bias", False)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size", generation.vocab_size),
        hidden_size=hidden_size,
        intermediate_size=fields.required("intermediate_size"),
        num_layers=num_layers,
        num_heads=fields.integer("num_attention_heads", generation.num_heads),
        num_kv_heads=fields.integer("num_key_value_heads", generation.num_kv_heads),
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_position=max_position,
        inv_freq=inv_freq,
        local_inv_freq=local_inv_freq if any(sliding_windows) else (),
        sliding_windows=sliding_windows,
        qkv_bias=bias,
        output_bias=bias,
        activation="gelu_tanh",
        qk_norm=is_third,
        output_norms=not is_first,
        embedding_scale=hidden_size**0.5,
        attention_scale=attention_scale,
        attention_soft_cap=soft_caps[0],
        logit_soft_cap=soft_caps[1],
        tie_word_embeddings=fields.boolean("tie_word_embeddings", True),
    )


def name_map(config: ModelConfig) -> NameMap:
    """Return where checkpoints keep the decoder's tensors."""
    norms = {
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }
    return NameMap(inside=renamed(norms if config.output_norms else {}), centred_norms=True)


def _check_activation(fields: Fields) -> None:
    # Gemma 1 was published with "gelu", which meant the approximation.
    if fields.text("hidden_act", _TANH) not in (_TANH, "gelu"):
        raise fields.wrong("hidden_act", _TANH)
    if fields.text("hidden_activation", _TANH) != _TANH:
        raise fields.wrong("hidden_activation", _TANH)


def _soft_cap(fields: Fields, name: str, default: float) -> float:
    """Return a cap; null is none, while an absent field has a default."""
    return 0.0 if fields.is_null(name) else fields.number(name, default)


def _sliding_windows(fields: Fields, num_layers: int, full_every: int) -> tuple[int, ...]:
    window = fields.optional_size("sliding_window", 4096)
    period = fields.integer("sliding_window_pattern", full_every)
    kinds = read_layer_types(fields, num_layers)
    slides = [(layer + 1) % period > 0 for layer in range(num_layers)]
    if kinds is not None:
        slides = [kind == "sliding_attention" for kind in kinds]
    if any(slides) and not window:
        raise fields.wrong("sliding_window", "the tokens of the window that some layers have")
    return tuple(window if each else 0 for each in slides)


def _inv_freqs(
    fields: Fields, head_dim: int, max_position: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the frequencies of layers without and with a window.

    A `rope_scaling`, and the bases outside the objects, are what older files have.
    """
    none = Fields({}, fields.origin)
    scaling = fields.object("rope_scaling") or none
    kinds = fields.object("rope_parameters") or none
    full, local = (kinds.object(f"{kind}_attention") or none for kind in ("full", "sliding"))
    kinds.refuse_unread(lambda name, value: value is None)
    if scaling.data:
        full = Fields({**full.data, **scaling.data}, scaling.origin)

    def read(rope: Fields, theta: float) -> tuple[float, ...]:
        return tuple(inv_freq_of(rope, fields, head_dim, max_position, theta).tolist())

    return (
        read(full, fields.number("rope_theta", 1e6)),
        read(local, fields.number("rope_local_base_freq", 1e4)),
    )
