"""Where the native operations can be compiled, for tests of them."""

from __future__ import annotations

import pytest

from sarathi.backends.openvino import native_attention, native_build


def _missing() -> str:
    if not {"avx2", "fma"} <= native_attention.processor_flags():
        return "the processor lacks AVX2 or FMA"
    try:
        native_build._compiler()
    except native_build.NativeBuildError as error:
        return str(error)
    return ""


# Not where compiling fails, which would be an error in the sources.
needs_native = pytest.mark.skipif(bool(_missing()), reason=_missing() or "native")
