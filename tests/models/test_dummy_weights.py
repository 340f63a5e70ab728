"""Random weights: the same everywhere, whichever part of them is made, and on whichever device."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.backends.reference import reference
from sarathi.backends.torch.parameters import Parameters, fill_dummy
from sarathi.backends.torch.torch_devices import as_array, as_tensor
from sarathi.errors import ModelError
from sarathi.models.decoder import whole_model
from sarathi.models.dummy_weights import BLOCK_SIZE, DummyWeights, random_tensor
from sarathi.models.formats.huggingface_checkpoint import read_config
from sarathi.models.model import open_model
from sarathi.models.model_config import ModelConfig
from sarathi.models.sharding import Shard, ShardedWeights, shard_shapes
from sarathi.models.tensor_layout import expected_shapes

LLAMA = {
    "model_type": "llama",
    "vocab_size": 301,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "mlp_bias": True,
}
FALCON = {
    "model_type": "falcon",
    "vocab_size": 301,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "new_decoder_architecture": True,
    "bias": True,
}
Q = "model.layers.0.self_attn.q_proj.weight"


def config_of(folder: Path, fields: dict[str, Any], **changes: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps({**fields, **changes}))
    return read_config(folder)


@pytest.fixture
def llama(tmp_path: Path) -> ModelConfig:
    return config_of(tmp_path, LLAMA)


def test_every_tensor_of_the_configuration_exists(llama: ModelConfig) -> None:
    weights = DummyWeights(llama)
    for name, shape in expected_shapes(llama, whole_model(llama)).items():
        assert name in weights
        assert weights.shape(name) == weights[name].shape == shape
        assert weights.stored_dtype(name) is None
    with pytest.raises(ModelError, match="no tensor q_proj"):
        weights["q_proj"]


def test_values_depend_only_on_name_and_seed(llama: ModelConfig) -> None:
    first, again, other = DummyWeights(llama), DummyWeights(llama), DummyWeights(llama, seed=1)
    assert np.array_equal(first[Q], again[Q])
    assert not np.array_equal(first[Q], other[Q])
    assert not np.array_equal(first[Q], first[Q.replace("layers.0", "layers.1")])


def test_distributions(llama: ModelConfig) -> None:
    weights = DummyWeights(llama)
    matrix = weights[Q]
    assert abs(matrix.mean()) < 0.01
    assert abs(matrix.std() * math.sqrt(matrix.shape[1]) - 1) < 0.05
    assert np.all(weights["model.norm.weight"] == 1)
    bias = weights["model.layers.0.self_attn.q_proj.bias"]
    assert 0 < np.abs(bias).max() < 0.1


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=st.sampled_from([Q, Q.replace("weight", "bias"), "model.norm.weight"]))
def test_a_part_equals_that_slice_of_the_whole(
    data: st.DataObject, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = DummyWeights(config_of(tmp_path_factory.mktemp("llama"), LLAMA))
    slices = []
    for size in weights.shape(name):
        start = data.draw(st.integers(0, size))
        slices.append(slice(start, data.draw(st.integers(start, size))))
    assert np.array_equal(weights.part(name, *slices), weights[name][tuple(slices)])


def test_a_matrix_larger_than_the_block_wraps_around(tmp_path: Path) -> None:
    config = config_of(tmp_path, LLAMA, vocab_size=BLOCK_SIZE // 64 + 100)
    matrix = DummyWeights(config)["lm_head.weight"]
    flat = matrix.reshape(-1)
    assert np.array_equal(flat[BLOCK_SIZE:], flat[: len(flat) - BLOCK_SIZE])
    assert len(np.unique(matrix, axis=0)) == len(matrix)


@pytest.mark.parametrize("fields", [LLAMA, FALCON], ids=["llama", "falcon"])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_filled_with_the_values_that_numpy_makes(
    tmp_path: Path, fields: dict[str, Any], count: int, dtype: torch.dtype
) -> None:
    config = config_of(tmp_path, fields)
    for rank in range(count):
        shard = Shard(rank, count)
        weights = ShardedWeights(DummyWeights(config), config, shard)
        shapes = shard_shapes(config, whole_model(config), shard)
        parameters = Parameters(weights, shapes, dtype, torch.device("cpu"))
        for name in shapes:
            assert torch.equal(parameters[name], as_tensor(weights[name], dtype)), name


def test_parts_of_a_joined_tensor_are_filled_in_place(llama: ModelConfig) -> None:
    weights = DummyWeights(llama)
    names = [Q, Q.replace("q_proj", "k_proj"), Q.replace("q_proj", "v_proj")]
    joined = torch.full((64 + 32 + 32, 64), torch.nan)
    start = 0
    for name in names:
        source = random_tensor(weights, name)
        assert source is not None
        fill_dummy(joined[start : start + source.shape[0]], source)
        start += source.shape[0]
    assert np.array_equal(joined.numpy(), np.concatenate([weights[name] for name in names]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_makes_the_same_values(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = DummyWeights(config_of(tmp_path, LLAMA, vocab_size=70_000))
    for name in ("lm_head.weight", Q, Q.replace("weight", "bias"), "model.norm.weight"):
        source = weights.random(name)
        made = torch.empty(source.shape, dtype=dtype, device="cuda")
        fill_dummy(made, source)
        assert torch.equal(made.cpu(), as_tensor(weights[name], dtype)), name


def test_weights_of_a_checkpoint_are_not_random(llama: ModelConfig) -> None:
    assert random_tensor({}, Q) is None
    weights: Any = {Q: np.zeros((64, 64), np.float32)}
    assert random_tensor(ShardedWeights(weights, llama, Shard()), Q) is None


@pytest.mark.parametrize("fields", [LLAMA, FALCON], ids=["llama", "falcon"])
def test_activations_stay_small_through_many_layers(tmp_path: Path, fields: dict[str, Any]) -> None:
    config = config_of(tmp_path, fields, num_hidden_layers=80)
    weights = DummyWeights(config)
    stage = whole_model(config)
    hidden = reference(config, type(stage)(stage.layers, last=False), weights, range(9))
    assert 0 < np.abs(hidden).max() < 1000  # float16 goes to 65504
    logits = reference(config, stage, weights, range(9))
    assert 0.2 < logits.std() < 5
    assert len(set(logits.argmax(-1).tolist())) > 1


def test_a_folder_is_opened_without_its_weights(tmp_path: Path) -> None:
    config = config_of(tmp_path, LLAMA, tie_word_embeddings=True)
    (tmp_path / "model.safetensors").write_bytes(b"unreadable")
    model = open_model(tmp_path, "dummy")
    assert model.config == config
    assert "lm_head.weight" not in model.weights
    assert model.warnings == ("random weights (--load-format dummy): answers are meaningless",)
    with pytest.raises(ModelError, match="safetensors"):
        open_model(tmp_path)


def test_what_cannot_be_served_is_refused_as_ever(tmp_path: Path) -> None:
    for changes, message in (
        ({"model_type": "mamba"}, "model_type"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"hidden_size": None}, "hidden_size"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
        with pytest.raises(ModelError, match=message):
            open_model(tmp_path, "dummy")


def test_values_are_rounded_once(llama: ModelConfig) -> None:
    source = DummyWeights(llama).random(Q)
    half = torch.empty(source.shape, dtype=torch.float16)
    fill_dummy(half, source)
    assert np.array_equal(as_array(half), source.values().astype(np.float16))
