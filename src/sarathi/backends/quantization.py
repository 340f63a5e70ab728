"""In which form each matrix is served: as the checkpoint has it, or quantised at load.

What the forms cost and what they gain was measured: see docs/quantization.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from sarathi.backends.registry import Quantization
from sarathi.models.decoder import EMBEDDING, HEAD, whole_model
from sarathi.models.model import Model
from sarathi.models.quantized import IntegerForm
from sarathi.models.tensor_layout import expected_shapes
from sarathi.models.weights import UNQUANTISED

Forms = Mapping[str, IntegerForm]  # of the matrices that are served in integers
NO_FORMS: Forms = MappingProxyType({})
Shapes = Mapping[str, tuple[int, ...]]

# Columns that share a scale, the first that divides the width of every matrix. Larger groups are
# faster and less exact. In 4 bits the error of the weights is the larger one anyway.
_INT8_GROUPS = (64, 32)
_INT4_GROUPS = (128, 64, 32)
# Consecutive activations that share a scale, the first that divides all groups and widths. Smaller
# ones are slower than activations in bf16.
_ACTIVATION_GROUPS = (128, 64, 32)
# Of free memory, for weights in int8 where they have a smaller form: the KV cache needs some, too.
_MEMORY_SHARE = 0.6


def served_forms(model: Model, quantization: Quantization) -> Forms:
    """Return the form of each matrix that is served in integers.

    - `none`: no matrix is.
    - `exact`: each that is stored quantised, as it is. What has none of our forms (the GGUF types
      IQ1 to IQ3 and TQ, GPTQ with act-order) is requantised to int8.
    - `auto`: as `exact` if activations can be int8 for all of them; otherwise what is stored
      quantised is requantised to int8, for which they can.
    - `int8`, `int4`: all matrices, whatever the checkpoint has. What is stored in 4 bits stays as
      it is in int4, since rounding it to other 4 bits ruins it; head, embedding and what has none
      of our forms are int8.
    """
    matrices = _matrices(expected_shapes(model.config, whole_model(model.config)))
    weights = model.weights
    if quantization == "none":
        return NO_FORMS
    widths = [columns for _, columns in matrices.values()]
    int8 = {
        name: IntegerForm(8, _group(_INT8_GROUPS, widths, columns))
        for name, (_, columns) in matrices.items()
    }
    if quantization == "int8":
        return int8
    stored = {name: form for name in matrices if (form := weights.form(name)) is not None}
    if quantization == "int4":
        int4 = {
            name: IntegerForm(4, _group(_INT4_GROUPS, widths, columns), "integer")
            for name, (_, columns) in matrices.items()
            if name not in (EMBEDDING, HEAD)
            and (name in stored or weights.stored_type(name) in UNQUANTISED)
        }
        kept = {name: form for name, form in stored.items() if form.bits == 4 and name in int4}
        return int8 | int4 | kept
    quantised = [name for name in matrices if weights.stored_type(name) not in UNQUANTISED]
    exact = {name: stored.get(name, int8[name]) for name in quantised}
    if quantization == "exact" or all(map(_may_round_activations, exact.values())):
        return exact
    return {name: int8[name] for name in quantised}


def choose_quantization(
    model: Model, quantization: Quantization, *, int8_activations: bool, free: int
) -> Quantization:
    """Return what `auto` means where activations can be int8 or not, with so much free memory.

    Without int8 activations, `exact`: int8 weights alone are little faster, and less exact. Also
    where memory does not suffice for int8, if that makes a difference.
    """
    if quantization != "auto":
        return quantization
    if not int8_activations:
        return "exact"
    requantised, exact = served_forms(model, "auto"), served_forms(model, "exact")
    if requantised == exact:
        return "exact"
    shapes = expected_shapes(model.config, whole_model(model.config))
    fast, small = (num_bytes(shapes, forms, 2) for forms in (requantised, exact))
    return "exact" if small < fast and fast > _MEMORY_SHARE * free else "auto"


def activation_group(forms: Forms, shapes: Shapes) -> int:
    """Return how many consecutive activations share an int8 scale; 0 if none do.

    The CPU plugin has one number for all products. It silently leaves out those of forms whose
    groups it does not divide, and of zero points that are no integers.
    """
    groups = [form.group for form in forms.values() if _may_round_activations(form)]
    widths = [columns for _, columns in _matrices(shapes).values()]
    fitting = (group for group in _ACTIVATION_GROUPS if _divides(group, groups + widths))
    return next(fitting, 0) if groups else 0


def rounds_activations(form: IntegerForm, activation_group: int) -> bool:
    """Return whether products with a matrix of a form should have int8 activations."""
    return activation_group > 0 and _may_round_activations(form)


def num_bytes(shapes: Shapes, forms: Forms, item_bytes: int) -> int:
    """Return the bytes of tensors, of which those without a form have `item_bytes` an element."""
    return sum(
        forms[name].num_bytes(shape) if name in forms else math.prod(shape) * item_bytes
        for name, shape in shapes.items()
    )


def quantization_name(quantization: Quantization, forms: Forms) -> Quantization:
    """Return how matrices are served, once `choose_quantization` has chosen: never `auto`."""
    if not forms:
        return "none"
    return "int8" if quantization == "auto" else quantization


def describe_forms(model: Model, forms: Forms) -> str:
    """Return, for the operator, which stored types are served in which form; empty if none is."""
    kinds: dict[str, Counter[str]] = {}
    for name, form in forms.items():
        how = f"in int{form.bits}, groups of {form.group}"
        if model.weights.form(name) == form:
            how = "as stored"
        elements = math.prod(model.weights.shape(name))
        kinds.setdefault(how, Counter())[model.weights.stored_type(name)] += elements
    return "; ".join(
        f"{' and '.join(kind for kind, _ in stored.most_common())} {how}"
        for how, stored in kinds.items()
    )


def _may_round_activations(form: IntegerForm) -> bool:
    return form.zero != "float" and form.group % min(_ACTIVATION_GROUPS) == 0


def _matrices(shapes: Shapes) -> Mapping[str, tuple[int, int]]:
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


def _group(candidates: Iterable[int], widths: Iterable[int], width: int) -> int:
    """Return the first that divides all widths; where none does, a matrix' own width."""
    return next((group for group in candidates if _divides(group, widths)), width)


def _divides(divisor: int, numbers: Iterable[int]) -> bool:
    return all(number % divisor == 0 for number in numbers)
