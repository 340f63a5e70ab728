"""OpenVINO, imported without its telemetry.

The telemetry package counts imports and stores an id of the user in the home folder, which fails
with a traceback where there is no home. Without it OpenVINO uses a substitute that does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TELEMETRY = "openvino_telemetry"


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Make a module appear not to be installed, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # as the import system has it
    try:
        yield
    finally:
        sys.modules.pop(module, None)


with _without(_TELEMETRY):
    import openvino
    from openvino import opset13
    from openvino.op import Constant, _PagedAttentionExtension

__all__ = ["Constant", "_PagedAttentionExtension", "openvino", "opset13"]
