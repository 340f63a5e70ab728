"""In which form each matrix is served: as the checkpoint has it, or quantised at load.

What the forms cost and what they gain was measured: see docs/quantization.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from sarathi.backends.registry import Quantization
from sarathi.models.decoder import EMBEDDING, HEAD
from sarathi.models.quantized import IntegerForm
from sarathi.models.weights import UNQUANTISED, Weights

# Columns that share a scale, the first that divides the width of every matrix. Larger groups are
# faster and less exact. In 4 bits the error of the weights is the larger one anyway.
_INT8_GROUPS = (64, 32)
_INT4_GROUPS = (128, 64, 32)
# Consecutive activations that share a scale, the first that divides all groups and widths. Smaller
# ones are slower than activations in bf16.
_ACTIVATION_GROUPS = (128, 64, 32)

Shapes = Mapping[str, tuple[int, ...]]


def served_forms(
    weights: Weights, shapes: Shapes, quantization: Quantization
) -> Mapping[str, IntegerForm]:
    """Return the form of each matrix of `shapes` that is served in integers.

    - `none`: no matrix is.
    - `exact`: each in the form it is stored in. What has none of ours is requantised to int8.
    - `auto`: as `exact` if the activations can be int8, too; otherwise what is stored quantised is
      requantised to int8, for which they can.
    - `int8`, `int4`: all matrices, whatever the checkpoint has. What is stored in 4 bits stays as
      it is in int4, since requantising it to other 4 bits ruins it; head and embedding are int8.
    """
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    if quantization == "none":
        return {}
    widths = [columns for _, columns in matrices.values()]
    int8 = {name: IntegerForm(8, _group(_INT8_GROUPS, widths, shape[1]))
            for name, shape in matrices.items()}  # fmt: skip
    if quantization == "int8":
        return int8
    stored = {name: form for name in matrices if (form := weights.form(name)) is not None}
    if quantization == "int4":
        return {
            name: int8[name]
            if name in (EMBEDDING, HEAD)
            else _int4(stored.get(name), widths, shape)
            for name, shape in matrices.items()
        }
    quantised = [name for name in matrices if weights.stored_type(name) not in UNQUANTISED]
    exact = {name: stored.get(name, int8[name]) for name in quantised}
    if quantization == "exact" or all(map(_may_have_int8_activations, exact.values())):
        return exact
    return {name: int8[name] for name in quantised}


def activation_group(forms: Mapping[str, IntegerForm], shapes: Shapes) -> int:
    """Return how many consecutive activations share an int8 scale; 0 if they are not int8.

    The CPU plugin has one number for all products, and silently leaves out those of forms with
    zero points that are no integers, and with groups that it does not divide.
    """
    groups = [form.group for form in forms.values() if _may_have_int8_activations(form)]
    if not groups:
        return 0
    widths = [shape[1] for shape in shapes.values() if len(shape) == 2]
    return next((group for group in _ACTIVATION_GROUPS if _divides(group, groups + widths)), 0)


def has_int8_activations(form: IntegerForm, activation_group: int) -> bool:
    """Return whether products with a matrix of a form compute in int8."""
    return (
        activation_group > 0
        and _may_have_int8_activations(form)
        and form.group % activation_group == 0
    )


def num_bytes(shapes: Shapes, forms: Mapping[str, IntegerForm], item_bytes: int) -> int:
    """Return the bytes of tensors of which some are served in integers."""
    return sum(
        forms[name].num_bytes(shape) if name in forms else math.prod(shape) * item_bytes
        for name, shape in shapes.items()
    )


def describe_forms(weights: Weights, shapes: Shapes, forms: Mapping[str, IntegerForm]) -> str:
    """Return, for the operator, which stored types are served in which form."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, shape in shapes.items():
        if (form := forms.get(name)) is not None:
            stored, kept = weights.stored_type(name), weights.form(name) == form
            how = "as stored" if kept else f"in int{form.bits}, groups of {form.group}"
            counts[stored, how] += math.prod(shape)
    by_form: dict[str, list[str]] = {}
    for (stored, how), _ in counts.most_common():
        by_form.setdefault(how, []).append(stored)
    return "; ".join(f"{', '.join(kinds)} {how}" for how, kinds in by_form.items())


def _may_have_int8_activations(form: IntegerForm) -> bool:
    return form.zero != "float" and form.group % min(_ACTIVATION_GROUPS) == 0


def _int4(stored: IntegerForm | None, widths: Iterable[int], shape: tuple[int, ...]) -> IntegerForm:
    if stored is not None and stored.bits == 4:
        return stored
    return IntegerForm(4, _group(_INT4_GROUPS, widths, shape[1]), "integer")


def _group(candidates: Iterable[int], widths: Iterable[int], width: int) -> int:
    """Return the first that divides all widths; where none does, a matrix' own width."""
    return next((group for group in candidates if _divides(group, widths)), width)


def _divides(divisor: int, numbers: Iterable[int]) -> bool:
    return all(number % divisor == 0 for number in numbers)
