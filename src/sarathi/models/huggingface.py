"""Model configuration from a folder in the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path

from sarathi.models.config import ModelConfig
from sarathi.models.fields import Fields
from sarathi.models.rotary import (
    Frequencies,
    default_inv_freq,
    linear_scaled,
    llama3_scaled,
)

# Deep enough for every published model; keeps a corrupt count from filling the memory.
MAX_LAYERS = 4096
MAX_HEAD_DIM = 65536

_ARCHITECTURE_OF_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
SUPPORTED_ARCHITECTURES = tuple(_ARCHITECTURE_OF_MODEL_TYPE.values())


def read_config(folder: Path) -> ModelConfig:
    """`config.json` (and the end-of-sequence ids of `generation_config.json`) of `folder`.

    Absent fields take the defaults of the `transformers` library. Raises `ModelError` naming the
    field for anything that is missing, of the wrong type, or not supported.
    """
    fields = Fields.read(folder / "config.json")
    architecture = _architecture(fields)
    _refuse_unsupported(fields)
    hidden_size = fields.required("hidden_size")
    num_heads = fields.required("num_attention_heads")
    num_layers = fields.required("num_hidden_layers", MAX_LAYERS)
    head_dim = fields.integer(
        "head_dim",
        # Qwen3 alone does not derive the default from the hidden size.
        128 if architecture == "Qwen3ForCausalLM" else hidden_size // num_heads,
        MAX_HEAD_DIM,
    )
    biases_by_field = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
    attention_bias = biases_by_field and fields.boolean("attention_bias", False)
    bos_ids = fields.token_ids("bos_token_id")
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.required("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.required("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_position=fields.integer("max_position_embeddings", _DEFAULT_MAX_POSITION[architecture]),
        inv_freq=tuple(_inv_freq(fields, head_dim).tolist()),
        sliding_windows=_sliding_windows(fields, architecture, num_layers),
        qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
        output_bias=attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and fields.boolean("mlp_bias", False),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        bos_token_id=bos_ids[0] if bos_ids else None,
        eos_token_ids=eos_token_ids(folder),
    )


_DEFAULT_MAX_POSITION = {
    "LlamaForCausalLM": 2048,
    "MistralForCausalLM": 131072,
    "Qwen2ForCausalLM": 32768,
    "Qwen3ForCausalLM": 32768,
}


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end a sequence, from `config.json` and `generation_config.json` together.

    Chat models often name one id in the former and the complete list in the latter.
    """
    ids: list[int] = []
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            ids += Fields.read(folder / name).token_ids("eos_token_id")
    return tuple(dict.fromkeys(ids))


def _architecture(fields: Fields) -> str:
    names = fields.data.get("architectures")
    if not names:
        model_type = fields.text("model_type", "")
        names = [_ARCHITECTURE_OF_MODEL_TYPE.get(model_type, model_type)]
    if not isinstance(names, list) or names[0] not in SUPPORTED_ARCHITECTURES:
        field = "architectures" if fields.data.get("architectures") else "model_type"
        supported = (
            SUPPORTED_ARCHITECTURES if field == "architectures" else _ARCHITECTURE_OF_MODEL_TYPE
        )
        raise fields.wrong(field, f"one of {', '.join(supported)}")
    return str(names[0])


def _refuse_unsupported(fields: Fields) -> None:
    if "quantization_config" in fields:
        raise fields.wrong(
            "quantization_config", "none: unquantised safetensors or a GGUF file are supported"
        )
    if fields.text("hidden_act", "silu") != "silu":
        raise fields.wrong("hidden_act", "silu")


def _inv_freq(fields: Fields, head_dim: int) -> Frequencies:
    scaling = fields.object("rope_parameters") or fields.object("rope_scaling")
    if scaling is None:
        scaling = Fields({}, fields.origin)
    partial = scaling if "partial_rotary_factor" in scaling else fields
    if partial.number("partial_rotary_factor", 1.0) != 1.0:
        raise partial.wrong("partial_rotary_factor", "1 (the whole head is rotated)")
    theta = scaling.number("rope_theta", fields.number("rope_theta", 10000.0))
    plain = default_inv_freq(head_dim, theta)
    type_field = "rope_type" if "rope_type" in scaling else "type"
    match scaling.text(type_field, "default"):
        case "default":
            return plain
        case "linear":
            return linear_scaled(plain, scaling.number("factor"))
        case "llama3":
            low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
            if low >= high:
                raise scaling.wrong("low_freq_factor", f"less than high_freq_factor ({high:g})")
            return llama3_scaled(
                plain,
                factor=scaling.number("factor"),
                low_freq_factor=low,
                high_freq_factor=high,
                original_max_position=scaling.number("original_max_position_embeddings"),
            )
        case _:
            raise scaling.wrong(type_field, "one of default, linear, llama3")


def _sliding_windows(fields: Fields, architecture: str, num_layers: int) -> tuple[int, ...]:
    if architecture == "LlamaForCausalLM":
        return (0,) * num_layers
    if architecture == "MistralForCausalLM":
        # Null means none, while a file without the field means the first Mistral's window.
        window = 0 if fields.data.get("sliding_window", 4096) is None else 4096
        return (fields.integer("sliding_window", window),) * num_layers
    if not fields.boolean("use_sliding_window", False):
        return (0,) * num_layers
    # Null is none here too, and absent is the default of the library.
    default = 0 if "sliding_window" in fields.data else 4096
    window = fields.integer("sliding_window", default)
    kinds = fields.data.get("layer_types")
    if kinds is None:
        first = fields.data.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int):
            raise fields.wrong("max_window_layers", "an integer")
        return tuple(window if layer >= first else 0 for layer in range(num_layers))
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or not set(kinds) <= {"full_attention", "sliding_attention"}
    ):
        raise fields.wrong(
            "layer_types", f"full_attention or sliding_attention for each of {num_layers} layers"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
