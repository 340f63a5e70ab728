"""Which form each matrix is served in, and what is computed with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor, supports_int8_activations
from sarathi.backends.quantization import (
    activation_group,
    choose_quantization,
    describe_forms,
    num_bytes,
    quantization_name,
    served_forms,
)
from sarathi.backends.reference import reference
from sarathi.backends.registry import Quantization
from sarathi.backends.step import StepPart, join_parts
from sarathi.errors import ModelError
from sarathi.models.decoder import EMBEDDING, HEAD, whole_model
from sarathi.models.formats.gguf_blocks import BLOCK_TYPES
from sarathi.models.model import Model, open_model
from sarathi.models.quantized import IntegerForm
from sarathi.models.tensor_layout import expected_shapes
from sarathi.sampling.params import SamplingParams
from tests.backends.engines import engine, load, run
from tests.tiny_gguf import write_gguf
from tests.tiny_models import VOCAB_SIZE, save_tiny

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}  # blocks of 256
KINDS = tuple(kind.name for kind in BLOCK_TYPES)
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny Llama as a GGUF file with matrices of one type."""
    folder = tmp_path_factory.mktemp("wide")
    save_tiny("llama-tied", folder, **WIDE)
    written: dict[str, Path] = {}

    def file(kind: str) -> Path:
        if kind not in written:
            written[kind] = folder / f"{kind}.gguf"
            write_gguf(folder, written[kind], kind)
        return written[kind]

    return file


class StoredAs:
    """Weights of which only the stored types are known, by a part of a name."""

    def __init__(self, kinds: Mapping[str, str], otherwise: str) -> None:
        self._kinds, self._otherwise = kinds, otherwise

    def stored_type(self, name: str) -> str:
        found = (kind for part, kind in self._kinds.items() if part in name)
        return next(found, self._otherwise)

    def form(self, name: str) -> IntegerForm | None:
        kind = self.stored_type(name)
        return BLOCK_TYPES[gguf.GGMLQuantizationType[kind]].form if kind in KINDS else None

    def shape(self, name: str) -> tuple[int, ...]:
        return (1, 1)


@pytest.fixture(scope="module")
def config(files: Callable[[str], Path]) -> Any:
    return open_model(files("Q8_0")).config


def stored_as(config: Any, otherwise: str, **kinds: str) -> Any:
    return SimpleNamespace(config=config, weights=StoredAs(kinds, otherwise))


def forms_of(model: Any, quantization: Quantization) -> set[str]:
    return {str(form) for form in served_forms(model, quantization).values()}


class TestTheForms:
    @pytest.mark.parametrize(
        ("stored", "exact", "auto"),
        [
            ("Q4_0", "int4g32", "int4g32"),
            ("Q8_0", "int8g32", "int8g32"),
            ("Q5_0", "int8g32", "int8g32"),
            ("IQ4_XS", "int8g32", "int8g32"),
            ("Q4_1", "int4g32m", "int8g64"),
            ("Q4_K", "int4g32m", "int8g64"),
            ("Q5_K", "int8g32m", "int8g64"),
            ("Q6_K", "int8g16", "int8g64"),
            ("IQ2_XS", "int8g64", "int8g64"),
        ],
    )
    def test_of_gguf_types(self, stored: str, exact: str, auto: str, config: Any) -> None:
        model = stored_as(config, stored)
        assert forms_of(model, "exact") == {exact}
        assert forms_of(model, "auto") == {auto}
        assert forms_of(model, "int8") == {"int8g64"}
        assert forms_of(model, "none") == set()

    @pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
    def test_of_unquantised_checkpoints(self, stored: str, config: Any) -> None:
        model = stored_as(config, stored)
        assert served_forms(model, "auto") == served_forms(model, "exact") == {}
        assert forms_of(model, "int8") == {"int8g64"}
        # Errors of head and embedding reach the logits directly.
        assert forms_of(model, "int4") == {"int8g64", "int4g64z"}
        assert str(served_forms(model, "int4")[EMBEDDING]) == "int8g64"

    def test_of_a_mixed_file(self, config: Any) -> None:
        mixed = stored_as(config, "Q4_K", down_proj="Q6_K", v_proj="F16")
        assert forms_of(mixed, "exact") == {"int4g32m", "int8g16"}
        found = served_forms(mixed, "auto")
        assert {str(form) for form in found.values()} == {"int8g64"}
        assert not [name for name in found if "v_proj" in name]  # stays as it is
        # 4 bits are never requantised to other 4 bits.
        assert str(served_forms(mixed, "int4")[UP]) == "int4g32m"

    def test_of_widths_that_large_groups_do_not_divide(self, tmp_path: Path) -> None:
        for number, (hidden, int8, int4) in enumerate(
            [(96, "int8g32", "int4g32z"), (80, "int8g80", "int4g80z")]
        ):
            folder = tmp_path / str(number)
            save_tiny("llama", folder, hidden_size=hidden, intermediate_size=160)
            model = open_model(folder)
            forms = served_forms(model, "int8")
            assert str(forms[UP]) == int8
            assert str(served_forms(model, "int4")[UP]) == int4
            group = activation_group(
                forms, expected_shapes(model.config, whole_model(model.config))
            )
            assert group == (32 if hidden == 96 else 0)

    @pytest.mark.parametrize(
        ("stored", "quantization", "expected"),
        [
            ("Q4_0", "exact", 32),
            ("Q4_K", "exact", 0),
            ("Q6_K", "exact", 0),
            ("Q4_K", "auto", 64),
            ("BF16", "int4", 64),  # head and embedding have groups of 64
            ("BF16", "none", 0),
        ],
    )
    def test_activations(
        self, stored: str, quantization: Quantization, expected: int, config: Any
    ) -> None:
        shapes = expected_shapes(config, whole_model(config))
        forms = served_forms(stored_as(config, stored), quantization)
        assert activation_group(forms, shapes) == expected

    def test_are_logged_in_one_line(self, config: Any) -> None:
        mixed = stored_as(config, "Q4_K", down_proj="Q6_K", up_proj="BF16")
        forms = served_forms(mixed, "auto")
        assert describe_forms(mixed, forms) == "Q4_K and Q6_K in int8, groups of 64"
        assert describe_forms(mixed, served_forms(mixed, "exact")) == "Q4_K and Q6_K as stored"
        assert describe_forms(mixed, {}) == ""


class TestTheChoice:
    def choose(self, stored: str, config: Any, int8: bool = True, free: int = 10**12) -> str:
        model = stored_as(config, stored)
        return choose_quantization(model, "auto", int8_activations=int8, free=free)

    def test_is_exact_where_int8_would_not_be_faster(self, config: Any) -> None:
        assert self.choose("Q4_K", config) == "auto"
        assert self.choose("Q4_K", config, int8=False) == "exact"

    def test_is_exact_where_memory_is_short_and_that_helps(self, config: Any) -> None:
        shapes = expected_shapes(config, whole_model(config))
        int8 = num_bytes(shapes, served_forms(stored_as(config, "Q4_K"), "auto"), 2)
        assert self.choose("Q4_K", config, free=2 * int8) == "auto"
        assert self.choose("Q4_K", config, free=int8) == "exact"
        assert self.choose("Q4_0", config) == "exact"  # which is what `auto` means for it

    def test_is_named_in_the_end(self, config: Any) -> None:
        cases: list[tuple[str, Quantization, str]] = [
            ("Q4_K", "auto", "int8"),
            ("Q4_K", "exact", "exact"),
            ("BF16", "exact", "none"),
        ]
        for stored, chosen, name in cases:
            forms = served_forms(stored_as(config, stored), chosen)
            assert quantization_name(chosen, forms) == name

    def test_is_not_made_where_it_was(self, config: Any) -> None:
        for given in ("exact", "int8", "int4", "none"):
            model = stored_as(config, "Q4_K")
            assert choose_quantization(model, given, int8_activations=False, free=1) == given


def last_logits(executor: OpenVinoExecutor, tokens: list[int]) -> np.ndarray:
    blocks = range(-(-len(tokens) // executor.block_size))
    return executor.execute(join_parts([StepPart(tokens, 0, blocks, True)], executor.block_size))[0]


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


class TestLogits:
    # Of int8 weights in groups of 64: each rounds by at most 1 / 254 of its group's largest.
    INT8_ERROR = 0.15  # random weights amplify it over the layers

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_every_type_equal_those_of_the_dequantised_weights(
        self, kind: str, files: Callable[[str], Path]
    ) -> None:
        model = open_model(files(kind))
        tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, 70).tolist()
        # `weights` are dequantised by the gguf package.
        expected = reference(model.config, whole_model(model.config), model.weights, tokens)[-1]
        exact = last_logits(load(files(kind), quantization="exact"), tokens)
        assert distance(exact, expected) < 1e-4
        int8 = last_logits(load(files(kind), quantization="int8"), tokens)
        assert distance(int8, expected) < self.INT8_ERROR

    @pytest.mark.parametrize("quantization", ["int8", "int4"])
    def test_of_weights_quantised_at_load_equal_those_of_what_they_became(
        self, quantization: str, tmp_path: Path
    ) -> None:
        save_tiny("qwen2", tmp_path)  # with biases, which stay as they are
        executor = load(tmp_path, quantization=quantization)
        tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, 40).tolist()
        config, stage = executor.config, executor.stage
        expected = reference(config, stage, executor.weights, tokens)[-1]
        assert distance(last_logits(executor, tokens), expected) < 1e-4
        plain = reference(config, stage, open_model(tmp_path).weights, tokens)[-1]
        error = distance(last_logits(executor, tokens), plain)
        assert 1e-4 < error < (self.INT8_ERROR if quantization == "int8" else 1.5)

    @pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K"])
    def test_greedy_text_is_the_same_whatever_the_budget(
        self, kind: str, files: Callable[[str], Path]
    ) -> None:
        executor = load(files(kind), quantization="exact")
        rng = np.random.default_rng(3)
        prompts = [rng.integers(2, VOCAB_SIZE, length).tolist() for length in (1, 45, 100, 33)]
        params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
        outputs = [run(engine(executor, budget=n), prompts, params) for n in (4096, 64, 7, 1)]
        assert all(output == outputs[0] for output in outputs)

    def test_of_a_fused_projection(self, tmp_path: Path) -> None:
        save_tiny("phi3", tmp_path)
        write_gguf(tmp_path, tmp_path / "m.gguf", "Q4_1")
        model = open_model(tmp_path / "m.gguf")
        tokens = list(range(5, 30))
        expected = reference(model.config, whole_model(model.config), model.weights, tokens)[-1]
        found = last_logits(load(tmp_path / "m.gguf", quantization="exact"), tokens)
        assert distance(found, expected) < 1e-4

    @pytest.mark.skipif(not supports_int8_activations(), reason="needs VNNI or AMX")
    def test_with_int8_activations_stay_close(self, files: Callable[[str], Path]) -> None:
        executor = load(files("Q4_0"), quantization="exact", precision=None)
        assert executor.warnings == ()
        tokens = list(range(5, 60))
        expected = reference(executor.config, executor.stage, executor.weights, tokens)[-1]
        assert 1e-4 < distance(last_logits(executor, tokens), expected) < 0.5

    def test_self_check_accepts_every_form(self, files: Callable[[str], Path]) -> None:
        for kind in ("Q4_0", "Q4_K"):
            for quantization in ("auto", "exact", "int8", "int4"):
                load(files(kind), quantization=quantization, precision=None).check()


class TestDamagedFiles:
    @pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K"])
    @pytest.mark.parametrize("quantization", ["none", "exact", "int8"])
    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_scales_that_are_no_numbers_are_refused(
        self,
        kind: str,
        quantization: str,
        value: str,
        files: Callable[[str], Path],
        tmp_path: Path,
    ) -> None:
        original = files(kind)
        weights = open_model(original).weights
        with_damage = bytearray(original.read_bytes())
        found = weights._stored._file.tensors["blk.1.ffn_up.weight"]  # type: ignore[attr-defined]
        at = found.offset + {"Q4_0": 0, "Q4_K": 0, "Q6_K": 208}[kind]
        with_damage[at : at + 2] = np.float16(value).tobytes()
        (tmp_path / "damaged.gguf").write_bytes(with_damage)
        expected = f"tensor blk.1.ffn_up.weight of type {kind} has a scale that is not a number"
        with pytest.raises(ModelError, match=expected):
            load(tmp_path / "damaged.gguf", quantization=quantization)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
    def test_tensors_that_are_not_finite_are_named(
        self, name: str, value: float, tmp_path: Path
    ) -> None:
        save_tiny("llama-tied", tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        tensors[name][..., :] = np.where(tensors[name] > 0, value, 1.0)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        for quantization in ("none", "int8"):
            with pytest.raises(ModelError, match=f"tensor {name} .*values that are not finite"):
                load(tmp_path, quantization=quantization).check()

    @pytest.mark.parametrize("kind", ["Q8_1", "Q8_K", "I8"])
    def test_types_that_cannot_be_dequantised_are_refused_when_it_is_opened(
        self, kind: str, files: Callable[[str], Path], tmp_path: Path
    ) -> None:
        stored = bytearray(files("F32").read_bytes())
        name = b"blk.1.ffn_up.weight"
        at = stored.index(name) + len(name) + 4 + 2 * 8
        stored[at : at + 4] = int(gguf.GGMLQuantizationType[kind]).to_bytes(4, "little")
        (tmp_path / "m.gguf").write_bytes(stored)
        expected = f"blk.1.ffn_up.weight has the quantisation type {kind}, which cannot be"
        with pytest.raises(ModelError, match=expected):
            open_model(tmp_path / "m.gguf")


def test_memory_is_what_the_forms_say(files: Callable[[str], Path]) -> None:
    model: Model = open_model(files("Q4_1"))
    shapes = expected_shapes(model.config, whole_model(model.config))
    sizes = {}
    for quantization in ("none", "int8", "exact"):
        executor = load(files("Q4_1"), quantization=quantization)
        forms = served_forms(model, quantization)  # type: ignore[arg-type]
        assert executor.weight_bytes == num_bytes(shapes, forms, 4)
        sizes[quantization] = executor.weight_bytes
    assert sizes["exact"] < sizes["int8"] < sizes["none"] / 3
    assert HEAD not in served_forms(model, "int8")  # tied: one matrix for head and embedding
