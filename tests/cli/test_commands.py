"""`sarathi` as a user types it: what it prints, and how it refuses what is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sarathi import errors
from sarathi.cli import report
from sarathi.cli.chat import ChatError
from sarathi.cli.main import main
from sarathi.cli.report import ReportOptions
from sarathi.scheduler import AdmissionError
from tests import tiny_gguf, tiny_models


def sarathi(*args: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sarathi.cli.main", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )


def refused(*args: object) -> str:
    """The one line that says what is wrong."""
    found = sarathi(*args)
    assert found.returncode == 2, found
    assert "Traceback" not in found.stderr
    assert not found.stdout
    return found.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.save_tiny("llama", folder)
    return folder


@pytest.fixture(scope="module")
def truncated(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("broken") / "broken.gguf"
    tiny_gguf.write_gguf(tiny, path)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


class TestGenerate:
    def test_a_real_model_answers_in_json(self) -> None:
        found = sarathi(
            *("generate", "smollm2-135m", "--prompt", "The capital of France is"),
            *("--max-tokens", 40, "--temperature", 0, "--json"),
        )
        assert found.returncode == 0, found.stderr
        [line] = found.stdout.splitlines()
        result = json.loads(line)
        assert result["prompt"] == "The capital of France is"
        [output] = result["outputs"]
        assert output["text"].startswith(" Paris")
        assert 1 < len(output["token_ids"]) <= 40
        assert output["finish_reason"] in ("length", "stop")

    def test_prompts_come_from_arguments_and_files(self, tiny: Path, tmp_path: Path) -> None:
        lines = tmp_path / "prompts.txt"
        lines.write_text("first\n\nsecond\n")
        options = ("--max-tokens", 3, "--ignore-eos", "--json", "--n", 2, "--seed", 1)
        found = sarathi("generate", tiny, "--prompt", "zero", "--prompt-file", lines, *options)
        assert found.returncode == 0, found.stderr
        results = [json.loads(line) for line in found.stdout.splitlines()]
        assert [result["prompt"] for result in results] == ["zero", "first", "second"]
        for result in results:
            assert [len(output["token_ids"]) for output in result["outputs"]] == [3, 3]

    def test_a_jsonl_file_may_hold_token_ids_and_objects(self, tiny: Path, tmp_path: Path) -> None:
        lines = tmp_path / "prompts.jsonl"
        lines.write_text('"text"\n[5, 6]\n{"prompt": "other", "id": 3}\n')
        found = sarathi("generate", tiny, "--prompt-file", lines, "--max-tokens", 1, "--json")
        assert found.returncode == 0, found.stderr
        results = [json.loads(line) for line in found.stdout.splitlines()]
        assert [result["prompt"] for result in results] == ["text", None, "other"]
        assert results[1]["prompt_tokens"] == 2

    def test_without_json_the_text_is_printed(self, tiny: Path) -> None:
        options = ("--max-tokens", 4, "--temperature", 0, "--ignore-eos")
        found = sarathi("generate", tiny, "--prompt", "hello", *options)
        assert found.returncode == 0, found.stderr
        assert found.stdout.startswith("hello")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "--prompt"),
            (("--prompt", "x", "--temperature", "-1"), "temperature is -1.0, expected"),
            (("--prompt", "x", "--temperature", "nan"), "temperature: 'nan' is not a number"),
            (("--prompt", "x", "--top-p", "0"), "top_p is 0.0, expected"),
            (("--prompt", "x", "--max-tokens", "0"), "'0' is not an integer at least 1"),
            (("--prompt", "x", "--n", "many"), "--n: 'many' is not an integer"),
            (("--prompt", ""), "empty"),
            (("--prompt", "x" * 600), "leaves no room"),
            (("--prompt-file", "nowhere.txt"), "cannot read nowhere.txt"),
        ],
    )
    def test_bad_requests_are_refused(
        self, tiny: Path, options: tuple[str, ...], message: str
    ) -> None:
        assert message in refused("generate", tiny, *options)

    @pytest.mark.parametrize("line", ["{", "3", "[1, -1]", '{"text": "x"}', "[true]"])
    def test_bad_lines_are_refused_by_their_number(
        self, tiny: Path, tmp_path: Path, line: str
    ) -> None:
        lines = tmp_path / "prompts.jsonl"
        lines.write_text(f'"good"\n{line}\n')
        assert "prompts.jsonl:2" in refused("generate", tiny, "--prompt-file", lines)


class TestServe:
    def test_an_unknown_model(self) -> None:
        assert "accepted are" in refused("serve", "no-such-model")
        assert "MODEL: its bytes are not UTF-8" in refused("serve", "\udcff")

    def test_a_truncated_file(self, truncated: Path) -> None:
        assert "truncated" in refused("serve", truncated, "--port", 0)

    def test_a_model_of_another_architecture(self, tiny: Path, tmp_path: Path) -> None:
        for path in tiny.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((tiny / "config.json").read_text())
        config["architectures"] = ["BertModel"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        message = refused("serve", tmp_path, "--port", 0)
        assert "BertModel" in message
        assert "LlamaForCausalLM" in message

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--max-model-len", "10000"), "at most 512"),
            (("--kv-cache-memory", "1kB"), "holds no block"),
            (("--kv-cache-memory", "100kB", "--max-model-len", "400"), "too small for one request"),
            (("--kv-cache-memory", "lots"), "not a size"),
            (("--kv-cache-memory", "9" * 400), "expected 1 to"),
            (("--token-budget", "0"), "an integer at least 1"),
            (("--token-budget", "100000000000000000000"), "at most 2147483647"),
            (("--max-batch-size", "-3"), "an integer at least 1"),
            (("--policy", "fifo"), "invalid choice"),
            (("--policy", "orca", "--token-budget", "64"), "no effect on the policy orca"),
            (("--policy", "orca", "--tbt-target", "1s"), "no effect on the policy orca"),
            (("--tbt-target", "0"), "a time above 0"),
            (("--tbt-target", "fast"), "100ms, 1.5s or 2m"),
            (("--tbt-target", "2h", "--token-budget", "64"), "exclude each other"),
            (("--order", "slack", "--ttft-target", "25h"), "at most a day"),
            (("--ttft-target", "2s"), "no effect on the order fcfs"),
            (("--gpu-memory-utilization", "0.5"), "no effect on CPUs"),
            (("--gpu-memory-utilization", "1.1"), "greater than 0 and at most 1"),
            (("--order", "lifo"), "'fcfs', 'priority', 'slack'"),
            (("--fair-by", "weight"), "'tenant'"),
            (("--min-prefill-share", "1"), "at least 0 and less than 1"),
            (("--min-prefill-share", "much"), "is not a number at least 0"),
            (("--in-order-share", "0"), "greater than 0 and at most 1"),
            (("--in-order-share", "nan"), "is not a number greater than 0"),
            (("--iteration-log", "no/such/folder/log.jsonl"), "not a file that can be written"),
            (("--iteration-log", "\udcff.jsonl"), "--iteration-log: its bytes are not UTF-8"),
            (("--trace", "x" * 300), "not a file that can be written"),
            (("--trace", "/"), "not a file that can be written"),
            (("--trace", "one", "--iteration-log", "one"), "the same file"),
            (("--precision", "f64"), "invalid choice"),
            (("--precision", "f32", "--kv-precision", "bf16"), "f32 or u8, not bf16"),
            (("--api-key", ""), "--api-key: the key is empty"),
            (("--api-key", "\udcff"), "--api-key: its bytes are not UTF-8"),
            (("--served-model-name", "\udcff"), "name: its bytes are not UTF-8"),
            (("--port", "70000"), "at least 0 and at most 65535"),
            (("--host", "256.1.1.1"), "--host"),
        ],
    )
    def test_bad_options(self, tiny: Path, options: tuple[str, ...], message: str) -> None:
        # A later --port wins over an earlier one.
        assert message in refused("serve", tiny, "--port", 0, *options)

    def test_a_port_in_use(self, tiny: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert f"cannot listen on 127.0.0.1:{port}" in refused("serve", tiny, "--port", port)


def test_help_names_every_command() -> None:
    found = sarathi("--help")
    assert found.returncode == 0
    assert all(command in found.stdout for command in ("serve", "generate", "chat"))


def report_that_raises(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(options: ReportOptions) -> int:
        raise error

    monkeypatch.setattr(report, "run", run)


@pytest.mark.parametrize(
    "kind",
    [
        errors.UsageError,
        errors.ConfigError,
        errors.ModelError,
        errors.ExecutorError,
        errors.BenchmarkError,
        errors.SimulationError,
        AdmissionError,
        ChatError,
    ],
)
def test_what_the_user_can_correct_is_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report_that_raises(kind("this is wrong"), monkeypatch)
    assert main(["report", "run.json"]) == 2
    assert capsys.readouterr().err == "sarathi report: error: this is wrong\n"


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
def test_a_bug_shows_its_traceback(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    report_that_raises(kind("a bug"), monkeypatch)
    with pytest.raises(kind, match="a bug"):
        main(["report", "run.json"])


class TestWhereItIsStarted:
    """The engine is a separate process: files and folders around it must not confuse it."""

    def serve(self, tiny: Path, log: Path, **where: object) -> str:
        """What a server logs until it is interrupted, once it is ready."""
        command = [sys.executable, "-c", "from sarathi.cli.main import main; main()"]
        command += ["serve", str(tiny), "--port", "0", "--kv-cache-memory", "10MB"]
        with log.open("w") as output:
            server = subprocess.Popen(command, stderr=output, **where)  # type: ignore[call-overload]
        deadline = time.monotonic() + 60
        while "ready" not in log.read_text() and server.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        server.terminate()
        server.wait(20)
        return log.read_text()

    def test_a_file_named_like_a_module_is_not_taken_for_it(
        self, tiny: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "here"
        folder.mkdir()
        (folder / "msgpack.py").write_text("raise RuntimeError")
        (folder / "openvino.py").write_text("raise RuntimeError")
        # `-c` puts the folder in front for this process alone, which imports neither.
        assert "ready" in self.serve(tiny, tmp_path / "log", cwd=folder)

    def test_a_long_path_for_temporary_files(self, tiny: Path, tmp_path: Path) -> None:
        folder = tmp_path / ("long" * 30)
        folder.mkdir()
        environment = {**os.environ, "TMPDIR": str(folder)}
        assert "ready" in self.serve(tiny, tmp_path / "log", env=environment)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_while_loading_ends_it_at_once(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        command = [sys.executable, "-m", "sarathi.cli.main", "serve", "smollm2-135m", "--port", "0"]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        server = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        assert server.stderr is not None
        line = server.stderr.readline()
        assert "reading" in line
        server.send_signal(number)
        rest = server.stderr.read()
        assert "Traceback" not in rest
        assert server.wait(10) in (0, 130)
        assert list(tmp_path.iterdir()) == []
