"""The OpenVINO backend, for CPUs: `openvino_executor.py` runs steps and describes the backend to
the registry, `decoder_graph.py` builds the decoder as a graph, with the operations in `native/`
where they are faster (`native_kernels.py` chooses). Only tests and `perf` import from it, and only
processes that use it.
"""

import sys

# The library is imported here first, without its telemetry package, which counts imports and
# stores an id of the user in the home folder, and fails with a traceback where there is no home.
# Where a module is None, importing it fails, and OpenVINO uses a substitute that does nothing.
_TELEMETRY = "openvino_telemetry"
_hidden = _TELEMETRY not in sys.modules
if _hidden:
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as the import system has it
try:
    import openvino
    import openvino.op
    import openvino.opset13  # noqa: F401
finally:
    if _hidden:
        del sys.modules[_TELEMETRY]
