from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from sarathi.errors import ModelError
from sarathi.models.decoder import whole_model
from sarathi.models.formats.gguf_file import GgufFile
from sarathi.models.locate import locate
from sarathi.models.model import open_model, open_tokenizer
from sarathi.models.tensor_layout import expected_shapes
from tests.tiny_gguf import GGUF_FAMILIES, write_gguf
from tests.tiny_models import overwrite_u64, save_tiny, truncate

_DEQUANTISED = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K"),
    *("Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0"),
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, with its GGUF twin model.gguf."""
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            save_tiny(family, folders[family])
            write_gguf(folders[family], folders[family] / "model.gguf")
        return folders[family]

    return folder


@pytest.fixture
def llama_gguf(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes((checkpoints("llama") / "model.gguf").read_bytes())
    return path


@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_gguf_describes_the_same_model_as_the_folder(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    folder = checkpoints(family)
    original, converted = open_model(folder), open_model(folder / "model.gguf")
    expected = dataclasses.asdict(original.config)
    found = dataclasses.asdict(converted.config)
    for rope in ("inv_freq", "local_inv_freq"):
        np.testing.assert_allclose(found.pop(rope), expected.pop(rope), rtol=1e-6)
    np.testing.assert_allclose(found.pop("norm_eps"), expected.pop("norm_eps"), rtol=1e-6)
    family_name = expected.pop("architecture").removesuffix("ForCausalLM").lower()
    assert found.pop("architecture") == family_name.replace("mistral", "llama")
    assert found == expected
    for name in expected_shapes(original.config, whole_model(original.config)):
        np.testing.assert_array_equal(converted.weights[name], original.weights[name])


def _single_tensor(path: Path, data: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("output_norm.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("quant", _DEQUANTISED)
def test_quantised_tensors_are_dequantised(quant: str, tmp_path: Path) -> None:
    from sarathi.models.formats.gguf_weights import read_tensor

    kind = gguf.GGMLQuantizationType[quant]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        values = random.normal(size=(3, 512)).astype(kind.name.replace("F", "float"))
        expected = values
        _single_tensor(tmp_path / "m.gguf", values, kind)
    else:
        # Small bytes: arbitrary ones would make block scales that are not finite.
        stored = random.integers(0, 60, size=(3, 512 // block * size), dtype=np.uint8)
        expected = gguf.quants.dequantize(stored, kind)
        _single_tensor(tmp_path / "m.gguf", stored, kind)
    found = read_tensor(GgufFile(tmp_path / "m.gguf"), "output_norm.weight")
    assert found.shape == (3, 512)
    np.testing.assert_array_equal(found.astype(np.float32), expected)


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_queries_of_quantised_files_have_their_rows_in_order(
    quant: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    write_gguf(folder, tmp_path / "m.gguf", quant)
    original, quantised = open_model(folder).weights, open_model(tmp_path / "m.gguf").weights
    for projection in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.1.self_attn.{projection}.weight"
        error = np.abs(quantised[name].astype(np.float32) - original[name].astype(np.float32)).max()
        assert 0 < error < 0.1


def test_unquantised_tensors_are_views_of_the_mapped_file(llama_gguf: Path) -> None:
    model = open_model(llama_gguf)
    (mapping,) = model.weights.mappings
    tensor = model.weights["model.layers.0.mlp.up_proj.weight"]
    assert np.shares_memory(tensor, np.frombuffer(mapping, np.uint8))


def test_names_that_the_file_lacks(llama_gguf: Path) -> None:
    weights = open_model(llama_gguf).weights
    for name in ("model.layers.9.mlp.up_proj.weight", "model.layers.0.mlp.x.weight", "x", ""):
        assert name not in weights
        with pytest.raises(ModelError, match="has no tensor"):
            weights[name]
    assert 3 not in weights


def test_smollm2(smollm2: Path) -> None:
    config = open_model(smollm2).config
    assert (config.num_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert config.tie_word_embeddings


@pytest.fixture
def smollm2() -> Path:
    return locate("smollm2-135m").path


def _write_metadata(path: Path, arch: str, add: Callable[[gguf.GGUFWriter], None]) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), dtype=np.float32))
    for write, value in (
        (writer.add_embedding_length, 64),
        (writer.add_block_count, 1),
        (writer.add_head_count, 4),
        (writer.add_feed_forward_length, 96),
        (writer.add_context_length, 100),
    ):
        write(value)
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_long_rope_factors(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_factors_long.weight", np.ones(8, np.float32))


def _add_window_pattern(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(9)
    writer.add_sliding_window_pattern([True, False])


@pytest.mark.parametrize(
    ("arch", "add", "message"),
    [
        ("mamba", lambda w: None, "general.architecture is 'mamba', supported are llama"),
        ("llama", lambda w: w.add_uint16("split.count", 2), "split GGUF"),
        ("llama", lambda w: w.add_type("adapter"), "'adapter'.*merge an adapter into its base"),
        ("llama", lambda w: w.add_type("mmproj"), "general.type is 'mmproj', expected a model"),
        ("llama", lambda w: w.add_expert_count(8), "expert_count"),
        ("llama", lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "'yarn'"),
        ("phi3", _add_long_rope_factors, "longrope"),
        ("llama", lambda w: w.add_rope_dimension_count(8), "rotary embedding covers 8 of 16"),
        ("llama", lambda w: w.add_head_count_kv([4, 2]), "head_count_kv differs"),
        ("llama", lambda w: w.add_head_count_kv(0), "head_count_kv is 0"),
        ("llama", lambda w: w.add_value_length(8), "different length"),
        ("llama", _add_window_pattern, "sliding_window_pattern must be a list of 1 booleans"),
        ("llama", lambda w: w.add_rope_freq_base(float("nan")), "freq_base is not a finite"),
        ("llama", lambda w: w.add_rope_freq_base(-1), "freq_base is -1"),
        ("llama", lambda w: w.add_rope_freq_base(1e-38), "freq_base is 1e-38"),
        ("llama", lambda w: w.add_rope_scaling_factor(1e-38), "scaling.factor 1e-38"),
        ("llama", lambda w: w.add_string("llama.rope.freq_base", "x"), "is not a number"),
        ("llama", lambda w: None, "no tensor output_norm"),
        ("falcon", lambda w: None, "no tensor output_norm"),
    ],
)
def test_metadata_that_cannot_be_served_is_named(
    arch: str, add: Callable[[gguf.GGUFWriter], None], message: str, tmp_path: Path
) -> None:
    path = _write_metadata(tmp_path / "m.gguf", arch, add)
    with pytest.raises(ModelError, match=message):
        open_model(path)


def test_linear_scaling_divides_frequencies(tmp_path: Path) -> None:
    from sarathi.models.formats.gguf_config import read_config

    plain = _write_metadata(tmp_path / "a.gguf", "llama", lambda w: None)
    old = _write_metadata(
        tmp_path / "b.gguf", "llama", lambda w: w.add_float32("llama.rope.scale_linear", 4.0)
    )
    expected = np.array(read_config(GgufFile(plain)).inv_freq) / 4
    np.testing.assert_array_equal(read_config(GgufFile(old)).inv_freq, expected)


@pytest.mark.parametrize(
    ("window", "pattern", "expected"),
    [
        (9, None, (9, 9, 9, 9)),
        (9, [True, False, True, False], (9, 0, 9, 0)),
        (9, [1, 0, 0, 1], (9, 0, 0, 9)),
        # One number n: the last of n layers does not slide.
        (9, 2, (9, 0, 9, 0)),
        (9, 3, (9, 9, 0, 9)),
        (9, 1, (0, 0, 0, 0)),
        (0, [True] * 4, (0, 0, 0, 0)),
        (2**32 - 1, None, (0, 0, 0, 0)),
    ],
)
def test_which_layers_slide(
    window: int, pattern: list[Any] | int | None, expected: tuple[int, ...], tmp_path: Path
) -> None:
    from sarathi.models.formats.gguf_config import read_config

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(4)
        writer.add_uint32("llama.attention.sliding_window", window)
        key = "llama.attention.sliding_window_pattern"
        if isinstance(pattern, list):
            writer.add_array(key, pattern)
        elif pattern is not None:
            writer.add_uint32(key, pattern)

    path = _write_metadata(tmp_path / "m.gguf", "llama", add)
    assert read_config(GgufFile(path)).sliding_windows == expected


@pytest.mark.parametrize("size", [*range(0, 40, 3), 100, 1000, 3000, 5000, 6000, 9000, 50_000])
def test_truncated_file(size: int, llama_gguf: Path) -> None:
    assert size < llama_gguf.stat().st_size
    truncate(llama_gguf, llama_gguf, size)
    with pytest.raises(ModelError, match=r"model\.gguf"):
        open_model(llama_gguf)


def test_file_that_lacks_its_last_bytes(llama_gguf: Path) -> None:
    # The writer pads the last tensor, which the reader does not need.
    truncate(llama_gguf, llama_gguf, llama_gguf.stat().st_size - 64)
    with pytest.raises(ModelError, match="truncated: tensor"):
        open_model(llama_gguf)


@pytest.mark.parametrize("offset", [8, 16, 24])
@pytest.mark.parametrize("value", [2**20, 2**31, 2**63 - 1, 2**64 - 1])
def test_forged_counts(offset: int, value: int, llama_gguf: Path) -> None:
    overwrite_u64(llama_gguf, offset, value)
    with pytest.raises(ModelError, match=r"model\.gguf"):
        open_model(llama_gguf)


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_other_versions_and_byte_orders(version: int, llama_gguf: Path) -> None:
    data = bytearray(llama_gguf.read_bytes())
    struct.pack_into("<I", data, 4, version)
    llama_gguf.write_bytes(data)
    with pytest.raises(ModelError, match="big-endian" if version > 4 else f"version {version}"):
        open_model(llama_gguf)


def test_wrong_magic(llama_gguf: Path) -> None:
    llama_gguf.write_bytes(b"GGML" + llama_gguf.read_bytes()[4:])
    with pytest.raises(ModelError, match="does not begin with GGUF"):
        open_model(llama_gguf)


def test_damaged_headers_never_raise_anything_else(llama_gguf: Path) -> None:
    original = llama_gguf.read_bytes()
    random = np.random.default_rng(0)
    header_size = min(place.offset for place in GgufFile(llama_gguf).tensors.values())
    for _ in range(300):
        data = bytearray(original)
        for at in random.integers(0, header_size, size=4):
            data[at] = random.integers(256)
        llama_gguf.write_bytes(data)
        for read in (open_model, open_tokenizer):
            try:
                read(llama_gguf)
            except ModelError:
                continue


def test_folder_without_config_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    for path in (tmp_path / "x.bin", tmp_path / "missing.gguf"):
        with pytest.raises(ModelError, match=r"neither a folder nor a GGUF file"):
            open_model(path)
