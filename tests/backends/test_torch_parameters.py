"""Weights of the torch executor: joined projections, each part copied once into its rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sarathi.backends.torch import parameters as module
from sarathi.backends.torch.parameters import Parameters, ServedWeights, joined_tensors
from sarathi.backends.torch.torch_devices import as_tensor
from sarathi.models.decoder import whole_model
from sarathi.models.model import open_model
from sarathi.models.sharding import Shard, ShardedWeights, shard_shapes
from sarathi.models.weights import Array
from tests import tiny_models
from tests.tiny_gguf import write_gguf

CPU = torch.device("cpu")
F32 = torch.float32
ATTENTION = "model.layers.1.self_attn"
MLP = "model.layers.1.mlp"


def open_share(path: Path, shard: Shard) -> tuple[ShardedWeights, dict[str, tuple[int, ...]]]:
    model = open_model(path)
    shapes = dict(shard_shapes(model.config, whole_model(model.config), shard))
    return ShardedWeights(model.weights, model.config, shard), shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_models.save_tiny("llama-biases", path)
    return path


@pytest.fixture(scope="module", params=["safetensors", "gguf"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose checkpoint fuses the projections itself, and a file with biases of them."""
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "safetensors":
        tiny_models.save_tiny("phi3", path)
        return path
    tiny_models.save_tiny("qwen2", path)
    write_gguf(path, path / "model.gguf")
    return path / "model.gguf"


@pytest.mark.parametrize("shard", [Shard(), Shard(0, 2), Shard(1, 2), Shard(3, 4)], ids=str)
def test_tensors_by_name_are_those_of_the_checkpoint(checkpoint: Path, shard: Shard) -> None:
    weights, shapes = open_share(checkpoint, shard)
    served = ServedWeights(Parameters(weights, shapes, F32, CPU))
    for name, shape in shapes.items():
        assert served[name].shape == shape
        np.testing.assert_array_equal(served[name], weights[name])


@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.parametrize(
    ("joined", "parts"),
    [
        (f"{ATTENTION}.qkv_proj", [f"{ATTENTION}.{x}_proj" for x in "qkv"]),
        (f"{MLP}.gate_up_proj", [f"{MLP}.{x}_proj" for x in ("gate", "up")]),
    ],
)
def test_parts_are_rows_of_the_joined_tensor(
    folder: Path, joined: str, parts: list[str], kind: str
) -> None:
    weights, shapes = open_share(folder, Shard(1, 2))
    parameters = Parameters(weights, shapes, F32, CPU)
    found = parameters[f"{joined}.{kind}"]
    assert torch.equal(found, torch.cat([parameters[f"{part}.{kind}"] for part in parts]))
    storage = found.untyped_storage().data_ptr()
    for part in parts:
        assert parameters[f"{part}.{kind}"].untyped_storage().data_ptr() == storage


def test_an_mlp_without_a_gate_has_nothing_to_join() -> None:
    names = [f"{MLP}.up_proj.weight", f"{MLP}.down_proj.weight", f"{ATTENTION}.q_proj.weight"]
    assert joined_tensors(names) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_tensor_is_allocated_once(
    folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, shapes = open_share(folder, Shard())
    allocated: list[int] = []
    empty = torch.empty

    def counted(*arguments: object, **options: object) -> torch.Tensor:
        tensor = empty(*arguments, **options)
        allocated.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    monkeypatch.setattr(torch, "cat", None)
    parameters = Parameters(weights, shapes, dtype, CPU)
    expected = sum(map(math.prod, shapes.values())) * dtype.itemsize
    assert sum(allocated) == parameters.num_bytes == expected


def test_the_host_holds_one_part_at_a_time_for_another_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is one that keeps no data, so copies to it are all that the host allocates."""
    weights, shapes = open_share(folder, Shard())
    staged: list[tuple[int, ...]] = []

    def recorded(array: Array, dtype: torch.dtype) -> torch.Tensor:
        staged.append(array.shape)
        return as_tensor(array, dtype)

    monkeypatch.setattr(module, "as_tensor", recorded)
    parameters = Parameters(weights, shapes, F32, torch.device("meta"))
    assert sorted(staged) == sorted(shapes.values())
    assert parameters[f"{ATTENTION}.qkv_proj.weight"].device.type == "meta"


def test_progress_counts_every_part(folder: Path) -> None:
    weights, shapes = open_share(folder, Shard())
    shares: list[float] = []
    Parameters(weights, shapes, F32, CPU, shares.append)
    assert len(shares) == len(shapes)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
