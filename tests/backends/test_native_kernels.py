"""When which operations of a graph are native."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sarathi.backends.openvino import native_kernels
from sarathi.backends.openvino.native_build import NativeBuildError
from sarathi.backends.openvino.native_kernels import Computation, NativeKernels, choose_kernels
from sarathi.errors import ExecutorError
from sarathi.models.model import open_model
from sarathi.models.quantized import IntegerForm
from tests.backends.engines import load
from tests.backends.natives import needs_native

FLAGS = ("avx2", "fma", "f16c")


@pytest.fixture
def computation(sliding_folder: Path) -> Computation:
    """All of it can be native, and is large enough."""
    config = open_model(sliding_folder).config
    return Computation(
        config,
        "f32",
        "u8",
        forms=[IntegerForm(4, 32)],
        may_round=True,
        plugin_rounds=False,
        weight_bytes=1 << 30,
    )


@needs_native
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "native attention and products"),
        ({"kv_precision": "f32"}, "native products"),
        ({"may_round": False}, "native attention"),
        ({"forms": []}, "native attention"),
        ({"forms": [IntegerForm(8, 72)]}, "native attention"),
        ({"forms": [IntegerForm(8, 72), IntegerForm(8, 16)]}, "native attention and products"),
    ],
)
def test_each_is_native_where_it_can_be(
    changes: dict[str, Any],
    name: str,
    computation: Computation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _processor(monkeypatch, *FLAGS)
    for asked in ("auto", "native"):
        native, found = choose_kernels(asked, replace(computation, **changes))
        assert found == name
        assert (native.attention is not None, native.matmul is not None) == (
            "attention" in name,
            "products" in name,
        )


@needs_native
def test_products_in_int8_are_left_to_the_plugin(
    computation: Computation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _processor(monkeypatch, *FLAGS, "avx_vnni")
    given = replace(computation, plugin_rounds=True)
    assert choose_kernels("auto", given)[1] == "native attention"
    assert choose_kernels("native", given)[1] == "native attention and products"


def test_small_models_are_not_worth_compiling_for(
    sliding_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_kernels, "native_library", _never)
    assert load(sliding_folder, kv_precision="u8").kernels == "plugin"


def _never() -> Path:
    pytest.fail("compiled")


def _failing() -> Path:
    raise NativeBuildError("there is no C++ compiler")


def _garbage(folder: Path) -> Callable[[], Path]:
    path = folder / "garbage.so"
    path.write_bytes(b"no library")
    return lambda: path


def _processor(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(native_kernels, "processor_flags", lambda: frozenset(flags))


def test_what_cannot_be_compiled_or_loaded_leaves_the_plugins(
    computation: Computation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _processor(monkeypatch, *FLAGS)
    for library, reason in ((_failing, r"no C\+\+ compiler"), (_garbage(tmp_path), "garbage")):
        monkeypatch.setattr(native_kernels, "native_library", library)
        native, name = choose_kernels("auto", computation)
        assert native == NativeKernels()
        assert name.startswith("plugin, since native is not possible: ")
        assert "\n" not in name
        with pytest.raises(ExecutorError, match=f"--kernels native is not possible: .*{reason}"):
            choose_kernels("native", computation)


@pytest.mark.parametrize(
    ("changes", "flags", "reason"),
    [
        ({"precision": "bf16"}, FLAGS, "attention: .*not in bf16 with u8.*; products: .*in bf16"),
        ({"kv_precision": "f32", "forms": []}, FLAGS, "not in f32 with f32.*no matrix"),
        ({"head_dim": 24, "may_round": False}, FLAGS, "24 dimensions, expected a multiple of 16"),
        ({"head_dim": 256, "may_round": False}, FLAGS, "256 dimensions, expected .* up to 128"),
        ({}, ("avx2",), "AVX2, FMA and F16C"),
        ({}, (), "AVX2, FMA and F16C"),
    ],
)
def test_what_none_can_compute_is_refused(
    computation: Computation,
    changes: dict[str, Any],
    flags: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _processor(monkeypatch, *flags)
    monkeypatch.setattr(native_kernels, "native_library", _never)
    dim = changes.pop("head_dim", computation.config.head_dim)
    config = replace(computation.config, head_dim=dim, inv_freq=(1.0,) * (dim // 2))
    given = replace(computation, config=config, **changes)
    assert choose_kernels("auto", given) == (NativeKernels(), "plugin")
    assert choose_kernels("plugin", given) == (NativeKernels(), "plugin")
    with pytest.raises(ExecutorError, match=f"--kernels native is not possible: .*{reason}"):
        choose_kernels("native", given)


def test_wider_vectors_are_left_to_the_plugin(
    computation: Computation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _processor(monkeypatch, *FLAGS, "avx512f")
    monkeypatch.setattr(native_kernels, "native_library", _never)
    assert choose_kernels("auto", computation) == (NativeKernels(), "plugin")


def test_flags_are_those_of_the_first_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nflags\t\t: fpu\n")
    for path, flags in ((cpuinfo, {"fpu", "avx2", "fma"}), (tmp_path / "none", set())):
        monkeypatch.setattr(native_kernels, "_CPUINFO", path)
        assert native_kernels.processor_flags.__wrapped__() == flags
