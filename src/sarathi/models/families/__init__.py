"""Model families: the architectures that checkpoints may have, and what each of them means.

`ARCHITECTURES` and `GGUF_ARCHITECTURES` below list them. To add one, write a module with the
functions that an entry names, such as `falcon.py`, and add the entries. Fields of a
config.json that change nothing belong in `formats/harmless_fields.py`: others that nobody reads are
refused. `formats/` imports these modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sarathi.models.families import falcon, gemma, llama
from sarathi.models.json_fields import Fields
from sarathi.models.model_config import Activation, ModelConfig
from sarathi.models.name_map import NameMap, Source


@dataclass(frozen=True)
class Family:
    """How the folders of one architecture describe the model and name its tensors."""

    model_type: str  # in config.json
    read_config: Callable[[Fields, str], ModelConfig]  # from config.json and the architecture
    name_map: Callable[[ModelConfig], NameMap] | None = None  # None: the decoder's own names


@dataclass(frozen=True, kw_only=True)
class GgufFamily:
    """What an architecture in GGUF files implies; the defaults are those of Llama."""

    norm: Literal["rms", "layer"] = "rms"
    activation: Activation = "silu"
    gated_mlp: bool = True
    parallel: bool = False
    # Modules of a layer that are not as `gguf_config.name_map` has them
    modules: Callable[[ModelConfig], Mapping[str, Source]] | None = None
    # Whether converters reorder the rows of query and key heads, to rotation pairs (0, 1), (2, 3)
    interleaved_heads: bool = False
    window: int = 0  # where the file does not say, as the fields below; 0 is none
    full_every: int = 0  # of so many layers the last has no window; 0: all have it
    local_rope_theta: float = 0.0  # of layers with a window; 0: as of the others
    attention_soft_cap: float | None = None  # None: the architecture has none
    logit_soft_cap: float | None = None
    output_norms: bool = False
    scaled_embeddings: bool = False  # by the square root of the hidden size
    # Models of so many layers scale scores by the hidden size over the number of heads.
    scores_by_width: int = 0


# By `architectures` in config.json.
ARCHITECTURES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family("llama", llama.read_config),
    "MistralForCausalLM": Family("mistral", llama.read_config),
    "Qwen2ForCausalLM": Family("qwen2", llama.read_config),
    "Qwen3ForCausalLM": Family("qwen3", llama.read_config),
    "Phi3ForCausalLM": Family("phi3", llama.read_config, llama.phi3_name_map),
    "FalconForCausalLM": Family("falcon", falcon.read_config, falcon.name_map),
    "GemmaForCausalLM": Family("gemma", gemma.read_config, gemma.name_map),
    "Gemma2ForCausalLM": Family("gemma2", gemma.read_config, gemma.name_map),
    "Gemma3ForCausalLM": Family("gemma3_text", gemma.read_config, gemma.name_map),
}

# By `general.architecture` in GGUF files.
GGUF_ARCHITECTURES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily(interleaved_heads=True),
    "qwen2": GgufFamily(),
    "qwen3": GgufFamily(),
    "phi3": GgufFamily(modules=llama.phi3_gguf_modules),
    "falcon": GgufFamily(
        norm="layer",
        activation="gelu",
        gated_mlp=False,
        parallel=True,
        modules=falcon.gguf_modules,
    ),
    "gemma": GgufFamily(activation="gelu_tanh", scaled_embeddings=True),
    "gemma2": GgufFamily(
        activation="gelu_tanh",
        window=4096,
        full_every=2,
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
        output_norms=True,
        scaled_embeddings=True,
        scores_by_width=46,
    ),
    "gemma3": GgufFamily(
        activation="gelu_tanh",
        full_every=6,
        local_rope_theta=10000.0,
        logit_soft_cap=0.0,
        output_norms=True,
        scaled_embeddings=True,
        scores_by_width=62,
    ),
}
