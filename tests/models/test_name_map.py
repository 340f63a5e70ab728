from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sarathi.errors import ModelError
from sarathi.models.model import Model, open_model
from sarathi.models.name_map import NameMap, Source, fused, renamed
from tests.tiny_models import save_tiny

LAYER = "model.layers.1."


def test_names_inside_and_outside_of_layers() -> None:
    names = NameMap(
        outside={"model.norm": "ln_f"}, layers="h.", inside=renamed({"mlp.up_proj": "up"})
    )
    assert names.find("model.norm.bias") == Source("ln_f.bias")
    assert names.find("model.layers.12.mlp.up_proj.weight") == Source("h.12.up.weight")
    assert names.find("model.layers.12.mlp.x.weight") == Source("h.12.mlp.x.weight")
    assert names.find("lm_head.weight") == Source("lm_head.weight")
    assert names.find("x") == Source(".x")


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_parts_of_a_fused_tensor(groups: int) -> None:
    parts = fused("qkv", {"q": 4, "k": 2, "v": 2}, groups)
    tensor = np.arange(groups * 8 * 5).reshape(groups * 8, 5)
    rows = {"q": [0, 1, 2, 3], "k": [4, 5], "v": [6, 7]}
    for name, of_group in rows.items():
        source = parts[name].rows
        assert source is not None
        expected = [group * 8 + row for group in range(groups) for row in of_group]
        np.testing.assert_array_equal(source.take(tensor), tensor[expected])
        for start, stop in ((0, len(expected)), (1, len(expected)), (0, 1), (1, 1)):
            pieces = [tensor[piece] for piece in source.pieces(slice(start, stop))]
            np.testing.assert_array_equal(np.concatenate(pieces), tensor[expected[start:stop]])
        assert source.shape("qkv", tensor.shape) == (len(expected), 5)
        assert np.shares_memory(source.take(tensor), tensor) == (groups == 1)
    with pytest.raises(ModelError, match=rf"qkv has shape \(7, 5\).* {groups * 8} rows"):
        parts["q"].rows.shape("qkv", (7, 5))  # type: ignore[union-attr]


def saved(family: str, folder: Path) -> Model:
    save_tiny(family, folder)
    return open_model(folder)


def test_fused_tensors_of_phi3_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    model = saved("phi3", tmp_path)
    mapping = np.frombuffer(model.weights.mappings[0], np.uint8)
    for name in ("self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        assert np.shares_memory(model.weights[f"{LAYER}{name}.weight"], mapping)
        assert model.weights.stored_dtype(f"{LAYER}{name}.weight") == np.float32


def test_heads_of_falcon_come_out_of_their_groups(tmp_path: Path) -> None:
    model = saved("falcon-40b", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    groups = stored["transformer.h.1.self_attention.query_key_value.weight"].reshape(4, 4, 16, 128)
    for name, expected in (
        ("q_proj", groups[:, :2]),
        ("k_proj", groups[:, 2]),
        ("v_proj", groups[:, 3]),
    ):
        full = f"{LAYER}self_attn.{name}.weight"
        assert full in model.weights
        np.testing.assert_array_equal(model.weights[full], expected.reshape(-1, 128))
        # The array differs from the file: a caller that stores weights must not keep it in memory.
        assert model.weights.stored_dtype(full) is None


def test_norms_of_gemma_that_are_stored_less_1(tmp_path: Path) -> None:
    save_tiny("gemma3", tmp_path)
    path = tmp_path / "model.safetensors"
    half = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in load_file(path).items()}
    save_file(half, path)
    weights = open_model(tmp_path).weights
    names = {
        "input_layernorm": "input_layernorm",
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
        "self_attn.q_norm": "self_attn.q_norm",
    }
    for ours, theirs in names.items():
        name = f"{LAYER}{ours}.weight"
        # Not in bfloat16, which has too few digits beside the 1.
        expected = 1 + half[f"{LAYER}{theirs}.weight"].astype(np.float32)
        np.testing.assert_array_equal(weights[name], expected)
        np.testing.assert_array_equal(weights.part(name, slice(3, 5)), expected[3:5])
        assert weights[name].dtype == np.float32
        assert weights.stored_dtype(name) is None
    matrix = f"{LAYER}mlp.up_proj.weight"
    assert weights.stored_dtype(matrix) == ml_dtypes.bfloat16
    np.testing.assert_array_equal(weights[matrix], half[matrix])


@pytest.mark.parametrize(
    ("family", "name", "shape", "message"),
    [
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", (127, 64), "qkv_proj.*128 rows"),
        ("falcon-7b", "transformer.h.0.self_attention.query_key_value.weight", None, "no tensor"),
        ("falcon-7b", "transformer.h.0.self_attention.query_key_value.weight", (80, 80), "rows"),
        ("falcon-7b", "transformer.ln_f.bias", (9,), r"model.norm.bias has shape \(9,\)"),
    ],
)
def test_a_checkpoint_that_does_not_match_its_configuration_is_refused(
    family: str, name: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    save_tiny(family, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    if shape is not None:
        tensors[name] = np.zeros(shape, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        open_model(tmp_path)
