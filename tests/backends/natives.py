"""Where the native operations can be compiled, for tests of them."""

from __future__ import annotations

import pytest

from sarathi.backends.openvino import native_build, native_kernels


def _missing() -> str:
    if not native_kernels.processor_flags() >= native_kernels.REQUIRED_FLAGS:
        return "the processor lacks AVX2, FMA or F16C"
    try:
        native_build._compiler()
    except native_build.NativeBuildError as error:
        return str(error)
    return ""


# Not where compiling fails, which would be an error in the sources.
needs_native = pytest.mark.skipif(bool(_missing()), reason=_missing() or "native")
