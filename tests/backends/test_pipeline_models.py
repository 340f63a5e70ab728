"""Engines of several processes answer like one of a single process, token for token."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sarathi.backends.parallel.rank_layout import ParallelLayout
from sarathi.engine.config import EngineConfig
from sarathi.engine.llm import LLM
from sarathi.engine.startup.load import load_engine
from sarathi.errors import ConfigError, ExecutorError, ModelError
from sarathi.sampling.params import SamplingParams
from tests.backends.pipelines import SOON, Spawned, freeze, gone, hybrid_steps, kill, opened
from tests.tiny_models import save_tiny

# The budget cuts the longer prompts into chunks, which run with the decodes of the shorter ones.
_CONFIG = EngineConfig(
    precision="f32", threads=1, token_budget=24, max_model_len=128, max_batch_size=8
)
_PROMPTS = [[(7 * i + j) % 254 + 2 for j in range(n)] for i, n in enumerate((5, 61, 17, 80, 3))]
_PARAMS = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


def answers(path: Path, **changes: Any) -> tuple[list[list[int]], list[str]]:
    """Greedy tokens of the prompts, and the progress lines while loading."""
    lines: list[str] = []
    llm = LLM(str(path), config=_CONFIG, on_progress=lines.append, **changes)
    try:
        outputs = llm.generate(_PROMPTS, _PARAMS)
        return [output.outputs[0].token_ids for output in outputs], lines
    finally:
        llm._core.close()


def test_stages_of_openvino(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path, num_layers=6)
    expected, lines = answers(tmp_path)
    assert any(line.startswith("one process: layers 0 to 5, ") for line in lines)
    for stages in (2, 3):
        found, lines = answers(tmp_path, pp=stages)
        assert found == expected
        for stage in range(stages):
            name = f"stage {stage}, rank 0: "
            reported = [line.removeprefix(name) for line in lines if line.startswith(name)]
            first = stage * 6 // stages
            layers = f"layers {first} to {first + 6 // stages - 1}"
            assert reported[0].startswith(f"{layers}, ")  # before anything is loaded
            assert reported[-1].startswith(f"{layers} loaded, ")


def test_stages_and_ranks_of_torch_for_a_model_shaped_like_falcon_180b(tmp_path: Path) -> None:
    save_tiny("falcon-180b", tmp_path, num_layers=4)
    torch = {"executor": "torch", "device": "cpu"}
    expected, _ = answers(tmp_path, **torch)
    assert answers(tmp_path)[0] == expected  # of openvino
    assert answers(tmp_path, pp=2, tp=2, **torch)[0] == expected


def test_a_rank_that_dies_in_the_midst_of_a_step(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, num_layers=2)
    spawner = Spawned()
    with opened(
        tmp_path, ParallelLayout(tp=2), spawner, executor="torch", device="cpu"
    ) as pipeline:
        pipeline.check_computing()
        step = hybrid_steps()[0]
        pipeline.runner.submit(step)
        pipeline.runner.result()
        freeze(spawner.pids[0])
        pipeline.runner.submit(step)
        kill(spawner.pids[0])
        with pytest.raises(ExecutorError, match=r"rank 1 has ended \(killed by SIGKILL"):
            pipeline.runner.result()
    assert gone(spawner.pids, SOON)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pp": 2}, ModelError, "3 layers cannot be shared out equally to 2 pipeline stages"),
        ({"executor": "torch", "tp": 8}, ModelError, "4 heads cannot be shared out"),
        ({"pp": 3, "kv_cache_memory": 1000}, ConfigError, "holds no block"),
        ({"pp": 3, "kv_cache_memory": 30_000}, ConfigError, "too small for one request"),
    ],
)
def test_what_cannot_be_had(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    save_tiny("llama", tmp_path)
    spawner = Spawned()
    config = EngineConfig(precision="f32", max_model_len=128, **changes)
    with pytest.raises(error, match=message):
        load_engine(tmp_path, config, lambda line: None, spawner)
    assert gone(spawner.pids)


def test_without_torch(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    look = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from sarathi.engine.config import EngineConfig\n"
        "from sarathi.engine.startup.load import load_engine\n"
        f"load_engine(Path({str(tmp_path)!r}), EngineConfig(executor='torch'), print)"
    )
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert "ExecutorError: --executor torch needs PyTorch: pip install" in found.stderr
