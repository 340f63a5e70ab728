"""The benchmark against llama.cpp: its stream, the random model, the table, and a short run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from perf import versus_llama_cpp as versus
from perf.bandwidth import read_bandwidth
from perf.batch_decodes import decode_seconds
from perf.contenders import figures_of
from perf.llama_cpp import LlamaCppError, build_server, command, find_server
from perf.random_gguf import LlamaShape, tensor_bytes, write_random_llama
from perf.versus_llama_cpp import FULL, Comparison, Sizes, capacity_rows, main, small_batch
from perf.versus_table import OTHER, OURS, PLAIN, Row, markdown, show_rows
from sarathi import LLM, SamplingParams
from sarathi.bench.client.answer import Answer
from sarathi.bench.target import Target, url_of
from sarathi.cli.measurement import ServerMeasurement
from sarathi.errors import BenchmarkError
from sarathi.models.locate import locate
from sarathi.models.model import open_model, open_tokenizer
from sarathi.telemetry import RequestRecord
from tests.tiny_gguf import write_gguf
from tests.tiny_models import save_tiny

SHAPE = LlamaShape(hidden=64, layers=2, heads=4, kv_heads=2, inner=96, vocabulary=300, context=512)
# Starts our own server with what llama.cpp's is given.
STAND_IN = """#!{python}
import os, sys
words = sys.argv[1:]
model, port = (words[words.index(name) + 1] for name in ("--model", "--port"))
serve = ["-m", "sarathi.cli.main", "serve", model, "--port", port, "--token-budget", "64"]
os.execv(sys.executable, [sys.executable, *serve])
"""


def llama_cpp_stream(texts: list[str], tokens: int) -> bytes:
    """As llama.cpp's server answers: usage and timings only at the end, in chunks of HTTP."""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    common = {"created": 1, "model": "m.gguf", "object": "text_completion", "id": "chatcmpl-1"}
    events: list[dict[str, Any]] = [
        {"choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": None}], **common}
        for text in texts
    ]
    counts = {"completion_tokens": tokens, "prompt_tokens": 7, "total_tokens": 7 + tokens}
    usage = {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
    last = {"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}
    timings = {"prompt_n": 7, "predicted_ms": 109.2, "predicted_per_second": 36.6}
    events.append({"choices": [last], **common, "usage": usage, "timings": timings})
    pieces = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(p), p.encode()) for p in pieces) + b"0\r\n\r\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny("llama", folder)
    write_gguf(folder, folder / "tiny.gguf")
    return folder / "tiny.gguf"


@pytest.fixture(scope="module")
def random_llama(tiny: Path) -> Path:
    path = tiny.with_name("random.gguf")
    write_random_llama(path, tiny, SHAPE)
    return path


class TestStream:
    def read(self, data: bytes, asked: int, piece: int = 50) -> Answer:
        answer = Answer(asked, exact=True)
        for at in range(0, len(data), piece):
            answer.feed(data[at : at + piece], at / 1000)
        assert answer.over
        return answer

    def test_every_event_with_text_is_a_token(self) -> None:
        answer = self.read(llama_cpp_stream([" Paris", ".", "\n", "The"], 4), 4)
        assert answer.failure is None
        assert answer.times.usage is not None
        assert answer.times.usage.prompt_tokens == 7
        assert len(answer.tokens) == 4
        assert answer.tokens == sorted(set(answer.tokens))
        assert not answer.estimated

    def test_tokens_whose_text_was_held_back_count(self) -> None:
        answer = self.read(llama_cpp_stream(["a", "\N{SNOWMAN}"], 4), 4)
        assert answer.failure is None
        assert len(answer.tokens) == 4
        assert answer.estimated

    def test_an_answer_that_ends_early_has_failed(self) -> None:
        assert self.read(llama_cpp_stream(["a", "b"], 2), 4).failure == "short"


def test_figures_of_a_burst() -> None:
    records = [
        RequestRecord(
            arrival=1.0, prompt_tokens=9, output_tokens=3, tokens=[2.0, 2.5, first + 1], end=4
        )
        for first in (2.0, 2.5)
    ]
    assert figures_of(records) == {"ttft": 1.0, "total": 2.5, "tbt": pytest.approx(0.625)}
    assert "tbt" not in figures_of(
        [RequestRecord(arrival=0, prompt_tokens=1, output_tokens=1, tokens=[1.0], end=1)]
    )


class TestRandomModel:
    def test_weights_are_in_four_bits_around_zero(self, random_llama: Path) -> None:
        shapes = dict(SHAPE.tensors())
        for tensor in gguf.GGUFReader(random_llama).tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert values.shape == shapes.pop(tensor.name)
            if values.ndim == 1:
                assert (values == 1).all()
                continue
            assert tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0
            assert values.std() == pytest.approx(0.02, rel=0.1)
            assert abs(values.mean()) < 0.002
        assert not shapes

    def test_bytes_are_those_of_the_tensors(self, random_llama: Path) -> None:
        weights = sum(int(np.prod(dims)) for _, dims in SHAPE.tensors() if len(dims) == 2)
        norms = sum(dims[0] for _, dims in SHAPE.tensors() if len(dims) == 1)
        assert tensor_bytes(random_llama) == weights * 18 // 32 + 4 * norms

    def test_it_is_that_of_llama_3_2_1b(self) -> None:
        weights = sum(int(np.prod(dims)) for _, dims in LlamaShape().tensors())
        assert weights == 1_235_814_400

    def test_it_is_served_with_the_other_tokenizer(self, random_llama: Path, tiny: Path) -> None:
        config = open_model(random_llama).config
        assert (config.vocab_size, config.num_layers, config.max_position) == (300, 2, 512)
        text = "a little text"
        expected = open_tokenizer(tiny).encode(text)
        assert open_tokenizer(random_llama).encode(text) == expected
        llm = LLM(str(random_llama), precision="f32", kv_cache_memory=2**22)
        params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
        [result] = llm.generate([text], params)
        assert len(result.outputs[0].token_ids) == 5

    def test_a_larger_vocabulary_is_refused(self, tiny: Path, tmp_path: Path) -> None:
        shape = LlamaShape(hidden=64, heads=4, kv_heads=2, inner=96, vocabulary=100)
        with pytest.raises(ValueError, match="256 tokens, more than 100"):
            write_random_llama(tmp_path / "m.gguf", tiny, shape)


class TestTable:
    ROWS = (
        Row("m", "decode", "ms", {OURS: 9.5, OTHER: 10.0, PLAIN: 17.0}, OTHER, 0.95, 0.95),
        Row("m", "capacity", "/s", {OURS: 1.5, OTHER: None}, OTHER, None, 5.0, "at least"),
        Row("n", "capacity", "/s", {OURS: 1.5, OTHER: 0.5}, OTHER, 3.0, 5.0, "at least"),
    )

    def test_goals_are_of_the_ratios(self) -> None:
        assert [row.met for row in self.ROWS] == [True, None, False]

    def test_markdown_has_a_table_for_each_model(self) -> None:
        lines = markdown(self.ROWS, "measured here").splitlines()
        assert lines[2] == (
            "| decode | 9.50 ms | 10.0 ms | 17.0 ms | llama.cpp | 0.950 | at most 0.950 | yes |"
        )
        assert lines[3].endswith("| not measured | at least 5.00 |  |")
        assert (
            lines[7]
            == "| capacity | 1.50 /s | 0.500 /s |  | llama.cpp | 3.00 | at least 5.00 | NO |"
        )
        assert lines[-1] == "measured here"

    def test_it_is_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        show_rows(self.ROWS, "measured here")
        assert "measured here" in capsys.readouterr().out

    def test_the_best_setting_of_the_other_counts(self) -> None:
        rates = {OURS: 2.0, OTHER: 0.25, f"{OTHER}, batches of 64": 0.5, PLAIN: 1.6}
        first, second = capacity_rows("m", rates)
        assert first.over == "llama.cpp, batches of 64"
        assert first.ratio == 4.0
        assert second.ratio == pytest.approx(1.25)
        assert second.met
        [alone] = capacity_rows("m", {OURS: 2.0, OTHER: None})
        assert alone.ratio is None

    @pytest.mark.parametrize(("speed", "tokens"), [(400, 48), (10, 32), (1e6, 2048)])
    def test_small_batches_fit_the_target(self, speed: float, tokens: int) -> None:
        assert small_batch(speed) == tokens

    def test_the_documentation_keeps_the_rest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        docs = tmp_path / "performance.md"
        monkeypatch.setattr(versus, "_DOCS", docs)
        begin, end = versus._MARKS
        docs.write_text(f"before\n{begin}old\n{end}\nafter\n")
        versus.document(self.ROWS)
        text = docs.read_text()
        assert text.startswith(f"before\n{begin}")
        assert text.endswith(f"{end}\nafter\n")
        assert "| decode |" in text
        assert "old" not in text
        docs.write_text("no marks")
        with pytest.raises(BenchmarkError, match="no marks"):
            versus.document(self.ROWS)

    def test_the_real_documentation_has_the_marks(self) -> None:
        text = versus._DOCS.read_text()
        assert all(mark in text for mark in versus._MARKS)


class TestServer:
    def test_without_one_the_exit_status_is_two(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert main(["smollm2-135m"]) == 2
        assert "--llama-server PATH" in capsys.readouterr().err
        assert main(["--llama-server", str(tmp_path / "absent")]) == 2
        assert "absent is no program" in capsys.readouterr().err
        with pytest.raises(LlamaCppError, match="needs cmake"):
            build_server(tmp_path)

    def test_one_that_was_built_is_used(self, tmp_path: Path) -> None:
        built = tmp_path / "build" / "bin" / "llama-server"
        built.parent.mkdir(parents=True)
        built.touch(0o755)
        assert build_server(tmp_path) == built
        assert find_server(str(built)) == built

    def test_every_slot_takes_the_longest_request(self) -> None:
        words = command(Path("llama-server"), Path("m.gguf"), 512, threads=3, batch=48)
        assert words[words.index("--ctx-size") + 1] == str(16 * 512)
        assert words[-2:] == ["--batch-size", "48"]


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < read_bandwidth() < 1e13


def test_decodes_of_engines_in_turns(tiny: Path) -> None:
    engines: dict[str, dict[str, Any]] = {
        "one": {"precision": "f32"},
        "other": {"precision": "f32", "threads": 1},
    }
    seconds = decode_seconds(tiny, engines, batch=3, context=20, turns=2, kv_cache=2**22)
    assert seconds.keys() == engines.keys()
    assert all(0 < took < 10 for took in seconds.values())


def test_capacities_are_searched_with_the_small_batch_too(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[ServerMeasurement, list[Target], float, int]] = []
    found = {OURS: 2.0, OTHER: 0.25, f"{OTHER}, batches of 48": 0.4, PLAIN: 1.0}

    class Searches:
        def __init__(
            self,
            options: ServerMeasurement,
            targets: list[Target],
            *,
            tbt_target: float,
            requests_per_point: int,
        ) -> None:
            asked.append((options, targets, tbt_target, requests_per_point))

        def run(self) -> list[SimpleNamespace]:
            [(_, targets, _, _)] = asked
            return [
                SimpleNamespace(capacity=SimpleNamespace(label=t.label, capacity=found[t.label]))
                for t in targets
            ]

    monkeypatch.setattr(versus, "CapacitySearches", Searches)
    comparison = Comparison("m", tiny, Path("llama-server"), None, FULL, tmp_path, 2)
    row = comparison._capacities(48)[0]
    assert (row.values[OTHER], row.ratio, row.met) == (0.4, 5.0, True)
    [(options, targets, tbt_target, number)] = asked
    assert (tbt_target, number) == (0.2, FULL.requests)
    workload = options.requests.workload
    assert (workload.prompt_lengths, workload.output_lengths, workload.max_prompt) == (
        "lognormal:430,1400",
        "lognormal:60,130",
        384,
    )
    commands = {target.label: target.command or "" for target in targets}
    assert "--tbt-target 0.2" in commands[OURS]
    assert "--batch-size 48" in commands[f"{OTHER}, batches of 48"]
    assert "--batch-size" not in commands[OTHER]
    assert len({url_of(command.split()) for command in commands.values()}) == len(commands)


@pytest.mark.slow
class TestWholeRun:
    SMALL = Sizes(("decode", "prefill", "streams"), 2, 1, 1, outputs=16, prompt=150)

    def run(
        self, program: str, model: Path, folder: Path
    ) -> tuple[int, dict[str, dict[str, object]]]:
        file = folder / "rows.json"
        code = main([str(model), "--llama-server", program, "--json", str(file)])
        content = json.loads(file.read_text())
        assert "cores" in content["machine"]
        assert not content["failed"]
        return code, {row["name"].strip(): row for row in content["rows"]}

    def test_our_own_server_in_both_roles(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(versus, "FULL", self.SMALL)
        program = tmp_path / "stand-in"
        program.write_text(STAND_IN.format(python=sys.executable))
        program.chmod(0o755)
        code, rows = self.run(str(program), tiny, tmp_path)
        assert code == 0
        assert rows.keys() == {
            "decode of one stream",
            "prefill of 150 tokens",
            "16 streams, 100 + 16 tokens each",
            "between tokens",
        }
        for row in rows.values():
            values = row["values"]
            assert isinstance(values, dict)
            assert {OURS, OTHER} <= values.keys()
            # A stream's tokens may arrive together.
            assert all(value > 0 or row["name"] == "  between tokens" for value in values.values())

    @pytest.mark.skipif(shutil.which("llama-server") is None, reason="there is no llama.cpp")
    def test_llama_cpp_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(versus, "FULL", self.SMALL)
        model = tmp_path / "m.gguf"  # llama.cpp takes no tokenizer without merges
        shape = LlamaShape(64, 2, 4, 2, 96, vocabulary=49200, context=512)
        write_random_llama(model, locate("smollm2-135m").path, shape)
        code, rows = self.run("llama-server", model, tmp_path)
        assert code == 0
        assert len(rows) == 4

    def test_a_model_that_does_not_exist(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([str(tmp_path / "absent.gguf"), "--llama-server", sys.executable]) == 1
        assert "absent.gguf: not measured" in capsys.readouterr().err
