from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from sarathi.errors import ModelError
from sarathi.models.formats.huggingface_checkpoint import SafetensorsWeights
from sarathi.models.model import open_model, open_tokenizer
from tests.tiny_models import overwrite_u64, save_tiny, truncate


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    save_tiny("llama", tmp_path)
    return tmp_path


def _shard(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("sharded", [False, True])
def test_tensors_are_those_that_transformers_loads(llama: Path, sharded: bool) -> None:
    if sharded:
        _shard(llama)
    weights = SafetensorsWeights(llama)
    for name, tensor in (
        transformers.AutoModelForCausalLM.from_pretrained(llama).state_dict().items()
    ):
        assert name in weights
        np.testing.assert_array_equal(weights[name], tensor.numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensors_are_views_of_the_mapped_file(dtype: type, tmp_path: Path) -> None:
    values: np.ndarray = np.arange(12).reshape(3, 4).astype(dtype)
    save_file({"a": values, "b": values.T.copy()}, tmp_path / "model.safetensors")
    weights = SafetensorsWeights(tmp_path)
    (mapping,) = weights.mappings
    mapped = np.frombuffer(mapping, np.uint8)
    for name, expected in (("a", values), ("b", values.T)):
        assert weights[name].dtype == dtype
        assert np.shares_memory(weights[name], mapped)
        assert not weights[name].flags.writeable
        np.testing.assert_array_equal(weights[name], expected)


def test_unaligned_tensors_are_copied_to_where_native_code_can_read_them(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} '
    assert len(header) % 4
    data = np.array([1.5, -2], dtype=np.float32).tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    tensor = SafetensorsWeights(tmp_path)["a"]
    assert tensor.flags.aligned
    assert tensor.tolist() == [1.5, -2]


def test_missing_tensor_is_named(llama: Path) -> None:
    with pytest.raises(ModelError, match=r"no tensor model\.missing"):
        SafetensorsWeights(llama)["model.missing"]


def test_missing_shard_is_named(llama: Path) -> None:
    _shard(llama)
    shard = min(llama.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks {shard.name}"):
        SafetensorsWeights(llama)


def _write_index(folder: Path, weight_map: dict[str, object]) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/model.safetensors", "a/../../x", "", 3, None]
)
def test_shards_outside_the_folder_are_refused(file: object, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    _write_index(tmp_path / "inside", {"a": file})
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="weight_map"):
        SafetensorsWeights(tmp_path / "inside")


def test_shards_in_a_folder_within(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    save_file({"a": np.full(2, 7, np.float32)}, tmp_path / "shards" / "a.safetensors")
    _write_index(tmp_path, {"a": "shards/a.safetensors"})
    assert SafetensorsWeights(tmp_path)["a"].tolist() == [7, 7]


@pytest.mark.parametrize("shards_remain", [True, False])
def test_a_whole_file_counts_before_shards_and_their_index(
    shards_remain: bool, llama: Path
) -> None:
    whole = (llama / "model.safetensors").read_bytes()
    _shard(llama)
    for shard in llama.glob("*-of-*.safetensors"):
        if shards_remain:
            save_file({n: t * 2 for n, t in load_file(shard).items()}, shard, {"format": "pt"})
        else:
            shard.unlink()
    (llama / "model.safetensors").write_bytes(whole)
    weights = SafetensorsWeights(llama)
    for name, tensor in (
        transformers.AutoModelForCausalLM.from_pretrained(llama).state_dict().items()
    ):
        np.testing.assert_array_equal(weights[name], tensor.numpy())


@pytest.mark.parametrize("named", ["1.safetensors", "2.safetensors"])
def test_a_tensor_in_two_shards_is_that_of_the_one_the_index_names(
    named: str, tmp_path: Path
) -> None:
    for number in (1, 2):
        tensors = {"a": np.full(2, number, np.float32), f"b{number}": np.zeros(1, np.float32)}
        save_file(tensors, tmp_path / f"{number}.safetensors")
    _write_index(tmp_path, {"a": named, "b1": "1.safetensors", "b2": "2.safetensors"})
    assert SafetensorsWeights(tmp_path)["a"].tolist() == [int(named[0])] * 2


def test_unsupported_type_is_named(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, dtype=np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"tensor a .* type I8, supported are F32"):
        SafetensorsWeights(tmp_path)["a"]


def test_pytorch_files_alone_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pytorch files.*save_pretrained"):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model-00001-of-00002.safetensors"], r"but no model\.safetensors\.index\.json"),
        (["model.fp16.safetensors"], r"it has model\.fp16\.safetensors: supported is"),
        (["consolidated.safetensors"], r"it has consolidated\.safetensors: supported is"),
        (["adapter_model.safetensors", "x.bin"], "LoRA adapter.*merge it"),
        (["openvino_model.xml", "openvino_model.bin"], "OpenVINO model.*original folder"),
        (["onnx"], "ONNX model.*original folder"),
        (["pytorch_model.bin"], "pytorch files.*save_pretrained"),
        ([], r"has no model\.safetensors$"),
    ],
)
def test_the_error_has_what_a_folder_has_instead(
    names: list[str], message: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=message):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale"),
        *("weight_scale_inv", "weight.absmax", "SCB"),
    ],
)
def test_quantised_tensors_are_refused_by_name(name: str, llama: Path) -> None:
    path = llama / "model.safetensors"
    tensors = load_file(path)
    values = tensors.pop("model.layers.0.mlp.up_proj.weight").astype(np.int32)
    save_file({**tensors, f"model.layers.0.mlp.up_proj.{name}": values}, path)
    with pytest.raises(ModelError, match=f"up_proj.{name} of a quantisation .*config.json has no"):
        open_model(llama)


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "m.gguf"])
def test_the_error_about_a_git_lfs_pointer_has_the_remedy(name: str, llama: Path) -> None:
    (llama / name).write_bytes(_POINTER)
    read = open_tokenizer if name == "tokenizer.json" else open_model
    with pytest.raises(ModelError, match="pointer of git-lfs, run `git lfs pull`"):
        read(llama / name if name == "m.gguf" else llama)


@pytest.mark.parametrize("part", [0.0, 1e-5, 1e-4, 0.003, 0.01, 0.5, 0.999])
def test_truncated_file(part: float, llama: Path) -> None:
    path = llama / "model.safetensors"
    truncate(path, path, int(path.stat().st_size * part))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        SafetensorsWeights(llama)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"3",
        b'{"a": 3}',
        b'{"a": {}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}',
        b"\xff\xff",
    ],
)
def test_invalid_header(header: bytes, tmp_path: Path) -> None:
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        SafetensorsWeights(tmp_path)


@pytest.mark.parametrize("size", [10**8 + 1, 2**63, 2**64 - 1])
def test_forged_header_size(size: int, llama: Path) -> None:
    overwrite_u64(llama / "model.safetensors", 0, size)
    with pytest.raises(ModelError, match="truncated or not a safetensors file"):
        SafetensorsWeights(llama)


def test_weights_of_another_shape_than_in_the_config_are_refused(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(ModelError, match=r"gate_proj\.weight has shape \(96, 64\).*\(128, 64\)"):
        open_model(llama)


def test_weights_of_another_architecture_than_in_the_config_are_refused(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    changed = {**config, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    (llama / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelError, match=r"no tensor model\.layers\.0\.self_attn\.q_norm"):
        open_model(llama)
