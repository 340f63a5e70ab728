"""What ranks read of a checkpoint, and that they compute the whole model together."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sarathi.backends.reference import F32, I64, _NumpyOperations, capped, reference
from sarathi.errors import ModelError
from sarathi.models.decoder import EMBEDDING, forward, head_of, pipeline_stages, whole_model
from sarathi.models.formats import checkpoint_files as mapping
from sarathi.models.formats import gguf_weights, huggingface_checkpoint
from sarathi.models.locate import locate
from sarathi.models.model import Model, open_model
from sarathi.models.model_config import ModelConfig
from sarathi.models.sharding import Shard, ShardedWeights, shard_config, shard_shapes, vocabulary
from sarathi.models.tensor_layout import expected_shapes
from sarathi.models.weights import Array
from tests.tiny_gguf import GGUF_FAMILIES, write_gguf
from tests.tiny_models import FAMILIES, save_tiny

Checkpoints = Callable[[str, str], Model]
_IDS = [5, 250, 17, 99, 0, 131, 64, 200]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A family's checkpoint as "safetensors" or as GGUF of a type, "Q8_0"."""
    folders: dict[str, Path] = {}

    def opened(family: str, stored: str) -> Model:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            save_tiny(family, folders[family])
        if stored == "safetensors":
            return open_model(folders[family])
        path = folders[family] / f"{stored}.gguf"
        if not path.exists():
            write_gguf(folders[family], path, stored)
        return open_model(path)

    return opened


def counts(config: ModelConfig) -> list[int]:
    possible = []
    for count in (2, 3, 4, 5):
        try:
            shard_config(config, count)
        except ModelError:
            continue
        possible.append(count)
    return possible


def ranks(model: Model, count: int) -> list[ShardedWeights]:
    return [ShardedWeights(model.weights, model.config, Shard(r, count)) for r in range(count)]


def joined(config: ModelConfig, name: str, parts: list[Array]) -> Array:
    """The whole tensor from those of all ranks."""
    module, kind = name.rsplit(".", 2)[-2:]
    if module in ("k_proj", "v_proj"):
        same = max(1, len(parts) // config.num_kv_heads)
        for rank, part in enumerate(parts):
            np.testing.assert_array_equal(part, parts[rank // same * same])
        return np.concatenate(parts[::same])
    if module in ("q_proj", "gate_proj", "up_proj"):
        return np.concatenate(parts)
    if module in ("o_proj", "down_proj"):
        return np.sum(parts, axis=0) if kind == "bias" else np.concatenate(parts, axis=1)
    if name in (EMBEDDING, head_of(config)):
        rows = np.concatenate(parts)
        assert not rows[config.vocab_size :].any()
        return rows[: config.vocab_size]
    for part in parts:
        np.testing.assert_array_equal(part, parts[0])
    return parts[0]


@pytest.mark.parametrize(
    ("family", "stored"),
    [
        *((family, "safetensors") for family in FAMILIES),
        *((family, "F32") for family in GGUF_FAMILIES),
        *((family, "Q8_0") for family in ("llama", "qwen2", "phi3", "falcon-40b")),
        ("llama", "BF16"),
    ],
)
def test_the_shares_of_all_ranks_are_the_whole(
    family: str, stored: str, checkpoints: Checkpoints
) -> None:
    model = checkpoints(family, stored)
    config = model.config
    assert counts(config)
    for count in counts(config):
        shares = ranks(model, count)
        for name, expected in expected_shapes(config, whole_model(config)).items():
            parts = [share[name] for share in shares]
            for rank, (share, part) in enumerate(zip(shares, parts, strict=True)):
                local = shard_shapes(config, whole_model(config), Shard(rank, count))[name]
                assert part.shape == share.shape(name) == local
            tensor = model.weights[name]
            assert tensor.shape == expected
            assert {part.dtype for part in parts} == {tensor.dtype}
            np.testing.assert_array_equal(joined(config, name, parts), tensor)


def test_three_ranks_of_the_demo_model() -> None:
    model = open_model(locate("smollm2-135m").path)
    shares = ranks(model, 3)
    names = [
        name for name in expected_shapes(model.config, whole_model(model.config)) if ".7." in name
    ]
    for name in names:
        parts = [share[name] for share in shares]
        np.testing.assert_array_equal(joined(model.config, name, parts), model.weights[name])
    embedding = model.weights.part(EMBEDDING, slice(16384, 32768))
    np.testing.assert_array_equal(shares[1][EMBEDDING], embedding)


@pytest.mark.parametrize("stored", ["safetensors", "F32", "Q4_1"])
@pytest.mark.parametrize("family", ["llama-tied", "phi3", "falcon-40b"])
def test_parts_of_tensors(family: str, stored: str, checkpoints: Checkpoints) -> None:
    model = checkpoints(family, stored)
    share = ShardedWeights(model.weights, model.config, Shard(1, 2))
    random = np.random.default_rng(0)
    for weights in (model.weights, share):
        for name in expected_shapes(model.config, whole_model(model.config)):
            tensor = weights[name]
            for _ in range(8):
                ranges = [sorted(random.integers(0, size + 1, 2)) for size in tensor.shape]
                index = tuple(slice(int(start), int(stop)) for start, stop in ranges)
                found = weights.part(name, *index)
                np.testing.assert_array_equal(found, tensor[index])
                assert found.flags.c_contiguous
                assert found.dtype == tensor.dtype
            np.testing.assert_array_equal(weights.part(name), tensor)


def test_rows_are_views_and_columns_are_not(checkpoints: Checkpoints) -> None:
    for stored in ("safetensors", "F32"):
        model = checkpoints("phi3", stored)
        file = np.frombuffer(model.weights.mappings[0], np.uint8)
        for share in ranks(model, 2):
            for name in expected_shapes(model.config, whole_model(model.config)):
                plain = not name.endswith(("o_proj.weight", "down_proj.weight"))
                assert np.shares_memory(share[name], file) == plain
                assert share.stored_dtype(name) == (np.float32 if plain else None)


def test_a_single_rank_has_all_tensors_unchanged(checkpoints: Checkpoints) -> None:
    model = checkpoints("llama-biases", "safetensors")
    (share,) = ranks(model, 1)
    assert vocabulary(model.config, Shard()) == range(256)
    for name in expected_shapes(model.config, whole_model(model.config)):
        assert name in share
        assert np.shares_memory(share[name], model.weights[name])
        assert share.stored_dtype(name) == np.float32
    assert share.mappings == model.weights.mappings
    with pytest.raises(ModelError, match=r"no tensor model\.x"):
        share["model.x"]


@pytest.mark.parametrize(("vocab_size", "count"), [(256, 3), (257, 4), (9, 4), (2, 4)])
def test_vocabulary_that_cannot_be_shared_out_equally(
    vocab_size: int, count: int, checkpoints: Checkpoints
) -> None:
    config = dataclasses.replace(
        checkpoints("llama", "safetensors").config, vocab_size=vocab_size, num_heads=12
    )
    config = dataclasses.replace(config, num_kv_heads=12)
    shards = [Shard(rank, count) for rank in range(count)]
    ids = [token for shard in shards for token in vocabulary(config, shard)]
    assert ids == list(range(vocab_size))
    rows = {shard_shapes(config, whole_model(config), shard)[EMBEDDING][0] for shard in shards}
    assert rows == {-(-vocab_size // count)}


def test_ranks_that_cannot_share_the_heads(checkpoints: Checkpoints) -> None:
    model = checkpoints("llama", "safetensors")
    with pytest.raises(ModelError, match="4 heads cannot be shared out equally to 3 ranks"):
        ShardedWeights(model.weights, model.config, Shard(0, 3))
    with pytest.raises(ModelError, match="to 8 ranks"):
        shard_shapes(model.config, whole_model(model.config), Shard(0, 8))


class _Meeting:
    """Where ranks, a thread each, show one another what they have."""

    def __init__(self, count: int) -> None:
        self._shown: list[F32 | None] = [None] * count
        self._barrier = threading.Barrier(count, timeout=30)

    def exchange(self, rank: int, mine: F32) -> list[F32]:
        self._shown[rank] = mine
        self._barrier.wait()
        shown = [x for x in self._shown if x is not None]
        self._barrier.wait()
        return shown


class _RankOperations(_NumpyOperations):
    """Those of the reference, for one rank of many."""

    def __init__(
        self, model: Model, shard: Shard, meeting: _Meeting, hidden: F32 | None = None
    ) -> None:
        weights = ShardedWeights(model.weights, model.config, shard)
        ids: I64 = np.array(_IDS, np.int64)
        local = shard_config(model.config, shard.count)
        super().__init__(local, weights, ids, hidden, np.array([len(ids)]))
        self._rank = shard.rank
        self._vocabulary = vocabulary(model.config, shard)
        self._meeting = meeting

    def embed(self, weight: str) -> F32:
        first, last = self._vocabulary.start, self._vocabulary.stop - 1
        rows: F32 = self._weight(weight)[self._ids.clip(first, last) - first]
        rows[(self._ids < first) | (self._ids > last)] = 0
        return self.reduce(rows) * np.float32(self._config.embedding_scale)

    def reduce(self, x: F32) -> F32:
        total: F32 = np.sum(self._meeting.exchange(self._rank, x), axis=0)
        return total

    def logits(self, x: F32, weight: str) -> F32:
        shown = self._meeting.exchange(self._rank, self._product(x, weight))
        whole = np.concatenate(shown, axis=-1)[:, : self._config.vocab_size]
        return capped(whole, self._config.logit_soft_cap)


def computed_together(model: Model, count: int, num_stages: int = 1) -> list[F32]:
    """The logits that each rank has in the end."""
    found: list[F32 | None] = [None] * count
    for stage in pipeline_stages(model.config, num_stages):
        meeting = _Meeting(count)
        operations = [
            _RankOperations(model, Shard(rank, count), meeting, found[rank])
            for rank in range(count)
        ]
        local = shard_config(model.config, count)
        with ThreadPoolExecutor(count) as pool:
            found = list(pool.map(partial(forward, config=local, stage=stage), operations))
    return [x for x in found if x is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_compute_the_whole_model_together(family: str, checkpoints: Checkpoints) -> None:
    model = checkpoints(family, "safetensors")
    expected = reference(model.config, whole_model(model.config), model.weights, _IDS)
    tolerance = 1e-4 * float(np.ptp(expected))
    for count in counts(model.config):
        for logits in computed_together(model, count):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("family", "stored"), [("falcon-180b", "F32"), ("llama3", "Q8_0")])
def test_ranks_of_every_stage_of_a_pipeline(
    family: str, stored: str, checkpoints: Checkpoints
) -> None:
    model = checkpoints(family, stored)
    expected = reference(model.config, whole_model(model.config), model.weights, _IDS)
    tolerance = 1e-4 * float(np.ptp(expected))
    for logits in computed_together(model, 2, num_stages=3):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("stored", ["safetensors", "F32", "Q8_0"])
@pytest.mark.parametrize(
    ("family", "count"), [("llama-tied", 2), ("phi3", 2), ("falcon-40b", 4), ("falcon-180b", 2)]
)
def test_ranks_ask_for_no_byte_twice(
    family: str, count: int, stored: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoints(family, stored)
    times = np.zeros(len(model.weights.mappings[0]), np.int64)

    def request(file: object, start: int, size: int) -> None:
        times[start : start + size] += 1

    monkeypatch.setattr(mapping, "request", request)
    monkeypatch.setattr(mapping, "_PAGE", 1)  # rows that share a page are requested together
    monkeypatch.setattr(mapping, "_BATCH", 1000)
    shapes = expected_shapes(model.config, whole_model(model.config))
    names = [name for name in shapes if "norm" not in name and not name.endswith(".bias")]
    for name in names:
        model.weights.part(name)
    assert times.max() == 1
    everything, seen = times > 0, times < 0
    times[:] = 0
    shares = ranks(model, count)
    for name in names:
        for share in shares:
            share[name]
        # Quantised blocks that a cut goes through are needed on both sides of it.
        is_cut = stored == "Q8_0" and shares[0].shape(name)[1] % 32
        assert times.max() == (2 if is_cut else 1)
        seen |= times > 0
        times[:] = 0
    np.testing.assert_array_equal(seen, everything)


@pytest.mark.parametrize(("family", "stored"), [("llama", "safetensors"), ("phi3", "Q8_0")])
def test_opening_reads_no_tensor(
    family: str, stored: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints(family, stored)

    def refuse(*arguments: object) -> Array:
        raise AssertionError("a tensor is read")

    for module in (huggingface_checkpoint, gguf_weights):
        monkeypatch.setattr(module, "mapped_array", refuse)
        monkeypatch.setattr(module, "read_part", refuse)
    model = checkpoints(family, stored)
    for share in ranks(model, 2):
        share.shape(EMBEDDING)
    with pytest.raises(AssertionError, match="is read"):
        model.weights[EMBEDDING]
