"""Files of requests, good and bad."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sarathi.bench.workload.lengths import read_dialogues, read_trace
from sarathi.errors import BenchmarkError

HEADER = "num_prefill_tokens,num_decode_tokens"
RNG = np.random.default_rng


def written(folder: Path, text: str, name: str = "trace.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def pairs(lengths: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(zip(lengths[0].tolist(), lengths[1].tolist(), strict=True))


def words(text: str) -> int:
    """A counter that adds two tokens around each text."""
    return len(text.split()) + 2


def test_columns_are_found_by_name_and_others_ignored(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffx, num_decode_tokens,num_prefill_tokens\nz,2,3.0\n\n,4,5\n")
    trace = read_trace(path)
    assert pairs((trace.prompts, trace.outputs)) == [(3, 2), (5, 4)]
    assert trace.arrived_at is None


def test_a_trace_is_in_the_order_of_time_from_0(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, f"arrived_at,{HEADER}\n9,1,2\n7.5,3,4\n9,5,6\n"))
    assert trace.arrived_at is not None
    assert trace.arrived_at.tolist() == [0.0, 1.5, 1.5]
    assert pairs((trace.prompts, trace.outputs)) == [(3, 4), (1, 2), (5, 6)]


def test_requests_are_sampled_once_before_any_is_sampled_again(tmp_path: Path) -> None:
    rows = [(number, number + 1) for number in range(1, 21)]
    text = "\n".join([HEADER, *(f"{prompt},{output}" for prompt, output in rows)])
    trace = read_trace(written(tmp_path, text))
    found = pairs(trace.sample(50, RNG(1)))
    assert sorted(found[:20]) == sorted(found[20:40]) == rows
    assert found[:20] != rows
    assert max(Counter(found).values()) == 3
    assert found == pairs(trace.sample(50, RNG(1)))
    assert found != pairs(trace.sample(50, RNG(2)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column num_prefill_tokens"),
        ("num_prefill_tokens\n1\n", "no column num_decode_tokens"),
        (f"{HEADER}\n", "has no requests"),
        (f"{HEADER}\n1,2\n0,5\n", "row 3: num_prefill_tokens is '0'"),
        (f"{HEADER}\n1,2\n3\n", "row 3: num_decode_tokens is ''"),
        (f"{HEADER}\n1,1000001\n", "row 2: num_decode_tokens is '1000001'"),
        (f"{HEADER}\n1,2.5\n", "expected a whole number from 1 to 1,000,000"),
        (f"{HEADER}\n1,nan\n", "row 2: num_decode_tokens is 'nan'"),
        (f"{HEADER},arrived_at\n1,2,inf\n", "row 2: arrived_at is 'inf'"),
        (f"{HEADER},arrived_at\n1,2,\n", "expected a time in seconds"),
    ],
)
def test_bad_traces_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BenchmarkError) as error:
        read_trace(path)
    assert reason in str(error.value)
    assert f"--workload {path}" in str(error.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.csv", "bytes.csv", ""):
        with pytest.raises(BenchmarkError, match="cannot be read"):
            read_trace(str(tmp_path / name))
        with pytest.raises(BenchmarkError, match="cannot be read"):
            read_dialogues(str(tmp_path / name), words)


def dialogue(*turns: tuple[str, str]) -> dict[str, object]:
    said = [{"from": speaker, "value": text, "more": 1} for speaker, text in turns]
    return {"id": "x", "conversations": said}


def test_each_answer_to_a_human_is_a_request_with_all_before_it(tmp_path: Path) -> None:
    first = dialogue(
        ("system", "be kind"),
        ("human", "one two three"),
        ("gpt", "four"),
        ("gpt", "more"),
        ("human", "five six"),
        ("gpt", "seven eight nine ten"),
        ("human", "unanswered"),
    )
    second = dialogue(("gpt", "hello"), ("user", "what"), ("assistant", ""))
    path = written(tmp_path, json.dumps([first, dialogue(), second]), "d.json")
    found = read_dialogues(path, words).sample(3, RNG(1))
    assert sorted(pairs(found)) == [(2 + 2, 1), (2 + 5, 1), (2 + 9, 4)]


def test_only_turns_that_take_part_are_counted_and_once(tmp_path: Path) -> None:
    counted = Counter[str]()

    def count(text: str) -> int:
        counted[text] += 1
        return words(text)

    many = [dialogue(("human", f"h{number}"), ("gpt", f"g{number}")) for number in range(50)]
    path = written(tmp_path, json.dumps(many), "d.json")
    read_dialogues(path, count).sample(5, RNG(1))
    assert len(counted) == 1 + 2 * 5
    assert set(counted.values()) == {1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "has no requests"),
        ('[{"conversations": [{"from": "human", "value": "x"}]}]', "has no requests"),
        ('[{"conversations": [{"from": "human"}]}]', r"$[0].conversations[0]"),
        ('{"a": 1}', "cannot be read"),
        ("[", "cannot be read"),
    ],
)
def test_bad_dialogues_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, text, "d.json")
    with pytest.raises(BenchmarkError) as error:
        read_dialogues(path, words)
    assert reason in str(error.value)
    assert f"--workload {path}" in str(error.value)
