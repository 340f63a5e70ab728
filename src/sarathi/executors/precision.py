"""Number formats by the names that users give them."""

from __future__ import annotations

from typing import Literal

Precision = Literal["f32", "bf16", "f16"]
KvPrecision = Literal["f32", "bf16", "f16", "u8"]
