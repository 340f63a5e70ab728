"""The GPU check runs whole on a CPU, whatever fails in it, and its arithmetic is right."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perf.gpu_check import command, gpu_tests, parts
from perf.gpu_check.attention import Sequences
from perf.gpu_check.ceilings import Ceilings
from perf.gpu_check.context import Context
from perf.gpu_check.deadline import Deadline, DeadlineError, interrupting
from perf.gpu_check.idle import LONG_GAP, find_gaps
from perf.gpu_check.outcomes import Outcomes, append_outcomes, read_outcomes
from perf.gpu_check.parts import PARTS, Part, run_parts
from perf.gpu_check.playback import play
from perf.gpu_check.prediction import simulated_device
from perf.gpu_check.results import PartResult, Results
from perf.gpu_check.settings import FULL, TINY
from perf.gpu_check.speed import memory_bound
from perf.gpu_check.startup import read_start
from perf.report import Figure
from sarathi.bench.workload.workload import Plan
from sarathi.engine.core import StepOutcome
from sarathi.engine.messages import TokenOutput
from sarathi.scheduler import AdmissionError

ROOT = Path(__file__).parents[1]
CEILINGS = Ceilings(bandwidth=3e12, flops=7e14)


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Output and file of a whole check."""
    path = tmp_path_factory.mktemp("check") / "found.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "perf.gpu_check", "--tiny", "--device", "cpu"),
            *("--output", str(path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(path.read_text())


def test_all_parts_run_on_a_cpu(check: tuple[str, dict[str, Any]]) -> None:
    _, found = check
    assert {part["key"]: part["status"] for part in found["parts"]} == dict.fromkeys(
        "abcdef", "done"
    )
    assert found["environment"]["torch"] == torch.__version__
    assert found["environment"]["gpu"] is None


def test_the_file_has_every_figure(check: tuple[str, dict[str, Any]]) -> None:
    of_parts = {part["key"]: part for part in check[1]["parts"]}
    assert of_parts["a"]["data"]["tests"]["failed"] == {}
    assert of_parts["a"]["data"]["tests"]["unfinished"] == []
    assert of_parts["b"]["data"]["bytes_per_second"] > 0
    cases = of_parts["c"]["data"]["cases"]
    assert len(cases) == len(TINY.decode_batches) + 5
    assert all(case["seconds"] > 0 and case["torch_seconds"] > 0 for case in cases)
    speed = of_parts["d"]["data"]["speed"]
    assert [one["requests"] for one in speed["decodes"]] == list(TINY.decode_batches)
    assert speed["idle"] is None  # there is no GPU that could idle
    for start in ("cold_start", "warm_start"):
        steps = of_parts["d"]["data"][start]["steps"]
        assert sum(seconds for _, seconds in steps) == pytest.approx(
            of_parts["d"]["data"][start]["seconds"]
        )
    points = of_parts["e"]["data"]["points"]
    assert len(points) == 4 * len(TINY.load_shares)
    for point in points:
        assert point["summary"]["completed"] == point["requests"]
        assert point["summary"]["tbt"]["p99"] > 0
    predicted = of_parts["f"]["data"]["points"]
    assert [(one["policy"], one["rate"]) for one in predicted] == [
        (one["policy"], one["rate"]) for one in points
    ]
    # The simulator was given the very same requests.
    for one, point in zip(predicted, points, strict=True):
        assert one["summary"]["tbt"]["count"] == point["summary"]["tbt"]["count"]


def test_the_table_shows_goals_with_figures(check: tuple[str, dict[str, Any]]) -> None:
    output, found = check
    table = output[output.index("GPU check:") :]
    for part in PARTS:
        assert f"{part.key}. {part.title}" in table
    goals = [
        (figure["name"], figure["goal"])
        for part in found["parts"]
        for figure in part["figures"]
        if figure["goal"] is not None
    ]
    assert goals == [
        ("tests failed", 0),
        ("decodes, 4 x 48, of the copy bandwidth", 0.70),
        ("prompt, 128, of the matrix product", 0.45),
        ("command to first token, tiny, cold", 30.0),
        ("of its memory bound", 1.35),
        ("GPU idle, decodes 4 x 48", 0.05),
    ]
    for goal in ("at least 70.0 %", "at least 45.0 %", "at most 30.0 s", "at most 1.35 x"):
        assert goal in table
    assert "at most 5.0 %" in table
    for policy in ("sarathi, budget 64", "sarathi, target", "vllm", "orca"):
        assert output.count(policy) >= len(TINY.load_shares)


def stub(key: str, fail: bool = False) -> Part:
    def run(context: Context) -> None:
        context.figure(Figure(f"figure of {key}", 1.0, "s"))
        if fail:
            raise ValueError("no such kernel")

    return Part(key, f"Part {key}", run, weight=1, least=0)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
def test_a_part_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "PARTS", (stub("a"), stub("b", fail=True), stub("c")))
    path = tmp_path / "found.json"
    assert command.main(["--tiny", "--device", "cpu", "--output", str(path)]) == 1
    a, b, c = json.loads(path.read_text())["parts"]
    assert [part["status"] for part in (a, b, c)] == ["done", "failed", "done"]
    assert b["error"] == "ValueError: no such kernel"
    assert b["figures"][0]["name"] == "figure of b"  # what it had found before
    assert "Traceback" in path.with_suffix(".log").read_text()
    assert "no such kernel" in capsys.readouterr().out


def test_without_a_gpu_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "found.json"
    assert command.main(["--output", str(path)]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "torch finds no NVIDIA GPU here" in captured.err
    assert not captured.out
    assert not path.exists()


@pytest.mark.usefixtures("torch_threads")
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "perf.gpu_check.parts", None)
    arguments = ["--tiny", "--device", "cpu", "--output", str(tmp_path / "found.json")]
    assert command.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "make gpu-wheels" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "a,x"], "'a,x' does not name parts"),
        (["--parts", ","], "',' does not name parts"),
        (["--output", "found.log"], "'found.log' does not end in .json"),
        (["--time-limit", "0"], "'0' is not a time above 0"),
        (["--device", "cpu"], "--device cpu needs --tiny"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def context_in(folder: Path, results: list[PartResult]) -> Context:
    found = Results(folder / "found.json", {}, {}, results, began="")
    return Context(
        TINY, torch.device("cpu"), found, folder / "found.log", print_line=lambda line: None
    )


def test_a_part_without_time_is_skipped(tmp_path: Path) -> None:
    results = [PartResult("a", "A"), PartResult("b", "B")]
    first, second = replace(stub("a"), least=100.0), stub("b")
    run_parts([first, second], results, context_in(tmp_path, results), Deadline(10.0))
    assert [result.status for result in results] == ["skipped", "done"]
    assert results[0].allotted == pytest.approx(5.0, abs=1.0)  # equal weights
    assert results[1].allotted == pytest.approx(10.0, abs=1.0)  # what the first did not need
    assert results[0].notes[0].startswith("part a skipped: its share of the time limit is ")


def test_what_takes_too_long_is_interrupted() -> None:
    with pytest.raises(DeadlineError), interrupting(0.05):
        time.sleep(60)
    time.sleep(0.1)  # no alarm is left


def test_every_module_with_gpu_tests_is_found() -> None:
    names = {path.name for path in gpu_tests.test_files()}
    assert "test_torch_gpu.py" in names
    assert "test_url.py" not in names


TESTS = """
import os, time
from pathlib import Path
import pytest
pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("number", range(5))
def test_passes(number): pass

def test_fails(): assert False, "no such kernel"

def test_is_skipped(): pytest.skip("no such device")

@pytest.fixture
def broken():
    yield
    raise OSError("not torn down")

def test_fails_afterwards(broken): pass
"""


def run_shards(folder: Path, source: str, count: int, deadline: Deadline | None = None) -> Outcomes:
    """Run the tests of a module and one that cannot be imported."""
    good, bad = folder / "test_good.py", folder / "test_bad.py"
    good.write_text(source)
    bad.write_text("import no_such_library")
    return gpu_tests.run_tests([good, bad], count, deadline or Deadline(600), folder / "tests.log")


def test_shards_run_every_test_once(tmp_path: Path) -> None:
    found = run_shards(tmp_path, TESTS, count=3)
    assert (found.passed, found.skipped) == (5, 1)
    assert found.unfinished == found.problems == []
    assert {name.rpartition("/")[2]: text for name, text in found.failed.items()} == {
        "test_good.py::test_fails": "AssertionError: no such kernel\nassert False",
        "test_good.py::test_fails_afterwards": "OSError: not torn down",
        "test_bad.py": "E   ModuleNotFoundError: No module named 'no_such_library'",
    }
    log = (tmp_path / "tests.log").read_text()
    assert all(f"tests, process {number} of 3" in log for number in range(3))
    assert "no such kernel" in log


PASSING = TESTS.partition("def test_fails()")[0]


def test_a_process_that_dies_leaves_what_it_has_not_run(tmp_path: Path) -> None:
    source = PASSING + "def test_dies(): os._exit(3)\n" + "def test_never_begins(): pass\n"
    found = run_shards(tmp_path, source, count=1)
    assert found.passed == 5
    unfinished = [name.rpartition("::")[2] for name in found.unfinished]
    assert unfinished == ["test_dies", "test_never_begins"]
    assert found.problems == ["test process 0 ended with code 3"]


def test_a_test_that_hangs_is_stopped_and_the_other_outcomes_stay(tmp_path: Path) -> None:
    passed, hangs = tmp_path / "passed", tmp_path / "hangs"
    source = (
        f"{PASSING}"
        f"def test_waits_for_the_other_process():\n"
        f"    while not Path({str(passed)!r}).exists(): time.sleep(0.01)\n"
        f"@pytest.fixture\ndef touching(): yield; Path({str(passed)!r}).touch()\n"
        f"def test_of_the_other_process(touching): pass\n"
        f"def test_hangs(): Path({str(hangs)!r}).touch(); time.sleep(600)\n"
    )
    # Every second test: the one that hangs comes after the one that waits.
    deadline = Deadline(600, clock=lambda: 1e3 if hangs.exists() else 0.0)
    found = run_shards(tmp_path, source, 2, deadline)
    assert found.passed == 7
    assert [name.rpartition("::")[2] for name in found.unfinished] == ["test_hangs"]
    assert "test process 1 was stopped when its time was over" in found.problems


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (Outcomes(3, 0, {"t.py::test_a": "OSError: no\nmore"}, [], []), "1 of the tests failed"),
        (
            Outcomes(3, 0, {}, ["t.py::test_b", "t.py::test_a"], ["process 0 was stopped"]),
            "2 of the tests did not finish: t.py",
        ),
    ],
)
def test_failed_and_unfinished_tests_fail_their_part(
    found: Outcomes, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tests, "run_tests", lambda *arguments: found)
    results = [PartResult("a", "A")]
    part = Part("a", "A", gpu_tests.run, weight=1, least=0)
    run_parts([part], results, context_in(tmp_path, results), Deadline(60.0))
    assert results[0].error is not None
    assert error in results[0].error
    notes = ["t.py::test_a: OSError: no", "process 0 was stopped"]
    assert results[0].notes == [notes[0] if found.failed else notes[1]]
    assert results[0].data["tests"]["unfinished"] == found.unfinished


def test_a_line_that_a_killed_process_wrote_in_part_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    append_outcomes(path, [("a", "collected", ""), ("b", "collected", ""), ("a", "passed", "")])
    with path.open("a") as file:
        file.write('["b", "pas')
    found = read_outcomes([path, tmp_path / "none.jsonl"], ["a problem"])
    assert found == Outcomes(1, 0, {}, ["b"], ["a problem"])


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda pair: (pair[0], sum(pair))),
        min_size=1,
    )
)
def test_idle_shares_are_of_what_no_interval_covers(intervals: list[tuple[int, int]]) -> None:
    busy = set().union(*(range(begin, end) for begin, end in intervals))
    first = min(begin for begin, _ in intervals)
    span = max(end for _, end in intervals) - first
    line = "".join("x" if first + step in busy else " " for step in range(span))
    gaps = [len(gap) for gap in line.split("x")]
    found = find_gaps(intervals)
    assert found.whole == pytest.approx(sum(gaps) / span)
    assert found.long_gaps == pytest.approx(sum(gap for gap in gaps if gap > LONG_GAP) / span)


def test_work_of_attention() -> None:
    shape = FULL.model.config
    prompt = Sequences(count=1, past=0, new=4096)
    assert prompt.flops(shape) == 4 * 32 * 128 * (4096 * 4097 / 2)
    decodes = Sequences(count=64, past=1023)
    assert decodes.kv_bytes(shape, 2) == 64 * 1024 * 4096


def test_the_memory_bound_of_mistral_7b() -> None:
    """14.2 GB of weights and, at 32 x 1024, 4.3 GB of keys and values."""
    seconds = memory_bound(FULL.model.config, CEILINGS, requests=32, context=1024, itemsize=2)
    assert seconds * CEILINGS.bandwidth == pytest.approx(14.22e9 + 4.29e9, rel=1e-3)


def test_steps_of_a_start_add_up() -> None:
    output = (
        '["reading", 11.0]\nsomething else\n[rank 0] a warning\n[1, 2]\n'
        '["checking: 3 layers", 12.5]\n["first token", 15.0]\n'
    )
    start = read_start(output, began=10.0)
    assert start.seconds == 5.0
    assert start.steps == [
        ("interpreter and imports", 1.0),
        ("reading", 1.5),
        ("checking: 3 layers", 2.5),
    ]


@pytest.mark.parametrize(
    ("gpu", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100-pairwise"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA H100 PCIe", "measured"),  # not the card in the simulator's data
        (None, "measured"),
    ],
)
def test_the_simulated_device(gpu: str | None, device: str) -> None:
    found = simulated_device(gpu, 7, CEILINGS)
    assert found.name == device
    if device == "measured":
        assert found.bandwidth * found.achieved.gemm_bandwidth == pytest.approx(3e12)
        assert found.processors == 7


class ScriptedCore:
    """Gives every request a token in each step, and refuses prompts of 13 tokens."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.cancelled: list[int] = []

    @property
    def has_work(self) -> bool:
        return bool(self.left)

    def submit(self, name: int, prompt: list[int], params: Any, arrival: float) -> None:
        if len(prompt) == 13:
            raise AdmissionError("unlucky")
        assert arrival <= time.monotonic()
        self.left[name] = params.max_tokens

    def step(self) -> StepOutcome:
        time.sleep(0.001)
        outputs = []
        for name in list(self.left):
            self.left[name] -= 1
            outputs.append(TokenOutput(name, 5, None if self.left[name] else "length"))
            if not self.left[name]:
                del self.left[name]
        return StepOutcome(outputs, [])

    def cancel(self, name: int) -> None:
        self.cancelled.append(name)
        self.left.pop(name, None)


def plan_of(*requests: tuple[float, int, int]) -> Plan:
    times, prompts, outputs = zip(*requests, strict=True)
    numbers = np.arange(len(requests))
    return Plan(
        np.array(times),
        np.array(prompts),
        np.array(outputs),
        numbers,
        np.zeros_like(numbers),
        0,
        1.0,
        0,
    )


def test_requests_are_played_at_their_times() -> None:
    core: Any = ScriptedCore()
    records = play(core, plan_of((0.0, 4, 3), (0.05, 13, 2), (0.06, 5, 1)), 100, 0, Deadline(60))
    first, refused, last = records
    assert [len(record.tokens) for record in records] == [3, 0, 1]
    assert refused.failure == "refused"
    assert first.failure is None
    assert first.end == first.tokens[-1] > first.tokens[0] > 0
    assert last.tokens[0] >= last.arrival == 0.06


def test_requests_that_are_open_at_the_deadline_fail() -> None:
    core: Any = ScriptedCore()
    plan = plan_of((0.0, 4, 10**6), (0.0, 4, 1), (30.0, 4, 1))
    open_one, done, unsent = play(core, plan, 100, 0, Deadline(0.1))
    assert core.cancelled == [0]
    assert open_one.failure == unsent.failure == "timeout"
    assert open_one.tokens
    assert unsent.end == unsent.arrival
    assert done.failure is None
