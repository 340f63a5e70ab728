"""`sarathi serve --ray`, as a person runs it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sarathi.cli.main import main
from sarathi.engine.config import EngineConfig
from sarathi.engine.llm import LLM
from sarathi.fleet.ray import cluster as clusters
from sarathi.fleet.ray.cluster import Cluster
from sarathi.sampling.params import SamplingParams
from tests.tiny_models import save_tiny

PROMPT = "What is it that flies?"
SECONDS = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny("qwen3", folder)
    return folder


@pytest.mark.parametrize(
    "option", [["--ray-address", "10.0.0.1:6379"], ["--ray-cpus-per-rank", "2"]]
)
def test_options_of_ray_without_it(
    model: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(model), *option]) == 2
    assert f"{option[0]} has no effect without --ray" in capsys.readouterr().err


def test_without_ray_installed(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    assert main(["serve", str(model), "--ray"]) == 2
    assert "--ray needs Ray: pip install 'sarathi-serve[ray]'" in capsys.readouterr().err


class Server:
    """On the cluster of these tests, which it joins as it would any other."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        import ray

        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-m", "sarathi.cli.main", "serve", str(model), "--port", "0"]
        command += ["--ray", "--ray-address", address, *options]
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def url(self) -> str:
        """Of the server, once it is ready."""
        deadline = time.monotonic() + SECONDS
        while "is ready on" not in self.log:
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.05)
        return self.log.partition("is ready on ")[2].split()[0]


@contextlib.contextmanager
def serving(*args: object) -> Iterator[Server]:
    server = Server(*args)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def wait_until_free(cluster: Cluster) -> None:
    deadline = time.monotonic() + SECONDS
    while cluster.free()[0] != cluster.nodes[0].cpus:
        assert time.monotonic() < deadline, cluster.free()
        time.sleep(0.1)


def test_a_server_joins_a_cluster_and_leaves_it_as_it_was(
    ray_cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    config = EngineConfig(precision="f32", threads=1, kv_cache_memory=2**22)
    params = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
    [reference] = LLM(str(model), config=config).generate([PROMPT], params)
    options = ["--precision", "f32", "--threads", "1", "--kv-cache-memory", "4MiB"]
    with serving(model, tmp_path / "log", "--replicas", "2", *options) as server:
        url = server.url()
        request = {
            "model": "tiny",
            "prompt": PROMPT,
            "max_tokens": 100,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = httpx.post(f"{url}/completions", json=request, timeout=SECONDS).json()
        assert answer["choices"][0]["text"] == reference.outputs[0].text
        assert ray_cluster.free()[0] == ray_cluster.nodes[0].cpus - 2
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
    assert "joined the Ray cluster at" in server.log
    assert "each replica has 1 CPU" in server.log
    wait_until_free(ray_cluster)


def test_a_server_that_is_killed_leaves_nothing_on_the_cluster(
    ray_cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    options = ["--threads", "1", "--kv-cache-memory", "4MiB"]
    with serving(model, tmp_path / "log", *options) as server:
        server.url()
        assert ray_cluster.free()[0] < ray_cluster.nodes[0].cpus
    wait_until_free(ray_cluster)


def test_a_model_that_cannot_be_loaded_is_reported_by_the_actor(
    ray_cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    options = ["--threads", "1", "--max-model-len", "100000"]
    with serving(model, tmp_path / "log", *options) as server:
        assert server.process.wait(SECONDS) == 2
    assert "max_model_len is 100000, but the model was made for at most" in server.log
    wait_until_free(ray_cluster)
