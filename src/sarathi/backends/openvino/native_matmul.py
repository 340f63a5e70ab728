"""Products with quantised matrices by a native operation, which rounds activations to int8."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import openvino as ov
from openvino.utils.node_factory import NodeFactory

from sarathi.backends.registry import Precision
from sarathi.errors import ExecutorError
from sarathi.models.quantized import IntegerForm, PackedMatrix
from sarathi.models.weights import Array

_MULTIPLE = 16  # columns of a group


class NativeMatmul:
    """Makes the nodes of products with matrices in integer forms, for computation in f32.

    It owns copies of the matrices in another order, and must outlive what is compiled from the
    graph.
    """

    def __init__(self, factory: NodeFactory, library: Path) -> None:
        self._factory = factory
        functions = ctypes.CDLL(str(library))
        sizes, pointers = [ctypes.c_size_t] * 4, [ctypes.c_void_p] * 4
        functions.sarathi_pack.argtypes = [*sizes, *pointers]
        functions.sarathi_pack.restype = ctypes.c_void_p
        functions.sarathi_free.argtypes = [ctypes.c_void_p]
        self._pack, self._free = functions.sarathi_pack, functions.sarathi_free

    def products(
        self, x: ov.Output, matrices: Sequence[PackedMatrix], *, precise: bool = False
    ) -> Sequence[ov.Node]:
        """Add the products with transposed matrices, whose forms it supports, to a graph.

        `precise` rounds rows of activations that have outliers to sums of two int8 numbers.

        Raises:
            ExecutorError: there is no memory for the copies.
        """
        attributes = {"matrices": list(map(self._packed, matrices)), "precise": precise}
        node = self._factory.create("QuantizedMatmul", [x], attributes)
        return node.outputs()  # type: ignore[no-any-return]

    def _packed(self, matrix: PackedMatrix) -> int:
        """Return the address of a copy that lives as long as this object."""
        form, zeros, none = matrix.form, matrix.zeros, None
        integers = zeros is not None and form.zero == "integer"
        address: int | None = self._pack(
            *(form.bits, form.group, *matrix.shape),
            *(_address(matrix.values), _address(matrix.scales)),
            *((none, _address(zeros)) if integers else (_address(zeros), none)),
        )
        if address is None:
            raise ExecutorError("not enough memory to pack the weights")
        # Not at exit, when a step may still be running.
        weakref.finalize(self, self._free, address).atexit = False
        return address


def supports(form: IntegerForm) -> bool:
    """Return whether the operation multiplies with matrices of a form."""
    return form.group % _MULTIPLE == 0


def activation_round(form: IntegerForm) -> int:
    """Return how many activations share a scale; those of one operation all have the least."""
    return 32 if form.group % 32 == 0 else _MULTIPLE


def matmul_problem(forms: Iterable[IntegerForm], precision: Precision, may_round: bool) -> str:
    """Return why the operation cannot compute any of a model's products; empty if it can."""
    if not may_round:
        return "it rounds activations to int8, which --precision f32 and --deterministic rule out"
    if precision != "f32":
        return f"it computes in f32, not in {precision}"
    if not any(map(supports, forms)):
        return f"no matrix is in integers, in groups of a multiple of {_MULTIPLE} columns"
    return ""


def _address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data
