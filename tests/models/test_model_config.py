from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from sarathi.errors import ModelError
from sarathi.models.formats.huggingface_checkpoint import read_config
from sarathi.models.model import open_model
from tests.tiny_models import FAMILIES, save_tiny

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**_LLAMA, **changes}))
    return folder


_FALCON: dict[str, Any] = {
    "architectures": ["FalconForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("falcon")])
def test_config_agrees_with_transformers(family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path)
    config = open_model(tmp_path).config
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs: Any = model.config
    names = set(model.state_dict())

    assert config.architecture == theirs.architectures[0]
    assert config.vocab_size == theirs.vocab_size
    assert config.hidden_size == theirs.hidden_size
    assert config.intermediate_size == theirs.intermediate_size
    assert config.num_layers == theirs.num_hidden_layers
    assert config.num_heads == theirs.num_attention_heads
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.head_dim == model.model.layers[0].self_attn.head_dim
    is_gemma = family.startswith("gemma")
    assert (config.norm, config.activation) == ("rms", "gelu_tanh" if is_gemma else "silu")
    assert config.embedding_scale == (theirs.hidden_size**0.5 if is_gemma else 1.0)
    assert config.score_scale == model.model.layers[0].self_attn.scaling
    assert config.output_norms == ("model.layers.0.post_feedforward_layernorm.weight" in names)
    assert config.attention_soft_cap == (getattr(theirs, "attn_logit_softcapping", None) or 0)
    assert config.logit_soft_cap == (getattr(theirs, "final_logit_softcapping", None) or 0)
    assert (config.gated_mlp, config.parallel, config.mlp_norm) == (True, False, True)
    assert config.norm_eps == theirs.rms_norm_eps
    assert config.max_position == theirs.max_position_embeddings
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert config.qkv_bias == ("model.layers.0.self_attn.q_proj.bias" in names)
    assert config.output_bias == ("model.layers.0.self_attn.o_proj.bias" in names)
    assert config.mlp_bias == ("model.layers.0.mlp.up_proj.bias" in names)
    assert config.qk_norm == ("model.layers.0.self_attn.q_norm.weight" in names)
    kinds = getattr(theirs, "layer_types", ["sliding_attention"] * theirs.num_hidden_layers)
    window = getattr(theirs, "sliding_window", None) or 0
    assert config.sliding_windows == tuple(
        window if kind == "sliding_attention" else 0 for kind in kinds
    )


_GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "head_dim": 32,
}


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
            },
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ],
    ids=str,
)
def test_gemma_3_rotates_by_kind_of_layer(rope: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_GEMMA3, **rope}))
    config = read_config(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    rotary = transformers.models.gemma3.modeling_gemma3.Gemma3RotaryEmbedding(theirs)
    for found, kind in ((config.inv_freq, "full"), (config.local_inv_freq, "sliding")):
        expected = getattr(rotary, f"{kind}_attention_inv_freq")
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-6)
    assert config.inv_freqs == (config.inv_freq, config.local_inv_freq)
    assert [config.rope_of(layer) for layer in range(8)] == [1, 1, 1, 1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation is 'gelu', expected gelu_pytorch_tanh"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, expected null"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters: rope_type is 'default'"),
        ({"sliding_window": None}, "sliding_window is None, expected the tokens"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0, expected a number"),
        ({"final_logit_softcapping": -1}, "final_logit_softcapping is -1, expected a number"),
        ({"layer_types": ["full_attention"]}, "layer_types .* for each of 8 layers"),
    ],
)
def test_what_gemma_3_cannot_have_is_named(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_GEMMA3, **fields}))
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("named", [{"architectures": ["Gemma3ForConditionalGeneration"]}, {}])
def test_a_multimodal_folder_is_refused_as_such(named: dict[str, Any], tmp_path: Path) -> None:
    fields = {**named, "model_type": "gemma3", "text_config": _GEMMA3, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match="expected a text model: this one is multimodal"):
        read_config(tmp_path)


def test_gemma_3_without_windows_has_one_rotary_embedding(tmp_path: Path) -> None:
    kinds = {"layer_types": ["full_attention"] * 8, "sliding_window": None}
    (tmp_path / "config.json").write_text(json.dumps({**_GEMMA3, **kinds}))
    config = read_config(tmp_path)
    assert (config.sliding_windows, config.local_inv_freq) == ((0,) * 8, ())


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_rotary_frequencies_are_those_of_transformers(
    scaling: dict[str, Any], theta: float, head_dim: int, tmp_path: Path
) -> None:
    _write(
        tmp_path,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    theirs: Any = transformers.AutoConfig.for_model("llama", **json.loads(_text(tmp_path)))
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    ours = np.array(read_config(tmp_path).inv_freq)
    # Not exact: numpy and torch round powers differently, and the blend of llama3 amplifies it.
    np.testing.assert_allclose(ours, rotary.inv_freq.numpy(), rtol=2e-6)


def _text(folder: Path) -> str:
    return (folder / "config.json").read_text()


def test_old_and_new_spelling_of_rope_scaling_mean_the_same(tmp_path: Path) -> None:
    new = read_config(
        _write(tmp_path, rope_parameters={"rope_type": "linear", "factor": 2, "rope_theta": 5e4})
    )
    for name in ("rope_type", "type"):
        old = _write(tmp_path, rope_theta=5e4, rope_scaling={name: "linear", "factor": 2})
        assert read_config(old) == new


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": {"rope_theta": 5e4}, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4},
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_theta": 7e4,
        },
        {
            "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4},
            "rope_theta": 7e4,
        },
        {"rope_parameters": {"rope_theta": 5e4}, "rope_scaling": {}, "rope_theta": 7e4},
        {"rope_parameters": {"rope_theta": 5e4}, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 7e4},
        {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"type": "default"}, "partial_rotary_factor": 1.0},
        # The length before scaling: the field beside the object, in it, or none at all.
        {
            "rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 64},
            "original_max_position_embeddings": 128,
        },
        {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 64}},
        {"rope_scaling": _LLAMA3},
    ],
    ids=str,
)
def test_rotary_fields_given_twice_count_as_in_transformers(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    _write(tmp_path, hidden_size=256, max_position_embeddings=512, **fields)
    theirs: Any = transformers.AutoConfig.for_model("llama", **json.loads(_text(tmp_path)))
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    ours = np.array(read_config(tmp_path).inv_freq)
    np.testing.assert_allclose(ours, rotary.inv_freq.numpy(), rtol=2e-6)


def test_absent_fields_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    config = read_config(_write(tmp_path))
    assert config.num_kv_heads == 4
    assert config.head_dim == 16
    assert config.max_position == 2048
    assert config.norm_eps == 1e-6
    assert config.inv_freq[1] == pytest.approx(10000 ** (-1 / 8))
    assert not config.tie_word_embeddings


_MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


@pytest.mark.parametrize("model_type", _MODEL_TYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": None, "sliding_window": None},
        {"use_sliding_window": True},
    ],
    ids=["absent", "null", "sliding"],
)
def test_absent_and_null_fields_of_each_family_mean_what_they_mean_in_transformers(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    fields = {**_LLAMA, "num_attention_heads": 32, "hidden_size": 512, **changes}
    if changes.get("use_sliding_window") and model_type.startswith("qwen"):
        fields["max_window_layers"] = 1
    meant = dict(fields)
    if model_type == "mistral" and fields.get("num_key_value_heads", 0) is None:
        meant["num_key_value_heads"] = 32  # what its class has for null, were null not refused
    theirs: Any = transformers.AutoConfig.for_model(model_type, **meant)
    ours = read_config(_write(tmp_path, **{**fields, "architectures": [_MODEL_TYPES[model_type]]}))
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", 16)
    assert ours.max_position == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    window = getattr(theirs, "sliding_window", None) or 0
    kinds = getattr(theirs, "layer_types", ["sliding_attention"] * 2)
    assert ours.sliding_windows == tuple(
        window if kind == "sliding_attention" else 0 for kind in kinds
    )


_SLIDING = ("MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM")
_WINDOWED: dict[str, Any] = {
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "sliding_window": 9,
}


@pytest.mark.parametrize("architecture", _SLIDING)
def test_layer_types_decide_which_layers_slide(architecture: str, tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    for changes, expected in (
        ({"layer_types": kinds}, (0, 9, 0, 9)),
        ({"layer_types": ["full_attention"] * 4}, (0, 0, 0, 0)),
        ({"layer_types": ["sliding_attention"] * 4}, (9, 9, 9, 9)),
    ):
        _write(tmp_path, **{**_WINDOWED, **changes, "architectures": [architecture]})
        assert read_config(tmp_path).sliding_windows == expected


def test_mistral_with_layer_types_is_ministral_of_transformers(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"]
    _write(tmp_path, architectures=["MistralForCausalLM"], num_key_value_heads=4, layer_types=kinds)
    theirs: Any = transformers.AutoConfig.for_model("ministral", **json.loads(_text(tmp_path)))
    assert theirs.layer_types == kinds
    assert read_config(tmp_path).sliding_windows == (0, theirs.sliding_window)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", *_SLIDING])
@pytest.mark.parametrize("none", [None, 0, -1])
def test_spellings_of_no_sliding_window(
    none: int | None, architecture: str, tmp_path: Path
) -> None:
    _write(tmp_path, **{**_WINDOWED, "sliding_window": none, "architectures": [architecture]})
    assert read_config(tmp_path).sliding_windows == (0, 0, 0, 0)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", *_SLIDING])
def test_a_window_that_is_switched_off_is_none(architecture: str, tmp_path: Path) -> None:
    changes = {"use_sliding_window": False, "architectures": [architecture]}
    assert read_config(_write(tmp_path, **{**_WINDOWED, **changes})).sliding_windows == (0,) * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types is .*each of 4 layers"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types is .*each of 4 layers"),
        ({"layer_types": [["full_attention"]] * 4}, "layer_types is .*each of 4 layers"),
        ({"layer_types": "sliding_attention"}, "layer_types is .*each of 4 layers"),
        (
            {"layer_types": ["sliding_attention"] * 4, "sliding_window": None},
            "layer_types is .*full_attention alone where there is no window",
        ),
        ({"sliding_window": -2}, "sliding_window is -2, expected .*null, 0 or -1 for none"),
        ({"sliding_window": True}, "sliding_window is True"),
        ({"sliding_window": 9.5}, "sliding_window is 9.5"),
        ({"layer_types": None, "sliding_window": "9"}, "sliding_window is '9'"),
    ],
)
@pytest.mark.parametrize("architecture", _SLIDING)
def test_windows_that_cannot_be_served_are_named(
    changes: dict[str, Any], message: str, architecture: str, tmp_path: Path
) -> None:
    _write(tmp_path, **{**_WINDOWED, **changes, "architectures": [architecture]})
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types is .*Llama has no sliding"),
        ({}, "sliding_window is 9.*Llama has no sliding window"),
    ],
)
def test_llama_does_not_slide(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_config(_write(tmp_path, **{**_WINDOWED, **changes}))


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    _write(tmp_path, **{**_WINDOWED, "sliding_window": 2048})
    assert read_config(tmp_path).sliding_windows == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures.*GPT2LMHeadModel.*Llama"),
        ({"architectures": None, "model_type": "bert"}, "model_type.*bert.*llama"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64', expected an integer"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "multiple of num_kv_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": []}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected silu"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization_config.*hqq.*awq"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_type is 'yarn'.*llama3"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4}}, "type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
            },
            "rope_scaling: rope_type is 'yarn'.*llama3",
        ),
        (
            {
                "rope_scaling": {"factor": 0.5, "type": "linear"},
                "rope_parameters": {"rope_type": "longrope"},
                "partial_rotary_factor": 0.5,
            },
            "partial_rotary_factor is 0.5",
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            "rope_parameters is .*for each kind of layer is not supported",
        ),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": 1e300}, r"rope_theta is 1e\+300, expected a number from 1e-30 to 1e\+30"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-50}}, "factor is 1e-50, expected a numb"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"head_dim": 15}, "heads have 15 dimensions, expected an even number"),
        (
            {"hidden_size": 2**30, "num_attention_heads": 1, "num_key_value_heads": 1},
            "heads have 1073741824 dimensions",
        ),
    ],
)
def test_fields_that_cannot_be_served_are_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _write(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("falcon")])
def test_config_of_falcon_agrees_with_transformers(family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path)
    config = open_model(tmp_path).config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.architecture == "FalconForCausalLM"
    assert config.num_heads == theirs.num_attention_heads
    assert config.head_dim == theirs.head_dim
    assert config.intermediate_size == theirs.ffn_hidden_size
    assert config.max_position == theirs.max_position_embeddings
    assert config.norm_eps == theirs.layer_norm_epsilon
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert config.qkv_bias == config.output_bias == config.mlp_bias == theirs.bias
    assert (config.norm, config.activation, config.gated_mlp) == ("layer", "gelu", False)


@pytest.mark.parametrize(
    ("changes", "num_kv_heads", "parallel", "mlp_norm"),
    [
        ({}, 1, True, False),
        ({"multi_query": False}, 4, True, False),
        ({"parallel_attn": False}, 1, False, True),
        ({"new_decoder_architecture": True}, 4, True, True),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2, True, True),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, 4, True, False),
        ({"num_kv_heads": 2, "num_ln_in_parallel_attn": 2}, 1, True, False),
        # The new architecture leaves these two unread.
        (
            {"new_decoder_architecture": True, "multi_query": True, "parallel_attn": False},
            4,
            True,
            True,
        ),
    ],
)
def test_switches_of_falcon(
    changes: dict[str, Any], num_kv_heads: int, parallel: bool, mlp_norm: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_FALCON, **changes}))
    config = read_config(tmp_path)
    assert config.num_kv_heads == num_kv_heads
    assert (config.parallel, config.mlp_norm) == (parallel, mlp_norm)
    assert config.intermediate_size == 256
    assert config.max_position == 2048
    assert config.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3.*hidden_size"),
        ({"alibi": True}, "alibi is True, expected false"),
        ({"alibi": 1}, "alibi is 1, expected true or false"),
        ({"activation": "relu"}, "activation is 'relu', expected gelu"),
        ({"bias": "no"}, "bias is 'no'"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0"),
        ({"new_decoder_architecture": True, "num_kv_heads": 3}, "num_kv_heads is 3.*divisor"),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel"),
    ],
)
def test_what_cannot_be_served_of_falcon_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_FALCON, **changes}))
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "type is 'longrope'"),
        ({"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
    ],
)
def test_what_cannot_be_served_of_phi3_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _write(tmp_path, architectures=["Phi3ForCausalLM"], **changes)
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


def test_phi3_has_different_defaults(tmp_path: Path) -> None:
    config = read_config(_write(tmp_path, architectures=["Phi3ForCausalLM"]))
    assert (config.max_position, config.norm_eps, config.sliding_windows) == (4096, 1e-5, (0, 0))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"config"', b"[" * 100_000])
def test_config_that_is_no_json_object(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        read_config(tmp_path)
