"""Folders of AWQ, GPTQ, compressed-tensors and FP8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sarathi.errors import ModelError
from sarathi.models.model import open_model
from tests.tiny_models import save_tiny
from tests.tiny_quantized import SCHEMES, load, quantised, write_config

LAYER = "model.layers.1"
UP = f"{LAYER}.mlp.up_proj"
DOWN = f"{LAYER}.mlp.down_proj.weight"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_matrices_are_what_the_integers_stand_for(scheme: str, tmp_path: Path) -> None:
    plain = quantised(scheme, tmp_path)
    weights = open_model(tmp_path).weights
    for name, expected in plain.items():
        assert weights.shape(name) == expected.shape
        np.testing.assert_array_equal(weights[name], expected)
        np.testing.assert_array_equal(weights.part(name), expected)
        assert weights[name].dtype == np.float32
        kind = SCHEMES[scheme].kind if f"{LAYER[:13]}" in name and expected.ndim == 2 else "F32"
        assert weights.stored_type(name) == kind
        assert weights.stored_dtype(name) == (None if kind != "F32" else np.float32)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_of_matrices(scheme: str, tmp_path: Path) -> None:
    expected = quantised(scheme, tmp_path)[DOWN]
    weights = open_model(tmp_path).weights
    for rows in (slice(0, 1), slice(3, 30), slice(17, 64), slice(8, 16), slice(5, 5)):
        for columns in (slice(None), slice(7, 41)):
            found = weights.part(DOWN, rows, columns)
            np.testing.assert_array_equal(found, expected[rows, columns])
            assert found.flags.c_contiguous


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_form_is_the_stored_one(scheme: str, tmp_path: Path) -> None:
    expected = quantised(scheme, tmp_path)[f"{UP}.weight"]
    weights = open_model(tmp_path).weights
    form, name = weights.form(f"{UP}.weight"), SCHEMES[scheme].form
    assert (None if form is None else str(form)) == name
    if form is None:
        with pytest.raises(ModelError, match="no integer form"):
            weights.quantized(f"{UP}.weight")
        return
    for rows in (slice(None), slice(3, 30), slice(40, 96)):
        found = weights.quantized(f"{UP}.weight", rows)
        assert found.form == form
        assert found.values.dtype == (np.int8 if form.zero == "none" else np.uint8)
        np.testing.assert_array_equal(found.dequantized(), expected[rows])
        if found.zeros is not None:
            assert 0 <= found.zeros.min() <= found.zeros.max() < 2**form.bits
            np.testing.assert_array_equal(found.zeros, np.rint(found.zeros))


@pytest.mark.parametrize("family", ["phi3", "falcon-7b", "falcon-40b", "falcon-11b"])
@pytest.mark.parametrize("scheme", ["awq-row", "gptq-zeros", "int4-zeros", "int8", "fp8-blocks"])
def test_fused_matrices(scheme: str, family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path / "original", 2)
    original = open_model(tmp_path / "original")
    plain = quantised(scheme, tmp_path / "quantised", family)
    save_file(plain, tmp_path / "original" / "model.safetensors")
    original, found = open_model(tmp_path / "original"), open_model(tmp_path / "quantised")
    assert found.config == original.config
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        name = f"{LAYER}.self_attn.{projection}.weight"
        np.testing.assert_array_equal(found.weights[name], original.weights[name])
        rows = slice(3, 14)
        np.testing.assert_array_equal(
            found.weights.part(name, rows), original.weights.part(name, rows)
        )
        if found.weights.form(name) is not None:
            np.testing.assert_array_equal(
                found.weights.quantized(name, rows).dequantized(), original.weights[name][rows]
            )


def test_a_quantised_head_counts_though_the_configuration_ties_it(tmp_path: Path) -> None:
    plain = quantised("gptq", tmp_path, head=True)
    write_config(tmp_path, tie_word_embeddings=True)
    model = open_model(tmp_path)
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.weights["lm_head.weight"], plain["lm_head.weight"])


def test_a_tied_model_has_no_head(tmp_path: Path) -> None:
    quantised("int4", tmp_path, "llama-tied")
    assert open_model(tmp_path).config.tie_word_embeddings


def test_modules_of_any_kind_in_one_folder(tmp_path: Path) -> None:
    plain = quantised("int4", tmp_path)
    tensors = load(tmp_path)
    tensors = {n: t for n, t in tensors.items() if not n.startswith((UP, f"{LAYER}.self_attn.k"))}
    parts, plain[f"{UP}.weight"] = SCHEMES["int8"].pack(np.random.default_rng(0), 96, 64)
    tensors |= {f"{UP}.{name}": part for name, part in parts.items()}
    key = f"{LAYER}.self_attn.k_proj.weight"
    tensors[key] = plain[key] = np.ones((32, 64), np.float32)
    # Scales of a quantised KV cache.
    tensors[f"{LAYER}.self_attn.k_scale"] = np.ones(1, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    weights = open_model(tmp_path).weights
    for name, expected in plain.items():
        np.testing.assert_array_equal(weights[name], expected)
    assert str(weights.form(f"{UP}.weight")) == "int8g64"
    assert weights.form(key) is None


def test_biases_of_zeros_that_gptq_adds_make_no_difference(tmp_path: Path) -> None:
    quantised("gptq", tmp_path)
    _edit(tmp_path, lambda tensors: tensors.update({f"{UP}.bias": np.zeros(96, np.float16)}))
    open_model(tmp_path)


def _edit(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _config(scheme: str, **changes: Any) -> dict[str, Any]:
    return {**SCHEMES[scheme].config, **changes}


def _scheme_of_weights(**changes: Any) -> dict[str, Any]:
    config = dict(SCHEMES["int4"].config)
    group = config["config_groups"]["group_0"]
    weights = {**group["weights"], **changes}
    return {**config, "config_groups": {"group_0": {**group, "weights": weights}}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(
            (
                {"quant_method": name, "bits": 4},
                f"quantization_config: quant_method is '{name}', expected awq, gptq, "
                "compressed-tensors or fp8",
            )
            for name in (
                *("bitsandbytes", "hqq", "aqlm", "quanto", "torchao", "eetq", "mxfp4", "quark"),
                *("auto-round", "modelopt", "AWQ", ""),
            )
        ),
        ({"load_in_4bit": True}, "quant_method is None"),
        ({"quant_method": ["awq"]}, "quant_method is"),
        ("awq", "quantization_config is 'awq', expected an object"),
        (_config("awq", bits=3), "quantization_config: bits is 3, expected 4"),
        (_config("awq", bits=None), "bits is None, expected 4"),
        (_config("awq", version="gemv_fast"), "version is 'gemv_fast', expected gemm"),
        (_config("awq", zero_point=False), "zero_point is False, expected true"),
        (_config("awq", group_size="all"), "group_size is 'all'"),
        (_config("gptq", bits=2), "bits is 2, expected 4 or 8"),
        (_config("gptq", bits=3), "bits is 3, expected 4 or 8"),
        (_config("gptq", bits=True), "bits is True"),
        (_config("gptq", sym="yes"), "sym is 'yes'"),
        (_config("gptq", checkpoint_format="marlin"), "checkpoint_format is 'marlin', expected"),
        (_config("gptq", format="gptq_p"), "format is 'gptq_p', expected gptq or gptq_v2"),
        (_config("gptq", is_marlin_format=True), "is_marlin_format is True"),
        (_config("gptq", rotation="hadamard"), "rotation is 'hadamard', expected none"),
        (_config("gptq", adapter={"name": "eora"}), "adapter is"),
        (_config("gptq", pack_dtype="int16"), "pack_dtype is 'int16', expected int32"),
        (_config("gptq", dynamic={"+:.*k_proj": {"bits": 8}}), "dynamic is .*only rules"),
        (_config("int4", format="marlin-24"), "format is 'marlin-24', expected one of pack-quan"),
        (_config("int4", format="nvfp4-pack-quantized"), "format is 'nvfp4-pack-quantized'"),
        (_config("int4", format="dense"), "format is 'dense'"),
        (_config("int4", config_groups={}), "config_groups is {}"),
        (_config("int4", config_groups={"W8A8": ["Linear"]}), "config_groups: W8A8 is"),
        (_config("int4", sparsity_config={"format": "sparse-24-bitmask"}), "format is 'sparse-24"),
        (_config("int4", transform_config={"config_groups": {"R1": {}}}), "transform_config is"),
        (_scheme_of_weights(num_bits=6), "weights: num_bits is 6, expected 4 or 8"),
        (_scheme_of_weights(type="float"), "weights: num_bits is 4, expected 8"),
        (_scheme_of_weights(type="complex"), "weights: type is 'complex'"),
        (_scheme_of_weights(block_structure=[3]), "block_structure is"),
        (_config("fp8-blocks", fmt="e5m2"), "fmt is 'e5m2', expected e4m3"),
        (_config("fp8-blocks", weight_block_size=[128, 0]), "weight_block_size is"),
        (_config("fp8-blocks", weight_block_size="128"), "weight_block_size is '128'"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(
    config: object, message: str, tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path)
    write_config(tmp_path, quantization_config=config)
    with pytest.raises(ModelError, match=f"config.json: .*{message}"):
        open_model(tmp_path)


def test_skipped_modules_of_gptq_have_rules(tmp_path: Path) -> None:
    quantised("gptq", tmp_path)
    write_config(tmp_path, quantization_config=_config("gptq", dynamic={r"-:.*lm_head": {}}))
    open_model(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        ("awq", r"down_proj\.qweight of a quantisation \(AWQ or GPTQ\)"),
        ("gptq", r"down_proj\.g_idx of a quantisation \(GPTQ\)"),
        ("int4", r"down_proj\.weight_packed of a quantisation \(compressed-tensors\)"),
        ("int8", r"weight_scale of a quantisation \(compressed-tensors or FP8\)"),
        ("fp8-blocks", r"weight_scale_inv of a quantisation \(compressed-tensors or FP8\)"),
    ],
)
@pytest.mark.parametrize("config", [None, {}])
def test_quantised_tensors_that_the_config_does_not_mention(
    config: object, scheme: str, method: str, tmp_path: Path
) -> None:
    quantised(scheme, tmp_path)
    write_config(tmp_path, quantization_config=config)
    with pytest.raises(ModelError, match=f"{method}, but the config.json has no quantization_conf"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "tensors"),
    [
        ("awq", r"\*\.qweight"),
        ("gptq", r"\*\.qweight"),
        ("int4", r"\*\.weight_packed or \*\.weight_scale"),
        ("fp8-blocks", r"\*\.weight_scale_inv or \*\.weight_scale"),
    ],
)
def test_tensors_that_are_not_quantised(scheme: str, tensors: str, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    write_config(tmp_path, quantization_config=SCHEMES[scheme].config)
    method = SCHEMES[scheme].config["quant_method"]
    with pytest.raises(ModelError, match=f"says {method}, but there is no tensor {tensors}: remo"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "others"),
    [("awq", "gptq"), ("gptq", "awq"), ("int4", "gptq"), ("awq", "int8"), ("fp8-blocks", "awq")],
)
def test_tensors_of_another_method(scheme: str, others: str, tmp_path: Path) -> None:
    quantised(others, tmp_path)
    write_config(tmp_path, quantization_config=SCHEMES[scheme].config)
    with pytest.raises(
        ModelError, match=r"tensor \*?.*\.(qweight|scales|weight_packed|weight_scale)"
    ):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "part"),
    [
        *(("awq", part) for part in ("qzeros", "scales")),
        *(("gptq", part) for part in ("qzeros", "scales")),
        ("gptq-act-order", "g_idx"),
        *(("int4", part) for part in ("weight_scale", "weight_shape")),
        ("int4-act-order", "weight_g_idx"),
        *(("int8", part) for part in ("weight",)),
        *(("fp8-blocks", part) for part in ("weight",)),
    ],
)
def test_a_missing_part_of_a_matrix_is_named(scheme: str, part: str, tmp_path: Path) -> None:
    quantised(scheme, tmp_path)
    _edit(tmp_path, lambda tensors: tensors.pop(f"{UP}.{part}"))
    with pytest.raises(ModelError, match=rf"has no tensor {UP}\.{part}$"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "part"),
    [
        *(("awq", part) for part in ("qweight", "qzeros", "scales")),
        *(("gptq", part) for part in ("qweight", "qzeros", "scales", "g_idx")),
        *(
            ("int4-zeros", part)
            for part in ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
        ),
        *(("int8-zeros", part) for part in ("weight_scale", "weight_zero_point")),
        *(("fp8-blocks", part) for part in ("weight_scale_inv",)),
    ],
)
@pytest.mark.parametrize("change", ["shorter", "flat", "another type"])
def test_parts_that_do_not_fit(scheme: str, part: str, change: str, tmp_path: Path) -> None:
    quantised(scheme, tmp_path)

    def cut(tensors: dict[str, np.ndarray]) -> None:
        tensor = tensors[f"{UP}.{part}"]
        if change == "another type":
            tensors[f"{UP}.{part}"] = tensor.astype(np.float64)
        else:
            tensors[f"{UP}.{part}"] = tensor[:-1] if change == "shorter" else tensor.reshape(1, -1)

    _edit(tmp_path, cut)
    with pytest.raises(ModelError, match=rf"tensor {UP}\.({part}|scales|qzeros|g_idx|weight) "):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "size", "message"),
    [
        ("awq", 16, "has 3 scales for the 96 columns .* groups of 16"),
        ("awq", -1, "has 3 scales .* groups of all columns"),
        ("gptq", 16, r"scales of type F16 has shape \(3, 64\), expected \(6, 64\)"),
        ("gptq", -1, r"scales of type F16 has shape \(3, 64\), expected \(1, 64\)"),
    ],
)
def test_groups_of_another_size(scheme: str, size: int, message: str, tmp_path: Path) -> None:
    quantised(scheme, tmp_path)
    write_config(tmp_path, quantization_config=_config(scheme, group_size=size))
    with pytest.raises(ModelError, match=message):
        open_model(tmp_path)


def test_groups_that_do_not_divide(tmp_path: Path) -> None:
    """Two groups of 64 and 32 columns could be taken for two of 48."""
    quantised("int4", tmp_path)
    write_config(tmp_path, quantization_config=_scheme_of_weights(group_size=64))

    def merge(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors.keys() & {n for n in tensors if n.endswith("weight_scale")}:
            tensors[name] = tensors[name][:, : -(-tensors[name].shape[1] * 32 // 64)].copy()

    _edit(tmp_path, merge)
    message = "down_proj.weight_scale has 2 scales for the 96 columns .* groups of 64"
    with pytest.raises(ModelError, match=message):
        open_model(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("scheme", "part"),
    [
        ("awq", "scales"),
        ("gptq", "scales"),
        ("gptq-act-order", "scales"),
        ("int4", "weight_scale"),
        ("int8", "weight_scale"),
        ("fp8-blocks", "weight_scale_inv"),
        ("fp8-tensor", "weight_scale"),
    ],
)
def test_scales_that_are_no_numbers(scheme: str, part: str, value: float, tmp_path: Path) -> None:
    quantised(scheme, tmp_path)

    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{UP}.{part}"] = tensors[f"{UP}.{part}"].copy()
        tensors[f"{UP}.{part}"].flat[-1] = value

    _edit(tmp_path, damage)
    weights = open_model(tmp_path).weights
    with pytest.raises(ModelError, match=rf"tensor {UP}\.{part} of type B?F\d\d .*not a number"):
        weights[f"{UP}.weight"]


def test_fp8_values_that_are_no_numbers(tmp_path: Path) -> None:
    quantised("fp8-blocks", tmp_path)

    def damage(tensors: dict[str, np.ndarray]) -> None:
        values = tensors[f"{UP}.weight"].copy()
        values[3, 5] = ml_dtypes.float8_e4m3fn(np.nan)
        tensors[f"{UP}.weight"] = values

    _edit(tmp_path, damage)
    weights = open_model(tmp_path).weights
    with pytest.raises(ModelError, match=rf"tensor {UP}\.weight of type F8_E4M3 .*not a number"):
        weights[f"{UP}.weight"]


@pytest.mark.parametrize("group", [-1, 2])
@pytest.mark.parametrize(
    ("scheme", "part"), [("gptq", "g_idx"), ("int4-act-order", "weight_g_idx")]
)
def test_columns_of_a_group_that_does_not_exist(
    scheme: str, part: str, group: int, tmp_path: Path
) -> None:
    quantised(scheme, tmp_path)

    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{UP}.{part}"] = np.array([group] + [0] * 63, np.int32)

    _edit(tmp_path, damage)
    with pytest.raises(ModelError, match=rf"{UP}\.{part} has groups from .* numbers below 2"):
        open_model(tmp_path)


def test_zero_points_that_are_not_symmetric(tmp_path: Path) -> None:
    quantised("gptq-zeros", tmp_path)
    write_config(tmp_path, quantization_config=_config("gptq"))
    weights = open_model(tmp_path).weights
    with pytest.raises(ModelError, match=rf"{UP}\.qzeros .* zero points other than 8.* sym"):
        weights[f"{UP}.weight"]


@pytest.mark.parametrize(
    ("scheme", "marker"),
    [("awq", "qweight"), ("gptq", "qweight"), ("int4", "weight_packed")],
)
def test_a_matrix_without_its_integers_is_named(scheme: str, marker: str, tmp_path: Path) -> None:
    quantised(scheme, tmp_path)
    _edit(tmp_path, lambda tensors: tensors.pop(f"{UP}.{marker}"))
    with pytest.raises(ModelError, match=rf"{UP}\.\w+.*{UP}\.{marker}|no tensor {UP}\.weight$"):
        open_model(tmp_path)


@pytest.mark.parametrize("scheme", ["int4-zeros", "int8-zeros"])
def test_weights_that_are_not_symmetric_have_zero_points(scheme: str, tmp_path: Path) -> None:
    quantised(scheme, tmp_path)
    _edit(tmp_path, lambda tensors: tensors.pop(f"{UP}.weight_zero_point"))
    with pytest.raises(ModelError, match=rf"no tensor {UP}\.weight_zero_point.* not symmetric"):
        open_model(tmp_path)


def test_a_matrix_that_is_there_twice(tmp_path: Path) -> None:
    quantised("gptq", tmp_path)
    _edit(tmp_path, lambda t: t.update({f"{UP}.weight": np.zeros((96, 64), np.float32)}))
    with pytest.raises(ModelError, match=rf"tensor {UP}\.weight twice"):
        open_model(tmp_path)


def test_fp8_without_scales_is_named(tmp_path: Path) -> None:
    quantised("fp8-blocks", tmp_path)
    _edit(tmp_path, lambda tensors: tensors.pop(f"{UP}.weight_scale_inv"))
    weights = open_model(tmp_path).weights
    with pytest.raises(ModelError, match=rf"tensor {UP}\.weight .* type F8_E4M3 and no scales"):
        weights[f"{UP}.weight"]


def test_what_else_a_quantised_module_has_is_refused_by_name(tmp_path: Path) -> None:
    quantised("gptq", tmp_path)
    _edit(tmp_path, lambda tensors: tensors.update({f"{UP}.extra": np.ones(3, np.float32)}))
    with pytest.raises(ModelError, match=rf"tensor {UP}\.extra, for which"):
        open_model(tmp_path)
