from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st

from sarathi.models.formats.gguf_blocks import BLOCK_TYPES, read_blocks
from sarathi.models.quantized import (
    IntegerForm,
    Integers,
    PackedMatrix,
    QuantizedRows,
    concatenate,
    pack_nibbles,
    quantize,
    unpack_nibbles,
)

_FORMS = [
    IntegerForm(8, 32),
    IntegerForm(8, 64),
    IntegerForm(4, 32),
    IntegerForm(4, 64, "integer"),
    IntegerForm(8, 32, "integer"),
]


def _random_blocks(kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """Rows of blocks of any bytes, but for scales of blocks, which are finite."""
    layout = BLOCK_TYPES[kind].layout
    blocks = rng.integers(0, 256, (6, 3, layout.itemsize), np.uint8).view(layout)[..., 0]
    for name in {"d", "m"} & set(layout.names or ()):
        blocks[name] = rng.normal(size=blocks.shape).astype("<f2")
    return blocks.view(np.uint8).reshape(6, -1)


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_blocks_are_integers_exactly(kind: Kind) -> None:
    stored = _random_blocks(kind, np.random.default_rng(int(kind)))
    found = read_blocks(stored, kind)
    expected = gguf.quants.dequantize(stored, kind)
    assert found.form == BLOCK_TYPES[kind].form
    assert found.values.shape == expected.shape
    assert found.scales.shape == (len(stored), expected.shape[1] // found.form.group)
    low, high = (0, 2**found.form.bits - 1) if found.zeros is not None else (-128, 127)
    if found.form.bits == 4 and found.zeros is None:
        low, high = -8, 7
    assert found.values.min() >= low
    assert found.values.max() <= high
    # A zero point that is no integer is a quotient, and rounds.
    exact = found.form.zero == "none"
    tolerance = 0.0 if exact else 1e-6 * float(np.abs(expected).max())
    np.testing.assert_allclose(found.dequantized(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q5_1, Kind.Q4_K, Kind.Q2_K])
def test_groups_without_a_scale_are_their_minimum(kind: Kind) -> None:
    stored = _random_blocks(kind, np.random.default_rng(1))
    blocks = stored.view(BLOCK_TYPES[kind].layout)
    blocks["d"][:, ::2] = 0
    found = read_blocks(stored, kind)
    expected = gguf.quants.dequantize(stored, kind)
    assert found.zeros is not None
    assert np.isfinite(found.zeros).all()
    np.testing.assert_allclose(
        found.dequantized(), expected, rtol=0, atol=1e-6 * float(np.abs(expected).max())
    )


def test_every_type_that_gguf_quantises_is_served_or_dequantised() -> None:
    """A new version of the package may bring types: they are expanded until they have a form."""
    known = {kind.name for kind in BLOCK_TYPES}
    assert {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS"} < known
    assert {f"Q{bits}_K" for bits in range(2, 7)} < known


@pytest.mark.parametrize("form", _FORMS, ids=str)
def test_rounding_errors_are_within_half_a_step(form: IntegerForm) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 192)).astype(np.float32)
    rows[:, 100:] += 2.0  # some groups have no negative elements
    rows[3] = 0.0
    found = quantize(rows, form)
    steps = np.repeat(found.scales, form.group, axis=1)
    # A zero point that is rounded moves the ends of the range by up to half a step.
    slack = 0.501 if form.zero == "none" else 1.001
    assert (np.abs(found.dequantized() - rows) <= slack * steps + 1e-6).all()
    np.testing.assert_array_equal(found.dequantized()[3], 0.0)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32),
    st.sampled_from([IntegerForm(8, 32), IntegerForm(4, 32, "integer"), IntegerForm(4, 16)]),
)
def test_any_row_is_quantised_to_finite_numbers(row: list[float], form: IntegerForm) -> None:
    rows = np.array([row], np.float32)
    found = quantize(rows, form)
    again = found.dequantized()
    assert np.isfinite(again).all()
    span = float(np.ptp(np.append(rows, 0)))
    levels = 2**form.bits - 1 if form.zero == "integer" else 2 ** (form.bits - 1) - 1
    bound = 1.01 * max(span, float(np.abs(rows).max())) / levels
    assert np.abs(again - rows).max() <= bound + 1e-30
    if form.zero == "none":
        limit = 2 ** (form.bits - 1) - 1
        assert np.abs(found.values.astype(int)).max() <= limit


def test_groups_of_the_smallest_numbers_are_zeros() -> None:
    rows = np.full((1, 32), 1e-40, np.float32)
    for form in (IntegerForm(8, 32), IntegerForm(4, 32, "integer")):
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            np.testing.assert_array_equal(quantize(rows, form).dequantized(), 0.0)


@given(st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(0, 2**32 - 1))
def test_nibbles_are_packed_and_unpacked(rows: int, pairs: int, signed: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 16, (rows, 2 * pairs))
    values: Integers = (whole - 8).astype(np.int8) if signed else whole.astype(np.uint8)
    packed = pack_nibbles(values)
    assert packed.shape == (rows, pairs)
    np.testing.assert_array_equal(packed[:, 0] & 0xF, values[:, 0].view(np.uint8) & 0xF)
    np.testing.assert_array_equal(unpack_nibbles(packed, signed=signed), values)


@pytest.mark.parametrize("form", [*_FORMS, IntegerForm(4, 32, "float")], ids=str)
def test_packed_matrices_give_their_rows_back(form: IntegerForm) -> None:
    rng = np.random.default_rng(0)
    if form.zero == "float":
        values = rng.integers(0, 16, (20, 192)).astype(np.uint8)
        scales = rng.normal(size=(20, 6)).astype(np.float32)
        whole = QuantizedRows(form, values, scales, rng.normal(size=(20, 6)).astype(np.float32))
    else:
        whole = quantize(rng.normal(size=(20, 192)).astype(np.float32), form)
    matrix = PackedMatrix.empty(form, (20, 192))
    for start, stop in ((0, 7), (7, 20)):
        matrix.store(start, whole.take(slice(start, stop)))
    np.testing.assert_array_equal(matrix[:], whole.dequantized())
    np.testing.assert_array_equal(matrix[np.array([9, 3])], whole.dequantized()[[9, 3]])
    assert len(matrix) == 20
    assert matrix.values.nbytes + matrix.scales.nbytes <= matrix.nbytes
    zeros = 0 if matrix.zeros is None else matrix.zeros.nbytes
    assert matrix.values.nbytes + matrix.scales.nbytes + zeros == matrix.nbytes
    np.testing.assert_array_equal(
        concatenate([whole.take(slice(0, 5)), whole.take(slice(5, 20))]).dequantized(),
        whole.dequantized(),
    )
