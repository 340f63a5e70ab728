"""Rotary frequencies as the `config.json` of every family describes them."""

from __future__ import annotations

from sarathi.models.fields import Fields
from sarathi.models.rotary import (
    Frequencies,
    default_inv_freq,
    linear_scaled,
    llama3_scaled,
)


def inv_freq(fields: Fields, head_dim: int) -> Frequencies:
    """Of rotary embeddings over the whole head, with the scaling that `fields` ask for."""
    scaling = fields.object("rope_parameters") or fields.object("rope_scaling")
    if scaling is None:
        scaling = Fields({}, fields.origin)
    partial = scaling if "partial_rotary_factor" in scaling else fields
    if partial.number("partial_rotary_factor", 1.0) != 1.0:
        raise partial.wrong("partial_rotary_factor", "1 (the whole head is rotated)")
    theta = scaling.number("rope_theta", fields.number("rope_theta", 10000.0))
    plain = default_inv_freq(head_dim, theta)
    type_field = "rope_type" if "rope_type" in scaling else "type"
    match scaling.text(type_field, "default"):
        case "default":
            return plain
        case "linear":
            return linear_scaled(plain, scaling.number("factor"))
        case "llama3":
            low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
            if low >= high:
                raise scaling.wrong("low_freq_factor", f"less than high_freq_factor ({high:g})")
            return llama3_scaled(
                plain,
                factor=scaling.number("factor"),
                low_freq_factor=low,
                high_freq_factor=high,
                original_max_position=scaling.number("original_max_position_embeddings"),
            )
        case _:
            raise scaling.wrong(type_field, "one of default, linear, llama3")
