"""Names of executors, devices and number formats, as users give them."""

from __future__ import annotations

from typing import Literal

ExecutorName = Literal["openvino", "torch"]
Device = Literal["cpu", "cuda"]
Precision = Literal["f32", "bf16", "f16"]
KvPrecision = Literal["f32", "bf16", "f16", "u8"]
