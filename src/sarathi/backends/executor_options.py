"""How a model is executed: number formats, devices and sizes, as users give them."""

from __future__ import annotations

from typing import Literal

import msgspec

from sarathi.backends.registry import ExecutorName
from sarathi.models.locate import LoadFormat

Device = Literal["cpu", "cuda"]
Precision = Literal["f32", "bf16", "f16"]
KvPrecision = Literal["f32", "bf16", "f16", "u8"]


class ExecutorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of an executor, the same for all stages and ranks."""

    load_format: LoadFormat = "auto"
    executor: ExecutorName = "openvino"
    device: Device | None = None  # of torch; None: cuda if there is one
    precision: Precision | None = None  # None: the fastest that the processor computes in
    kv_precision: KvPrecision | None = None  # None: the same as precision
    threads: int | None = None  # None: all cores of the machine between the processes on it
    deterministic: bool = False
    own_cores: bool = False  # whether no other engine uses the cores of this machine
    first_gpu: int = 0  # of a machine's, for the first of these processes on it
    max_position: int  # tokens of the longest sequence
    max_tokens: int  # of a step
    max_batch_size: int = 128  # sequences of a step
