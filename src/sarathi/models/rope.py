"""Inverse frequencies of rotary position embeddings and their published scalings.

Computed in float32 in the order of operations of the `transformers` library, because one unit in
the last place of a frequency is visible in the logits of long prompts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Frequencies = npt.NDArray[np.float32]


def default_inv_freq(head_dim: int, theta: float) -> Frequencies:
    """`theta ** (-2 i / head_dim)` for i in 0 .. head_dim / 2 (Su et al., RoFormer, 2021)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers: Frequencies = np.float32(theta) ** exponents
    return np.float32(1) / powers


def linear_scaled(inv_freq: Frequencies, factor: float) -> Frequencies:
    """Position interpolation: positions divided by `factor` (Chen et al., 2023)."""
    return inv_freq / np.float32(factor)


def llama3_scaled(
    inv_freq: Frequencies,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position: float,
) -> Frequencies:
    """Llama 3.1's scaling: wavelengths that the original context covers well stay as they are,
    very long ones are interpolated by `factor`, and those in between blend the two."""
    wavelength = np.float32(2 * np.pi) / inv_freq
    scaled = inv_freq / np.float32(factor)
    smooth = (np.float32(original_max_position) / wavelength - np.float32(low_freq_factor)) / (
        np.float32(high_freq_factor - low_freq_factor)
    )
    blended = (1 - smooth) * inv_freq / np.float32(factor) + smooth * inv_freq
    is_long = wavelength > original_max_position / low_freq_factor
    is_short = wavelength < original_max_position / high_freq_factor
    selected: Frequencies = np.where(is_long, scaled, np.where(is_short, inv_freq, blended))
    return selected
