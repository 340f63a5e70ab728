from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.backends.footprint import num_parameters
from sarathi.errors import SimulationError
from sarathi.simulator.gpu_cost import mean_keys
from sarathi.simulator.setup import kv_blocks
from sarathi.simulator.simulated_model import MODELS, SimulatedModel
from tests.simulator.deployments import deployment

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
FALCON: dict[str, Any] = {
    "model_type": "falcon",
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "vocab_size": 65024,
}


def shape(folder: Path, config: dict[str, Any], **changed: Any) -> SimulatedModel:
    fields = {k: v for k, v in {**config, **changed}.items() if v != "absent"}
    (folder / "config.json").write_text(json.dumps(fields))
    return SimulatedModel.read(folder)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mistral-7b", 7.24),
        ("yi-34b", 34.4),
        ("llama2-7b", 6.74),
        ("llama2-13b", 13.0),
        ("llama2-70b", 69.0),
        ("llama3-8b", 8.03),
        ("llama3-70b", 70.6),
        ("codellama-34b", 33.7),
        ("falcon-40b", 41.3),
        ("falcon-180b", 179.5),
        ("qwen2.5-7b", 7.62),
        ("qwen2.5-72b", 72.7),
        ("smollm2-135m", 0.1345),
        ("gemma3-270m", 0.268),
    ],
)
def test_parameters_are_the_published_ones(name: str, billions: float) -> None:
    assert num_parameters(MODELS[name].config) / 1e9 == pytest.approx(billions, rel=0.005)


def test_key_value_bytes() -> None:
    def block(model: str, **fields: Any) -> float:
        [stage] = kv_blocks(deployment(model, **fields), 512, 1).stages
        return stage.block

    assert block("mistral-7b") == 128 * 1024
    assert block("llama2-7b") == 512 * 1024
    assert block("yi-34b", bytes_per_kv=1) == 120 * 1024


def test_a_configuration_gives_the_built_in_shape(tmp_path: Path) -> None:
    folder = tmp_path / "llama3-8b"
    folder.mkdir()
    assert shape(folder, LLAMA) == MODELS["llama3-8b"]
    assert SimulatedModel.read(folder / "config.json") == MODELS["llama3-8b"]


def test_falcon_with_one_key_value_head(tmp_path: Path) -> None:
    found = shape(tmp_path, FALCON)
    assert (found.config.num_kv_heads, found.config.head_dim, found.config.intermediate_size) == (
        1,
        64,
        4 * 4544,
    )
    assert (
        found.config.parallel,
        found.config.gated_mlp,
        found.config.tie_word_embeddings,
        found.norms,
    ) == (True, False, True, 1)
    assert num_parameters(found.config) / 1e9 == pytest.approx(6.92, rel=0.01)
    assert shape(tmp_path, FALCON, multi_query=False).config.num_kv_heads == 71
    assert not shape(tmp_path, FALCON, parallel_attn=False).config.parallel


def test_falcon_of_the_new_architecture(tmp_path: Path) -> None:
    found = shape(
        tmp_path,
        FALCON,
        new_decoder_architecture=True,
        hidden_size=8192,
        num_attention_heads=128,
        num_kv_heads=8,
        num_hidden_layers=60,
    )
    known = MODELS["falcon-40b"]
    assert (found.config.num_kv_heads, found.norms, found.config.parallel) == (8, 2, True)
    assert num_parameters(found.config) == num_parameters(known.config)


def test_head_width_is_read_or_derived(tmp_path: Path) -> None:
    assert shape(tmp_path, LLAMA, head_dim=64).config.head_dim == 64
    assert shape(tmp_path, LLAMA, model_type="qwen3").config.head_dim == 128
    assert shape(tmp_path, LLAMA, model_type="gemma2").config.head_dim == 256


def test_families_differ_in_the_fields_that_the_file_lacks(tmp_path: Path) -> None:
    gemma = shape(tmp_path, LLAMA, model_type="gemma2")
    assert (gemma.config.tie_word_embeddings, gemma.norms) == (True, 4)
    assert shape(tmp_path, LLAMA, model_type="qwen3").config.qk_norm
    neox = shape(tmp_path, LLAMA, model_type="gpt_neox", num_key_value_heads="absent")
    assert (neox.config.gated_mlp, neox.config.parallel, neox.config.num_kv_heads) == (
        False,
        True,
        32,
    )
    assert not shape(
        tmp_path, LLAMA, model_type="gpt_neox", use_parallel_residual=False
    ).config.parallel


def test_the_language_part_of_a_multimodal_model(tmp_path: Path) -> None:
    inner = {**LLAMA, "model_type": "gemma3_text", "sliding_window": 1024, "num_hidden_layers": 34}
    found = shape(tmp_path, {"model_type": "gemma3", "text_config": inner})
    assert (found.window, found.windowed_layers) == (1024, 34 - 5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, (4096, 32)),
        ({"model_type": "mistral", "sliding_window": None}, (0, 0)),
        ({"model_type": "phi3", "sliding_window": 2047}, (2047, 32)),
        ({"model_type": "gemma2", "sliding_window": 4096}, (4096, 16)),
        ({"model_type": "qwen2", "sliding_window": 4096}, (0, 0)),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, (0, 0)),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 4096,
                "use_sliding_window": True,
                "max_window_layers": 20,
            },
            (4096, 12),
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 4096,
                "layer_types": ["sliding_attention"] * 5 + ["full_attention"] * 27,
            },
            (4096, 5),
        ),
    ],
)
def test_windows(tmp_path: Path, fields: dict[str, Any], expected: tuple[int, int]) -> None:
    found = shape(tmp_path, LLAMA, **fields)
    assert (found.window, found.windowed_layers) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            "num_local_experts is 8, expected none",
        ),
        ({"model_type": "mamba"}, "model_type is 'mamba', expected a dense decoder: one of"),
        ({"model_type": "absent"}, "model_type is None, expected"),
        ({"kv_lora_rank": 512}, "kv_lora_rank is 512, expected none"),
        ({"is_encoder_decoder": True}, "expected false"),
        ({"hidden_size": "absent"}, "hidden_size is missing"),
        ({"vocab_size": -1}, "vocab_size is -1, expected an integer from 1"),
        ({"num_hidden_layers": 10**9}, "expected an integer from 1 to 4096"),
        ({"num_key_value_heads": 7}, "expected a divisor of num_attention_heads (32)"),
        ({"model_type": "falcon", "alibi": True}, "alibi is True, expected false"),
    ],
)
def test_what_has_no_price_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SimulationError) as refused:
        shape(tmp_path, LLAMA, **fields)
    assert message in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="cannot read"):
        SimulatedModel.read(tmp_path)


@given(st.integers(0, 3000), st.integers(1, 3000), st.integers(1, 3000))
def test_keys_in_a_window_are_counted_row_by_row(start: int, length: int, window: int) -> None:
    before, own = mean_keys(window, start, length)
    rows = [row + 0.5 for row in range(length)]
    assert own == pytest.approx(sum(min(row, window) for row in rows) / length, abs=0.5)
    both = sum(min(start + row, window) for row in rows) / length
    assert before + own == pytest.approx(both, abs=0.5)
    assert before >= -1e-9
