"""Models to be simulated: by name, or from a config.json of any dense family.

More families can be simulated than served: what an iteration costs depends on sizes alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sarathi.errors import ModelError, SimulationError
from sarathi.models.formats.checkpoint_files import is_gguf
from sarathi.models.json_fields import Fields
from sarathi.models.model_config import MAX_LAYERS, ModelConfig
from sarathi.system.cache_folder import cache_folder, replace_file


@dataclass(frozen=True)
class SimulatedModel:
    """A decoder with a name. Positions, biases and activations are not read: they cost little."""

    name: str
    config: ModelConfig
    norms: int  # a layer; those of query and key heads excluded
    fields: Mapping[str, Any] = field(compare=False, repr=False)  # of its config.json

    @property
    def window(self) -> int:
        """Tokens of the sliding window; 0 where no layer has one."""
        return max(self.config.sliding_windows)

    @property
    def quantised(self) -> bool:
        """Whether its checkpoint has weights of other sizes than 2 bytes."""
        return "quantization_config" in self.fields

    @property
    def windowed_layers(self) -> int:
        return sum(window > 0 for window in self.config.sliding_windows)

    @classmethod
    def from_fields(cls, name: str, data: Mapping[str, Any]) -> SimulatedModel:
        """Read the fields of a config.json.

        Raises:
            SimulationError: a field is missing or wrong, or the model is not a dense decoder.
        """
        return _model(name, Fields(data, name))

    @classmethod
    def read(cls, path: str | Path) -> SimulatedModel:
        """Read a config.json, or that of a folder.

        Raises:
            SimulationError: the file cannot be read, a field is missing or wrong, or the model is
                not a dense decoder.
        """
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        name = file.resolve().parent.name if file.name == "config.json" else file.stem
        if is_gguf(file):
            raise SimulationError(
                f"{file} is a GGUF file, expected a config.json: that of the model it was made "
                "from, with --weight-bits"
            )
        try:
            fields = Fields.read(file)
        except ModelError as error:
            raise SimulationError(str(error)) from error
        return _model(name, fields)


@dataclass(frozen=True)
class _Family:
    """What configurations of a type of model leave out."""

    gated: bool = True
    parallel: bool = False
    tied: bool = False  # where the file does not say
    norms: int = 2
    head_norms: bool = False
    head_dim: int = 0  # where the file does not say; 0: the hidden size over the number of heads


_PLAIN = ("llama", "mistral", "ministral", "qwen2", "phi3", "granite", "stablelm", "internlm2")
_FAMILIES = {name: _Family() for name in _PLAIN} | {
    "qwen3": _Family(head_norms=True, head_dim=128),
    "gemma": _Family(tied=True, head_dim=256),
    "gemma2": _Family(tied=True, norms=4, head_dim=256),
    "gemma3_text": _Family(tied=True, norms=4, head_norms=True, head_dim=256),
    "smollm3": _Family(tied=True),
    "olmo2": _Family(head_norms=True),
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
}


def _model(name: str, fields: Fields) -> SimulatedModel:
    try:
        inner = fields.object("text_config") or fields  # of multimodal models
        config, norms = _config(inner)
    except ModelError as error:
        raise SimulationError(str(error)) from error
    return SimulatedModel(name, config, norms, fields.data)


def _config(fields: Fields) -> tuple[ModelConfig, int]:
    """Return the configuration, and the norms a layer."""
    _refuse(fields)
    kind = fields.text("model_type", "")
    if kind not in _FAMILIES:
        raise fields.wrong("model_type", f"a dense decoder: one of {', '.join(sorted(_FAMILIES))}")
    family = _FAMILIES[kind]
    hidden = fields.required("hidden_size")
    heads = fields.required("num_attention_heads")
    layers = fields.required("num_hidden_layers", MAX_LAYERS)
    kv_heads, norms = fields.integer("num_key_value_heads", heads), family.norms
    parallel, inner = family.parallel, 0
    if kind == "falcon":
        kv_heads, parallel, norms = _falcon(fields, heads)
        inner = fields.integer("ffn_hidden_size", 4 * hidden)
    elif kind in ("gpt_neox", "stablelm"):
        parallel = fields.boolean("use_parallel_residual", family.parallel)
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    head_dim = fields.integer("head_dim", family.head_dim or max(1, hidden // heads))
    window, windowed = _window(fields, kind, layers)
    config = ModelConfig(
        architecture=kind,
        vocab_size=fields.required("vocab_size"),
        hidden_size=hidden,
        intermediate_size=inner or fields.required("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=1e-5,
        max_position=fields.integer("max_position_embeddings", 2048),
        inv_freq=(1.0,) * (head_dim // 2),
        sliding_windows=(window,) * windowed + (0,) * (layers - windowed),  # in any order
        gated_mlp=family.gated,
        parallel=parallel,
        mlp_norm=norms > 1,
        output_norms=norms > 2,
        qk_norm=family.head_norms or fields.boolean("use_qk_norm", False),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", family.tied),
    )
    return config, norms


def _refuse(fields: Fields) -> None:
    for name in _EXPERTS:
        if fields.value(name, 0) not in (0, 1):
            raise fields.wrong(name, "none: a mixture of experts has no price here")
    for name, expected in _OTHER.items():
        if name in fields:
            raise fields.wrong(name, expected)
    if fields.boolean("is_encoder_decoder", False):
        raise fields.wrong("is_encoder_decoder", "false: a decoder alone")


def _falcon(fields: Fields, heads: int) -> tuple[int, bool, int]:
    """Return heads of keys and values, whether blocks are parallel, and norms a layer."""
    if fields.boolean("alibi", False):
        raise fields.wrong("alibi", "false: rotary positions")
    if fields.boolean("new_decoder_architecture", False):
        norms = fields.integer("num_ln_in_parallel_attn", 2)
        return fields.integer("num_kv_heads", heads), True, norms
    parallel = fields.boolean("parallel_attn", True)
    kv_heads = 1 if fields.boolean("multi_query", True) else heads
    return kv_heads, parallel, 1 if parallel else 2


def _window(fields: Fields, kind: str, layers: int) -> tuple[int, int]:
    """Return the sliding window and the number of layers that have it; zeros if none has one."""
    if "sliding_window" not in fields or not fields.boolean("use_sliding_window", True):
        return 0, 0
    if kind == "qwen2" and "use_sliding_window" not in fields:
        return 0, 0
    window = fields.required("sliding_window")
    kinds = fields.value("layer_types")
    if isinstance(kinds, list):
        windowed = min(layers, sum(kind == "sliding_attention" for kind in kinds))
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


def llama_fields(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocab: int,
    max_position: int,
    tied: bool = False,
) -> dict[str, Any]:
    """Return the config.json of a Llama; `tied` where the embedding is also the head."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": max_position,
        "head_dim": hidden // heads,
        "tie_word_embeddings": tied,
    }


def _falcon_fields(layers: int, hidden: int, heads: int, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "vocab_size": 65024,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "head_dim": 64,
        "num_kv_heads": 8,
        "ffn_hidden_size": 4 * hidden,
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 2,
    }


_GEMMA3_270M = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 18,
    "hidden_size": 640,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 2048,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
}

# Models that differ from Llama only in small things, such as biases, are Llamas here: they cost the
# same. Falcon-180B's published number of parameters, 179.5 billion, is that of a head of its own.
MODELS: Mapping[str, SimulatedModel] = {
    name: SimulatedModel.from_fields(name, fields)
    for name, fields in {
        # Instruct v0.2, without a window.
        "mistral-7b": llama_fields(32, 4096, 32, 8, 14336, 32000, 32768),
        "yi-34b": llama_fields(60, 7168, 56, 8, 20480, 64000, 200000),  # the one with 200K
        "llama2-70b": llama_fields(80, 8192, 64, 8, 28672, 32000, 4096),
        "falcon-180b": _falcon_fields(80, 14848, 232, tied=False),
        "llama2-7b": llama_fields(32, 4096, 32, 32, 11008, 32000, 4096),
        "llama2-13b": llama_fields(40, 5120, 40, 40, 13824, 32000, 4096),
        "llama3-8b": llama_fields(32, 4096, 32, 8, 14336, 128256, 8192),
        "llama3-70b": llama_fields(80, 8192, 64, 8, 28672, 128256, 8192),
        "codellama-34b": llama_fields(48, 8192, 64, 8, 22016, 32000, 16384),
        "qwen2.5-7b": llama_fields(28, 3584, 28, 4, 18944, 152064, 32768),
        "qwen2.5-72b": llama_fields(80, 8192, 64, 8, 29568, 152064, 32768),
        "falcon-40b": _falcon_fields(60, 8192, 128, tied=True),
        "smollm2-135m": llama_fields(30, 576, 9, 3, 1536, 49152, 8192, tied=True),
        "gemma3-270m": _GEMMA3_270M,
    }.items()
}


def config_folder(model: SimulatedModel) -> Path:
    """Write the config.json of a model into a folder of its name in the cache.

    So everything that takes the path of a model takes this one, in other processes, too.

    Raises:
        ModelError: it cannot be written.
    """
    folder = cache_folder() / "dummy" / model.name
    try:
        replace_file(folder / "config.json", json.dumps(dict(model.fields), indent=2).encode())
    except OSError as error:
        raise ModelError(f"cannot write {folder}/config.json: {error.strerror}") from error
    return folder
