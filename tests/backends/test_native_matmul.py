"""Native products with quantised matrices, against numpy with activations rounded the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.utils.node_factory import NodeFactory

from sarathi.backends.openvino.native_build import native_library
from sarathi.backends.openvino.native_matmul import NativeMatmul
from sarathi.backends.openvino.openvino_executor import _core, default_precision
from sarathi.backends.reference import reference
from sarathi.backends.step import StepPart, join_parts
from sarathi.errors import ExecutorError
from sarathi.models.model import open_model
from sarathi.models.quantized import IntegerForm, Integers, PackedMatrix, QuantizedRows
from tests.backends.engines import load
from tests.backends.natives import needs_native
from tests.tiny_gguf import write_gguf
from tests.tiny_models import save_tiny

pytestmark = needs_native
Floats = npt.NDArray[np.floating[Any]]
COLUMNS = 192


def matrix(
    form: IntegerForm, rows: int, columns: int = COLUMNS, *, bits: int = 0, scale: float = 0.05
) -> PackedMatrix:
    """Random integers, perhaps of fewer bits than the form has, with scales in half precision."""
    rng = np.random.default_rng(rows)
    groups = (rows, columns // form.group)
    levels = 2 ** (bits or form.bits)
    values = rng.integers(0, levels, (rows, columns))
    values[0, 0], values[0, 1] = 0, levels - 1
    zeros = None
    if form.zero == "none":
        values -= levels // 2
    else:
        whole = form.zero == "integer"
        zeros = (rng.integers(0, levels, groups) if whole else rng.random(groups) * levels).astype(
            np.float32
        )
    scales = (scale * (0.1 + rng.random(groups))).astype(np.float16).astype(np.float32)
    integers: Integers = values.astype(np.int8 if zeros is None else np.uint8)
    packed = PackedMatrix.empty(form, (rows, columns))
    packed.store(0, QuantizedRows(form, integers, scales, zeros))
    return packed


class Products:
    """A graph of nothing but the products of activations with some matrices."""

    def __init__(self, *matrices: PackedMatrix, precise: bool = False) -> None:
        library, factory = native_library(), NodeFactory()
        factory.add_extension(library)
        self._native = NativeMatmul(factory, library)
        x = op.parameter([-1, matrices[0].shape[1]], np.float32)
        outputs = self._native.products(x.output(0), matrices, precise=precise)
        model = ov.Model([op.result(output) for output in outputs], [x], "products")
        self._compiled = _core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 2})

    def __call__(self, x: Floats) -> Sequence[Floats]:
        return [found.copy() for found in self._compiled(x).values()]


def activations(count: int) -> Floats:
    scales = 10.0 ** np.random.default_rng(1).integers(-3, 3, (count, 1))
    return (scales * np.random.default_rng(2).normal(size=(count, COLUMNS))).astype(np.float32)


def rounded(x: Floats, columns: int) -> Floats:
    """Activations with a scale for so many columns, which the largest of them is 127 times."""
    grouped = x.reshape(len(x), -1, columns)
    scales = np.abs(grouped).max(-1, keepdims=True) / np.float32(127)
    return (np.rint(grouped / scales) * scales).reshape(x.shape)


def error(found: Floats, x: Floats, weights: PackedMatrix, columns: int = 32) -> float:
    expected = rounded(x, columns).astype(np.float64) @ weights[:].T.astype(np.float64)
    return float((np.abs(found - expected).max(-1) / np.abs(expected).max(-1)).max())


@pytest.mark.parametrize("zero", ["none", "integer", "float"])
@pytest.mark.parametrize("group", [16, 32, 48, 64])
@pytest.mark.parametrize(("bits", "used"), [(4, 4), (8, 5), (8, 6), (8, 8)])
def test_products_of_every_form(bits: Any, used: int, group: int, zero: Any) -> None:
    for scale in (0.05, 1e-6, 1e4):  # of which the last two are beyond half precision
        weights = matrix(IntegerForm(bits, group, zero), 83, bits=used, scale=scale)
        multiply = Products(weights)
        for count in (1, 2, 7, 130):
            x = activations(count)
            [found] = multiply(x)
            # A scale in half precision is off by at most 2 ** -11, and so is a minimum.
            bound = 2e-3 if scale == 0.05 and zero == "float" else 1e-5
            assert error(found, x, weights, 32 if group % 32 == 0 else 16) < bound
            [alone] = multiply(x[-1:])  # the rows beside it change nothing
            assert (alone[0] == found[-1]).all()


def test_matrices_of_different_forms_in_one_operation() -> None:
    weights = [
        matrix(IntegerForm(4, 32, "float"), 40),
        matrix(IntegerForm(8, 16), 5, bits=6),
        matrix(IntegerForm(8, 64), 160),
    ]
    x = activations(33)
    found = Products(*weights)(x)
    assert [each.shape for each in found] == [(33, 40), (33, 5), (33, 160)]
    for product, each in zip(found, weights, strict=True):
        assert error(product, x, each, 16) < 1e-3  # the smallest groups decide for all


@pytest.mark.parametrize(("bits", "zero"), [(4, 7), (8, 131)])
def test_zeros_stay_zeros(bits: Any, zero: int) -> None:
    form = IntegerForm(bits, 32, "integer")
    values = np.full((16, COLUMNS), zero, np.uint8)
    groups = np.ones((16, COLUMNS // 32), np.float32)
    weights = PackedMatrix.empty(form, values.shape)
    weights.store(0, QuantizedRows(form, values, groups * np.float32(0.0123456), groups * zero))
    [found] = Products(weights)(np.full((1, COLUMNS), 100, np.float32))
    assert np.abs(found).max() < 1e-3  # with a scale of .01, sums are rounded to some 1e-4


@pytest.mark.parametrize("group", [16, 32])
def test_rows_with_outliers_are_precise_where_that_is_asked_for(group: int) -> None:
    columns = 768  # among fewer, none is 20 times the root of the mean square
    weights = matrix(IntegerForm(4, group), 40, columns)
    exact, rough = Products(weights, precise=True), Products(weights)
    x = np.random.default_rng(4).normal(size=(67, columns)).astype(np.float32)
    x[::3, 100] = 1000
    expected = x.astype(np.float64) @ weights[:].T.astype(np.float64)
    [found], [rounded] = exact(x), rough(x)
    plain = np.arange(len(x)) % 3 > 0
    assert (found[plain] == rounded[plain]).all()
    errors = [np.abs(each - expected)[~plain].max() for each in (found, rounded)]
    assert errors[0] < errors[1] / 50
    for row in (0, 1, 66):  # the rows beside it change nothing
        assert (exact(x[row : row + 1])[0][0] == found[row]).all()


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(value: float, precise: bool) -> None:
    x = activations(3)
    multiply = Products(matrix(IntegerForm(4, 32), 20), precise=precise)
    [right] = multiply(x)
    x[1, 100] = value
    [found] = multiply(x)
    assert not np.isfinite(found[1]).any()
    assert (found[[0, 2]] == right[[0, 2]]).all()


def test_no_rows_and_zeros() -> None:
    multiply = Products(matrix(IntegerForm(8, 32, "integer"), 20))
    [none] = multiply(np.zeros((0, COLUMNS), np.float32))
    assert none.shape == (0, 20)
    [zeros] = multiply(np.zeros((2, COLUMNS), np.float32))
    assert (zeros == 0).all()
    [tiny] = multiply(np.full((2, COLUMNS), 1e-40, np.float32))
    assert (tiny == 0).all()


@pytest.mark.skipif(default_precision() != "f32", reason="the default precision is not f32")
class TestModels:
    @pytest.mark.parametrize(
        ("kind", "family"),
        [("Q4_0", "llama-tied"), ("Q4_K", "llama-tied"), ("Q6_K", "llama-tied"), ("Q4_1", "qwen2")],
    )
    def test_logits_stay_close(self, kind: str, family: str, tmp_path: Path) -> None:
        save_tiny(family, tmp_path, hidden_size=256, intermediate_size=512)
        path = tmp_path / "m.gguf"
        write_gguf(tmp_path, path, kind)
        executor = load(path, quantization="exact", precision=None, kernels="native")
        assert executor.kernels == "native attention and products"
        executor.check()
        tokens = list(range(5, 60))
        blocks = range(-(-len(tokens) // executor.block_size))
        step = join_parts([StepPart(tokens, 0, blocks, True)], executor.block_size)
        model = open_model(path)
        right = reference(model.config, executor.stage, model.weights, tokens)[-1]
        found = executor.execute(step)[0]
        assert 1e-4 < np.linalg.norm(found - right) / np.linalg.norm(right) < 0.5

    def test_beside_the_plugins_attention(self, tmp_path: Path) -> None:
        save_tiny("gemma3", tmp_path)
        options: dict[str, Any] = {"precision": None, "kv_precision": "f32"}
        executor = load(tmp_path, quantization="int8", kernels="native", **options)
        assert executor.kernels == "native products"
        executor.check()

    def test_forms_that_it_does_not_support_are_the_plugins(self, tmp_path: Path) -> None:
        # Rows of 72 have one group, which no multiple of 16 divides; the others have 64.
        save_tiny("llama", tmp_path, intermediate_size=72)
        executor = load(tmp_path, quantization="int8", precision=None, kernels="native")
        mlp = [executor.weights[f"model.layers.0.mlp.{one}_proj.weight"] for one in ("up", "down")]
        assert [each.form.group for each in mlp if isinstance(each, PackedMatrix)] == [64, 72]
        executor.check()

    @pytest.mark.parametrize("options", [{"precision": "f32"}, {"deterministic": True}])
    def test_activations_that_may_not_be_rounded_are_refused(
        self, options: dict[str, Any], tmp_path: Path
    ) -> None:
        save_tiny("llama", tmp_path)
        options = {"precision": None, **options, "quantization": "int8"}
        with pytest.raises(ExecutorError, match="products: it rounds activations"):
            load(tmp_path, kernels="native", **options)
