"""What computes and where, by the names that users give them."""

from __future__ import annotations

from typing import Literal

ExecutorName = Literal["openvino", "torch"]
Device = Literal["cpu", "cuda"]
