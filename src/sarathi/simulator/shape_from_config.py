"""A model's shape from the `config.json` of a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sarathi.errors import ModelError, SimulationError
from sarathi.models.json_fields import Fields
from sarathi.simulator.model_shape import ModelShape

MOST_LAYERS = 4096


@dataclass(frozen=True)
class _Family:
    """What a type of model does not say in its configuration."""

    gated: bool = True
    parallel: bool = False
    tied: bool = False  # where the file does not say
    norms: int = 2
    head_norms: bool = False
    head_dim: int = 0  # where the file does not say; 0 divides the hidden size


_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "ministral": _Family(),
    "qwen2": _Family(),
    "qwen3": _Family(head_norms=True, head_dim=128),
    "phi3": _Family(),
    "gemma": _Family(tied=True, head_dim=256),
    "gemma2": _Family(tied=True, norms=4, head_dim=256),
    "gemma3_text": _Family(tied=True, norms=4, head_norms=True, head_dim=256),
    "granite": _Family(),
    "smollm3": _Family(tied=True),
    "olmo2": _Family(head_norms=True),
    "stablelm": _Family(),
    "internlm2": _Family(),
    "starcoder2": _Family(gated=False, tied=True),
    "cohere": _Family(parallel=True, tied=True, norms=1),
    "cohere2": _Family(parallel=True, tied=True, norms=1, head_dim=128),
    "phi": _Family(gated=False, parallel=True, norms=1),
    "gpt_neox": _Family(gated=False, parallel=True),
    "falcon": _Family(gated=False, parallel=True, tied=True),
}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
_OTHER = {
    "kv_lora_rank": "none: compressed keys and values have no price here",
    "quantization_config": "none: say how many bytes a weight takes where the model is deployed",
}


def shape_from_config(path: str | Path) -> ModelShape:
    """The shape that a `config.json`, or a folder with one, describes.

    Raises:
        SimulationError: the file cannot be read, a field is missing or wrong, or the model is
            none of a dense decoder.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    try:
        return _shape(Fields.read(file), name)
    except ModelError as error:
        raise SimulationError(str(error)) from error


def _shape(fields: Fields, name: str) -> ModelShape:
    fields = fields.object("text_config") or fields  # of models that also see
    _refuse(fields)
    kind = fields.text("model_type", "")
    if kind not in _FAMILIES:
        raise fields.wrong("model_type", f"a dense decoder: one of {', '.join(sorted(_FAMILIES))}")
    family = _FAMILIES[kind]
    hidden = fields.required("hidden_size")
    heads = fields.required("num_attention_heads")
    layers = fields.required("num_hidden_layers", MOST_LAYERS)
    kv_heads, parallel, norms = fields.integer("num_key_value_heads", heads), family.parallel, 0
    if kind == "falcon":
        kv_heads, parallel, norms = _falcon(fields, heads)
    elif kind in ("gpt_neox", "stablelm"):
        field = "use_parallel_residual"
        parallel = fields.boolean(field, family.parallel)
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    window, windowed_layers = _window(fields, kind, layers)
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", family.head_dim or max(1, hidden // heads)),
        intermediate=_intermediate(fields, kind, hidden),
        vocab=fields.required("vocab_size"),
        gated=family.gated,
        parallel=parallel,
        tied=fields.boolean("tie_word_embeddings", family.tied),
        norms=norms or family.norms,
        head_norms=family.head_norms or fields.boolean("use_qk_norm", False),
        max_position=fields.integer("max_position_embeddings", 2048),
        window=window,
        windowed_layers=windowed_layers,
    )


def _refuse(fields: Fields) -> None:
    for field in _EXPERTS:
        if field in fields and fields.data[field] not in (0, 1):
            raise fields.wrong(field, "none: a mixture of experts has no price here")
    for field, expected in _OTHER.items():
        if field in fields:
            raise fields.wrong(field, expected)
    if fields.boolean("is_encoder_decoder", False):
        raise fields.wrong("is_encoder_decoder", "false: a decoder alone")


def _falcon(fields: Fields, heads: int) -> tuple[int, bool, int]:
    """Heads of keys and values, whether blocks are parallel, and norms a layer."""
    if fields.boolean("alibi", False):
        raise fields.wrong("alibi", "false: rotary positions")
    if fields.boolean("new_decoder_architecture", False):
        norms = fields.integer("num_ln_in_parallel_attn", 2)
        return fields.integer("num_kv_heads", heads), True, norms
    parallel = fields.boolean("parallel_attn", True)
    kv_heads = 1 if fields.boolean("multi_query", True) else heads
    return kv_heads, parallel, 1 if parallel else 2


def _intermediate(fields: Fields, kind: str, hidden: int) -> int:
    if kind == "falcon":
        return fields.integer("ffn_hidden_size", 4 * hidden)
    return fields.required("intermediate_size")


def _window(fields: Fields, kind: str, layers: int) -> tuple[int, int]:
    """The sliding window and the number of layers that have it; zeros where there is none."""
    if "sliding_window" not in fields or not fields.boolean("use_sliding_window", True):
        return 0, 0
    if kind == "qwen2" and "use_sliding_window" not in fields:
        return 0, 0
    window = fields.required("sliding_window")
    kinds = fields.data.get("layer_types")
    if isinstance(kinds, list):
        windowed = sum(kind == "sliding_attention" for kind in kinds)
    elif "sliding_window_pattern" in fields or kind == "gemma3_text":
        pattern = fields.integer("sliding_window_pattern", 6)
        windowed = layers - layers // pattern
    elif kind == "gemma2":
        windowed = (layers + 1) // 2
    elif kind == "qwen2":
        windowed = max(0, layers - fields.integer("max_window_layers", 28))
    else:
        windowed = layers
    return (window, windowed) if windowed else (0, 0)
