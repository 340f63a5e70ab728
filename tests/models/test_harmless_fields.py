"""Every field, key and tensor is read, known to be harmless, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from sarathi.errors import ModelError
from sarathi.models.formats.harmless_fields import is_harmless_field, is_harmless_key
from sarathi.models.formats.huggingface_checkpoint import read_config
from sarathi.models.model import open_model
from tests.tiny_gguf import write_gguf
from tests.tiny_models import FAMILIES, save_tiny

_TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "falcon")
_GEMMAS = ("gemma", "gemma2", "gemma3_text")
_SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _read(folder: Path, config: dict[str, Any]) -> Any:
    (folder / "config.json").write_text(json.dumps(config))
    return read_config(folder)


def _sizes(model_type: str) -> dict[str, Any]:
    dropped = ("intermediate_size", "num_key_value_heads") if model_type == "falcon" else ()
    sizes = {name: size for name, size in _SIZES.items() if name not in dropped}
    return {**sizes, "model_type": model_type}


@pytest.mark.parametrize("model_type", [*_TYPES, *_GEMMAS])
def test_every_field_that_transformers_saves_is_decided(model_type: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(**_sizes(model_type)).to_dict()
    assert _read(tmp_path, {**config, **_sizes(model_type)}).vocab_size == 256


@pytest.mark.parametrize(
    "name", [*transformers.GenerationConfig()._get_default_generation_params()]
)
def test_defaults_of_generation_are_harmless(name: str) -> None:
    # Old versions of the library saved them in config.json.
    assert is_harmless_field(name, 1.5)


_COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
}
_FALCON: dict[str, Any] = {
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"},
    "bias": False,
    "bos_token_id": 11,
    "eos_token_id": 11,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_GEMMA: dict[str, Any] = {
    **_COMMON,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "rope_theta": 10000.0,
}
# The fields of published config.json files, with sizes of our own.
_PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-2": (
        "llama",
        {**_COMMON, "pretraining_tp": 2, "rope_scaling": None, "_name_or_path": "x"},
    ),
    "LLaMA": ("llama", {**_COMMON, "max_sequence_length": 2048, "pad_token_id": -1}),
    "Llama-3.2": (
        "llama",
        {
            **_COMMON,
            "head_dim": 16,
            "mlp_bias": False,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "eos_token_id": [128001, 128008],
            "unsloth_fixed": True,
        },
    ),
    "SmolLM2": (
        "llama",
        {
            **_COMMON,
            "is_llama_config": True,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "rope_scaling": None,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        },
    ),
    "TinyLlama": ("llama", {**_COMMON, "pretraining_tp": 1, "max_position_embeddings": 2048}),
    "Yi": ("llama", {**_COMMON, "pad_token_id": 0, "rope_theta": 5000000.0}),
    "DeepSeek-Coder": (
        "llama",
        {**_COMMON, "rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000},
    ),
    "Mistral": ("mistral", {**_COMMON, "sliding_window": 4096, "rope_theta": 10000.0}),
    "Ministral": (
        "mistral",
        {
            **_COMMON,
            "head_dim": 16,
            "sliding_window": 32768,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "Qwen2.5": (
        "qwen2",
        {
            **_COMMON,
            "max_window_layers": 21,
            "sliding_window": 32768,
            "use_sliding_window": False,
            "use_mrope": False,
            "rope_theta": 1000000.0,
        },
    ),
    "Qwen3": (
        "qwen3",
        {
            **_COMMON,
            "head_dim": 128,
            "max_window_layers": 28,
            "sliding_window": None,
            "use_sliding_window": False,
            "rope_scaling": None,
        },
    ),
    "Phi-3-mini-4k": (
        "phi3",
        {
            **_COMMON,
            "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "original_max_position_embeddings": 4096,
            "rope_scaling": None,
            "sliding_window": 2047,
            "pad_token_id": 32000,
        },
    ),
    "Gemma-2B": ("gemma", {**_GEMMA, "hidden_act": "gelu", "hidden_activation": None}),
    "Gemma-2-2B": (
        "gemma2",
        {
            **_GEMMA,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "cache_implementation": "hybrid",
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
        },
    ),
    "Gemma-3-1B": (
        "gemma3_text",
        {
            **_GEMMA,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 106],
            "query_pre_attn_scalar": 256,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
        },
    ),
    "Gemma-3-270M": (
        "gemma3_text",
        {
            **_GEMMA,
            "_sliding_window_pattern": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 256,
            "rope_local_base_freq": 10000.0,
            "sliding_window": 512,
            "use_bidirectional_attention": False,
        },
    ),
    "Falcon-7B": ("falcon", {**_FALCON, "multi_query": True, "parallel_attn": True}),
    "Falcon-40B": (
        "falcon",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "parallel_attn": True},
    ),
    "Falcon-11B": (
        "falcon",
        {
            **_FALCON,
            "activation": "gelu",
            "ff_factor": 4,
            "ffn_hidden_size": 256,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "rope_scaling": None,
            "rope_theta": 500042.0,
        },
    ),
}


@pytest.mark.parametrize(("model_type", "fields"), _PUBLISHED.values(), ids=_PUBLISHED)
def test_published_configurations_are_read(
    model_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    architecture = _ARCHITECTURES[model_type]
    config = {**_sizes(model_type), "architectures": [architecture], **fields}
    assert _read(tmp_path, config).architecture == architecture


_ARCHITECTURES = {
    name: f"{name.removesuffix('_text').capitalize()}ForCausalLM" for name in (*_TYPES, *_GEMMAS)
}


@pytest.mark.parametrize("model_type", _TYPES)
@pytest.mark.parametrize(
    "fields",
    [
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"logit_scale": 0.0625},
        {"logits_scaling": 8.0},
        {"residual_multiplier": 0.22},
        {"embedding_multiplier": 12.0},
        {"attention_multiplier": 0.015},
        {"query_pre_attn_scalar": 256},
        {"clip_qkv": 8.0},
        {"num_experts": 8},
        {"num_local_experts": 8},
        {"quantization": {"bits": 4, "group_size": 64}},
        {"text_config": {"hidden_size": 64}},
        {"use_qk_norm": True},
        {"rope_interleaved": True},
        {"use_mrope": True},
        {"is_causal": False},
        {"use_rope": False},
        {"is_encoder_decoder": True},
        {"add_cross_attention": True},
        {"pruned_heads": {"0": [1]}},
        {"per_layer_config": {"0": {"head_dim": 8}}},
        {"no_rope_layers": [1, 0]},
        {"apply_residual_connection_post_layernorm": True},
        {"foo": 1.5},
        {"foo": 0},
        {"foo": "x"},
        {"foo": [1]},
        {"rope_parameters": {"mrope_section": [2, 3, 3]}},
        {"rope_parameters": {"attention_factor": 1.2}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}},
        {"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}},
    ],
    ids=str,
)
def test_what_may_change_the_model_is_refused_by_name(
    fields: dict[str, Any], model_type: str, tmp_path: Path
) -> None:
    ((name, value),) = fields.items()
    if name == "rope_parameters":
        name, value = list(value.items())[-1]
    with pytest.raises(ModelError) as raised:
        _read(tmp_path, {**_sizes(model_type), **fields})
    assert f"{name} is {value!r}, which is not supported" in str(raised.value)
    assert "remove it from the file" in str(raised.value)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("qwen2", {"attention_bias": True}),
        ("mistral", {"attention_bias": True}),
        ("phi3", {"mlp_bias": True}),
        ("mistral", {"sliding_window": 9, "max_window_layers": 1}),
        ("falcon", {"num_key_value_heads": 2}),
    ],
)
def test_fields_of_other_families(model_type: str, fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{list(fields)[-1]} is .*, which is not supported"):
        _read(tmp_path, {**_sizes(model_type), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_scale": 1.0},
        {"residual_multiplier": 1},
        {"num_experts": 0},
        {"is_causal": True},
        {"foo": None},
        {"foo": False},
        {"foo": []},
        {"foo": {}},
        {"foo": ""},
        {"rope_parameters": {"attention_factor": 1.0, "foo": None}},
    ],
    ids=str,
)
def test_values_that_leave_all_as_it_is(fields: dict[str, Any], tmp_path: Path) -> None:
    assert _read(tmp_path, {**_sizes("llama"), **fields}) == _read(tmp_path, _sizes("llama"))


def test_architecture_and_model_type_that_contradict_each_other(tmp_path: Path) -> None:
    config = {**_sizes("mistral"), "architectures": ["LlamaForCausalLM"]}
    with pytest.raises(ModelError, match="model_type is 'mistral', expected llama, for arch"):
        _read(tmp_path, config)
    config["model_type"] = "granite"
    with pytest.raises(ModelError, match="model_type is 'granite', expected llama, for arch"):
        _read(tmp_path, config)


@pytest.mark.parametrize(("head_dim", "ff_factor"), [(16, 3), (8, 4)])
def test_fields_that_falcon_has_twice_must_agree(
    head_dim: int, ff_factor: int, tmp_path: Path
) -> None:
    message = "head_dim is 8" if head_dim == 8 else "ff_factor is 3"
    with pytest.raises(ModelError, match=message):
        _read(tmp_path, {**_sizes("falcon"), "head_dim": head_dim, "ff_factor": ff_factor})


def _write_gguf(
    path: Path, arch: str, add: Callable[[gguf.GGUFWriter], None] = lambda writer: None
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_feed_forward_length(96)
    writer.add_context_length(100)
    add(writer)
    tensors = {"token_embd": (8, 64), "output_norm": (64,), "blk.0.attn_norm": (64,)}
    tensors |= {f"blk.0.attn_{name}": (64, 64) for name in ("q", "k", "v", "output")}
    tensors |= {"blk.0.ffn_norm": (64,), "blk.0.ffn_gate": (96, 64), "blk.0.ffn_up": (96, 64)}
    for name, shape in {**tensors, "blk.0.ffn_down": (64, 96)}.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.0625),
        ("residual_scale", 0.22),
        ("embedding_scale", 12.0),
        ("attention.clamp_kqv", 8.0),
        ("attention.max_alibi_bias", 8.0),
        ("attention.causal", False),
        ("attention.temperature_length", 8192),
        ("expert_used_count", 2),
        ("rope.freq_base_swa", 1e4),
        ("rope.scaling.attn_factor", 1.2),
        ("rope.dimension_sections", [1, 2]),
        ("use_parallel_residual", True),
        ("tensor_data_layout", "other"),
        ("foo", 1),
    ],
)
def test_keys_of_a_gguf_that_may_change_the_model(
    key: str, value: Any, arch: str, tmp_path: Path
) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_key_value(f"{arch}.{key}", value, _kind(value))

    with pytest.raises(ModelError, match=rf"{arch}\.{key} is .*, which is not supported"):
        open_model(_write_gguf(tmp_path / "m.gguf", arch, add))


def _kind(value: Any) -> gguf.GGUFValueType:
    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.UINT32,
        float: gguf.GGUFValueType.FLOAT32,
        str: gguf.GGUFValueType.STRING,
        list: gguf.GGUFValueType.ARRAY,
    }
    return kinds[type(value)]


def test_a_scale_of_the_attention_that_is_not_the_usual_one(tmp_path: Path) -> None:
    open_model(_write_gguf(tmp_path / "a.gguf", "llama", lambda w: w.add_attention_scale(0.25)))
    with pytest.raises(ModelError, match=r"attention\.scale is 0\.1, supported is 1 / sqrt"):
        open_model(_write_gguf(tmp_path / "b.gguf", "llama", lambda w: w.add_attention_scale(0.1)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 8),
        ("rope.scaling.original_context_length", 50),
        ("rope.scaling.finetuned", True),
        ("rope.scaling.attn_factor", 1.0),
        ("expert_used_count", 0),
        ("expert_count", 0),
        ("attention.clamp_kqv", 0.0),
        ("attention.causal", True),
        ("logit_scale", 1.0),
        ("use_parallel_residual", False),
        ("tensor_data_layout", "Meta AI original pth"),
        ("pooling_type", 3),
    ],
)
def test_keys_of_a_gguf_that_leave_all_as_it_is(key: str, value: Any, tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_key_value(f"llama.{key}", value, _kind(value))

    plain = open_model(_write_gguf(tmp_path / "a.gguf", "llama"))
    assert open_model(_write_gguf(tmp_path / "b.gguf", "llama", add)).config == plain.config


@pytest.mark.parametrize(
    "name", ["blk.0.attn_output_norm.weight", "blk.0.post_ffw_norm.weight", "cls.weight"]
)
def test_tensors_of_a_gguf_that_are_left_over(name: str, tmp_path: Path) -> None:
    norm = np.ones(64, np.float32)
    path = _write_gguf(tmp_path / "m.gguf", "llama", lambda w: w.add_tensor(name, norm))
    with pytest.raises(ModelError, match=f"has tensor {name}, for which .* has no use"):
        open_model(path)


def test_falcon_is_parallel() -> None:
    assert is_harmless_key("falcon", "use_parallel_residual", True)
    assert not is_harmless_key("falcon", "use_parallel_residual", False)
    assert is_harmless_key("falcon", "tensor_data_layout", "jploski")


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_rot_embd.weight"])
def test_tensors_of_a_gguf_that_make_no_difference(name: str, tmp_path: Path) -> None:
    factors = np.ones(8, np.float32)
    open_model(_write_gguf(tmp_path / "m.gguf", "llama", lambda w: w.add_tensor(name, factors)))


def _save_with(folder: Path, family: str, **tensors: np.ndarray[Any, Any]) -> Path:
    save_tiny(family, folder)
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path)
    return folder


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "model.layers.x.input_layernorm.weight"),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias"),
        ("falcon-7b", "transformer.h.0.ln_mlp.weight"),
        ("llama", "score.weight"),
        ("llama", "vision_tower.weight"),
    ],
)
def test_tensors_that_are_left_over(family: str, name: str, tmp_path: Path) -> None:
    _save_with(tmp_path, family, **{name: np.ones(64, np.float32)})
    with pytest.raises(ModelError, match=f"has tensor {name}, for which .* has no use"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.3.input_layernorm.weight"),
        ("falcon-7b", "transformer.h.12.ln_mlp.weight"),
    ],
)
def test_layers_beyond_the_configured_ones_are_left_out_with_a_warning(
    family: str, name: str, tmp_path: Path
) -> None:
    _save_with(tmp_path, family, **{name: np.ones(64, np.float32)})
    (warning,) = open_model(tmp_path).warnings
    assert "more layers" in warning
    assert open_model(_save_with(tmp_path, family)).warnings == ()


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.masked_bias",
        "model.embeddings.position_ids",
        "model.layers.0.self_attn.q_proj.bias",  # all of them zero
    ],
)
def test_tensors_that_make_no_difference(name: str, tmp_path: Path) -> None:
    open_model(_save_with(tmp_path, "llama", **{name: np.zeros(64, np.float32)}))


def test_what_is_left_over_is_counted(tmp_path: Path) -> None:
    names = ("z.weight", "b.weight", "y.weight")
    _save_with(tmp_path, "llama", **{name: np.ones(1, np.float32) for name in names})
    with pytest.raises(ModelError, match=r"has tensor b\.weight \(and 2 others\)"):
        open_model(tmp_path)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("family", ["llama-tied", "falcon-7b"])
def test_a_separate_head_counts_though_the_configuration_ties_it(
    family: str, same: bool, tmp_path: Path
) -> None:
    save_tiny(family, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.embed_tokens.weight" if family == "llama-tied" else "word_embeddings.weight"
    (embedding,) = (tensor for each, tensor in tensors.items() if each.endswith(name))
    head = embedding.copy()
    if not same:
        head[-1, -1] += 1
    save_file({**tensors, "lm_head.weight": head}, path, {"format": "pt"})
    model = open_model(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.tie_word_embeddings == same
    ours = model.weights["model.embed_tokens.weight" if same else "lm_head.weight"]
    np.testing.assert_array_equal(ours, theirs.lm_head.weight.detach().numpy())


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "falcon-serial"])
def test_nothing_of_the_tiny_models_is_left_over(family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf")
    for path in (tmp_path, tmp_path / "m.gguf"):
        assert open_model(path).config.vocab_size == 256
