"""`--load-format dummy`: random weights from a configuration or a name, end to end."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import huggingface_hub
import pytest

from sarathi.backends import model_instance
from sarathi.cli.main import main
from sarathi.engine.config import EngineConfig
from sarathi.engine.llm import LLM
from sarathi.engine.startup.load import load_engine
from sarathi.errors import ConfigError, ExecutorError
from sarathi.models.formats.huggingface_checkpoint import read_config
from sarathi.models.locate import RANDOM_WEIGHTS, locate_config
from sarathi.simulator.simulated_model import MODELS, SimulatedModel, config_folder
from sarathi.system.cache_folder import cache_folder

START_SECONDS = 120.0
CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
DUMMY = ("--load-format", "dummy")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@contextmanager
def serving(model: Path, log: Path, *options: str) -> Iterator[httpx.Client]:
    """The real command, ready to answer."""
    command = [sys.executable, "-m", "sarathi.cli.main", "serve", str(model), "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *DUMMY, *options], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while " is ready on " not in (text := log.read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        url = text.partition(" is ready on ")[2].partition("/v1")[0]
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("executor", ["openvino", "torch"])
def test_a_configuration_is_served(tiny: Path, tmp_path: Path, executor: str) -> None:
    log = tmp_path / "log.txt"
    options = ["--executor", executor, "--precision", "f32", "--kv-cache-memory", "8MB"]
    if executor == "torch":
        options += ["--device", "cpu"]
    with serving(tiny / "config.json", log, *options) as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert model["id"] == "tiny-llama"
        assert model["warning"] == RANDOM_WEIGHTS
        body = {
            "messages": [{"role": "user", "content": "Is it there?"}],
            "max_tokens": 5,
            "ignore_eos": True,  # random weights may end an answer at any token
        }
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == 5
        assert answer["choices"][0]["message"]["content"]
        text = {"prompt": "Is it there?"}
        count = client.post("/tokenize", json=text).json()["count"]
        body = {**text, "max_tokens": 7, "ignore_eos": True}
        usage = client.post("/v1/completions", json=body).json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (count, 7)
    assert f"warning: {RANDOM_WEIGHTS}" in log.read_text()
    assert "(random weights, f32" in log.read_text()


def test_shards_and_stages_make_the_same_weights(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for layout in ((), ("--tp", "2"), ("--pp", "2")):
        command = ["generate", str(tiny), *DUMMY, "--json", "--prompt", "the same for all"]
        command += ["--executor", "torch", "--device", "cpu", "--precision", "f32"]
        command += ["--temperature", "0", "--max-tokens", "12", "--ignore-eos", *layout]
        command += ["--kv-cache-memory", "8MB", "--threads", "1"]
        assert main(command) == 0
        found.append(json.loads(capsys.readouterr().out)["outputs"][0]["token_ids"])
    assert len(set(found[0])) > 3
    assert found[1:] == found[:1] * 2


def test_the_offline_class(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        llm = LLM(str(tiny / "config.json"), load_format="dummy", kv_cache_memory=8 * 10**6)
    assert RANDOM_WEIGHTS in caplog.text
    assert llm.served_name == "tiny-llama"
    assert llm.info.random_weights
    assert llm.chat([{"role": "user", "content": "hello"}]).outputs[0].token_ids
    with pytest.raises(ConfigError, match="load_format is 'fast', expected one of auto, dummy"):
        LLM(str(tiny), load_format="fast")


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_has_the_shape_of_the_simulators(name: str) -> None:
    folder = config_folder(MODELS[name])
    assert folder.parent == cache_folder() / "dummy"
    assert SimulatedModel.read(folder) == MODELS[name]
    config = read_config(folder)
    simulated = MODELS[name].config
    for size in ("num_layers", "num_heads", "num_kv_heads", "hidden_size", "intermediate_size"):
        assert getattr(config, size) == getattr(simulated, size)
    assert config.vocab_size == simulated.vocab_size
    assert config.tie_word_embeddings == simulated.tie_word_embeddings


def test_a_name_is_enough_for_a_dry_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sarathi.engine.startup.dry_run.available_memory", lambda: 64 * 10**9)
    assert main(["serve", "mistral-7b", *DUMMY, "--dry-run", "--precision", "f32"]) == 0
    printed = capsys.readouterr().out
    assert "7.242 billion parameters: 32 layers of 4096, 32 heads, 8 key heads" in printed
    assert f"files:   none: {RANDOM_WEIGHTS}" in printed
    assert "29.0 GB" in printed
    assert "up to 32768 tokens a request" in printed


def test_weights_that_do_not_fit_are_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_instance, "available_memory", lambda: 1000)
    with pytest.raises(ExecutorError, match="the weights take"):
        load_engine(tiny, EngineConfig(load_format="dummy"), lambda line: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mistral-7b",), "--load-format dummy serves random weights of the shape of mistral-7b"),
        (("mistral-8b", *DUMMY), "there is no model 'mistral-8b'; accepted are a config.json"),
        (("mistral-8b", *DUMMY), "or one of mistral-7b, yi-34b, llama2-70b"),
        (("mistral-7b", *DUMMY, "--ray"), "the path of a config.json"),
        (("org/name", *DUMMY, "--ray"), "that all machines have, not org/name"),
        (("mistral-7b", *DUMMY, "--dry-run", "--pp", "3"), "cannot be shared out equally"),
    ],
)
def test_unavailable_models_are_reported(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_formats_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "mistral-7b", "--load-format", "safetensors"])
    assert ended.value.code == 2
    assert "'auto', 'dummy'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["weights.gguf", "other.json", ""])
def test_files_that_are_no_configuration_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name:
        (tmp_path / name).write_text("{}")
    assert main(["serve", str(tmp_path / name), *DUMMY]) == 2
    assert "is or has no config.json; accepted are" in capsys.readouterr().err


def test_no_weights_of_a_hub_id_are_downloaded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(repo_id: str, allow_patterns: list[str], cache_dir: Path | None) -> str:
        asked.append(allow_patterns)
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    located = locate_config("org/name")
    assert (located.path, located.served_name) == (tiny, "org/name")
    assert asked == [["*.json", "*.jinja", "tokenizer*"]]
