"""Products with matrices of integers, in the pattern that the CPU plugin multiplies with as it is.

Activations are rounded to int8 in groups, if the plugin supports that for a form: otherwise it
silently computes in the precision of activations, which is slower for more than a few rows.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op import Constant

from sarathi.models.quantized import IntegerForm, PackedMatrix, QuantizedRows, pack_nibbles
from sarathi.models.weights import Array

_TYPES = {  # by bits, and whether they are signed
    (4, True): ov.Type.i4,
    (4, False): ov.Type.u4,
    (8, True): ov.Type.i8,
    (8, False): ov.Type.u8,
}
_PROBE_ROWS = 64  # of matrix and activations: fewer may be computed by other kernels
_SMALL = 1e-3  # beside 1 in a group of activations: int8 rounds it to 0


def compressed_matrix(matrix: PackedMatrix) -> ov.Node:
    """Return nodes that dequantise a matrix, [rows, columns]. They read it in place."""
    form, (rows, columns) = matrix.form, matrix.shape
    values = ov.Tensor(
        matrix.values,
        ov.Shape([rows, columns // form.group, form.group]),
        _TYPES[form.bits, form.zero == "none"],
    )
    node = op.convert(Constant(values, shared_memory=True), "f32")
    if matrix.zeros is not None:
        node = op.subtract(node, _zero_points(form, matrix.zeros))
    scales = Constant(ov.Tensor(matrix.scales[..., None]), shared_memory=True)
    shape = op.constant(np.array([rows, columns], np.int64))
    return op.reshape(op.multiply(node, scales), shape, special_zero=False)


def _zero_points(form: IntegerForm, zeros: Array) -> ov.Node:
    """Return the node of zero points, [rows, groups, 1]; integers have as many bits as values."""
    if form.zero == "float":
        return op.constant(zeros[..., None])
    if form.bits == 8:
        return op.convert(op.constant(zeros[..., None]), "f32")
    flat = np.zeros((1, zeros.size + zeros.size % 2), np.uint8)
    flat[0, : zeros.size] = zeros.ravel()
    packed = ov.Tensor(pack_nibbles(flat)[0], ov.Shape([*zeros.shape, 1]), ov.Type.u4)
    return op.convert(Constant(packed, shared_memory=False), "f32")


def uses_int8_activations(
    core: ov.Core, form: IntegerForm, columns: int, properties: dict[str, object]
) -> bool:
    """Return whether products with matrices of a form really round activations to int8.

    The types in the compiled graph do not show it. So a small matrix is multiplied with activations
    of which one vanishes if it is rounded in a group with the other, which meets weights of 0.
    """
    values = np.zeros((_PROBE_ROWS, columns), np.uint8)
    values[:, 1] = 1
    groups = (_PROBE_ROWS, columns // form.group)
    zeros = None if form.zero == "none" else np.zeros(groups, np.float32)
    matrix = PackedMatrix.empty(form, values.shape)
    matrix.store(0, QuantizedRows(form, values.view(np.int8), np.ones(groups, np.float32), zeros))
    x = op.parameter([-1, columns], np.float32)
    product = op.matmul(x, compressed_matrix(matrix), transpose_a=False, transpose_b=True)
    compiled = core.compile_model(ov.Model([product], [x], "probe"), "CPU", properties)
    activations = np.zeros((_PROBE_ROWS, columns), np.float32)
    activations[:, 0], activations[:, 1] = 1.0, _SMALL
    [found] = compiled(activations).values()
    return bool(np.abs(found).max() < _SMALL / 2)
