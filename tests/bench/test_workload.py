"""Plans: the load that was asked for, the same at every rate, within all limits."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarathi.bench.workload.workload import Plan, PlannedRequest, Workload
from sarathi.errors import BenchmarkError

TRACE = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(
    f"{second},{10 + second},{second + 1}\n" for second in (5, 6, 8, 11, 15)
)


def workload(**options: Any) -> Workload:
    if "workload" not in options:
        lengths = {"prompt_lengths": "uniform:10,200", "output_lengths": "lognormal:60,130"}
        options = lengths | options
    return Workload.from_options(**options)


def plan(
    made: Workload,
    rate: float | None = 2.0,
    num_requests: int = 40,
    warm_up: int = 0,
    seed: int = 1,
    max_total: int | None = None,
) -> Plan:
    return made.plan(rate, num_requests, warm_up, seed, max_total)


def lengths(made: Plan) -> list[tuple[int, int]]:
    return [(request.prompt_tokens, request.output_tokens) for request in made.requests]


def conversations(made: Plan) -> list[list[PlannedRequest]]:
    found = defaultdict(list)
    for request in made.requests:
        found[request.conversation].append(request)
    return list(found.values())


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return str(path)


@pytest.mark.parametrize("arrivals", ["poisson", "gamma:3", "constant"])
def test_measured_requests_have_the_exact_rate_after_a_warm_up_of_the_same(arrivals: str) -> None:
    made = plan(workload(arrivals=arrivals), rate=4.0, num_requests=30, warm_up=8)
    times = [request.at for request in made.requests]
    assert times == sorted(times)
    assert len(times) == 38
    assert (made.num_warm_up, made.measured_seconds) == (8, 7.5)
    assert times[7] == pytest.approx(2.0)
    assert times[8] > 2.0 or arrivals == "gamma:3"
    assert times[-1] == 9.5


def test_the_same_seed_gives_the_same_requests_at_every_rate() -> None:
    slow, fast = (plan(workload(turns=3), rate, warm_up=5) for rate in (0.5, 8.0))
    assert lengths(slow) == lengths(fast)
    assert [request.at for request in slow.requests] == pytest.approx(
        [16 * request.at for request in fast.requests]
    )
    assert [r.conversation for r in slow.requests] == [r.conversation for r in fast.requests]


LENGTHS = ("fixed:7", "uniform:10,200", "lognormal:60,130", "zipf:1.2,500")
SOURCES = [
    *({"prompt_lengths": one, "output_lengths": other} for one in LENGTHS for other in LENGTHS),
    {"workload": "sharegpt"},
    {"workload": "arxiv"},
    {"workload": "FILE"},
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    source=st.sampled_from(SOURCES),
    turns=st.integers(1, 5),
    numbers=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    warm_ups=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    seed=st.integers(0, 1000),
)
def test_requests_are_the_first_ones_of_more(
    trace: str,
    source: dict[str, str],
    turns: int,
    numbers: tuple[int, int],
    warm_ups: tuple[int, int],
    seed: int,
) -> None:
    if source.get("workload") == "FILE":
        source = {"workload": trace}
    made = workload(**source, turns=turns)
    few, many = (
        [
            replace(request, at=0)
            for request in plan(made, 1.0, number, warm_up, seed, 50_000).requests
        ]
        for number, warm_up in zip(numbers, warm_ups, strict=True)
    )
    common = min(len(few), len(many))
    assert few[:common] == many[:common]


def test_another_seed_gives_others() -> None:
    one, same, other = (plan(workload(), seed=seed) for seed in (1, 1, 2))
    assert one.requests == same.requests
    assert lengths(one) != lengths(other)
    assert [r.at for r in one.requests] != [r.at for r in other.requests]


def test_scales_come_before_caps() -> None:
    options = {"prompt_lengths": "100", "output_lengths": "10"}
    made = workload(**options, prompt_scale=2.5, output_scale=0.01, max_prompt=220)
    assert set(lengths(plan(made))) == {(220, 1)}
    assert set(lengths(plan(workload(**options, output_scale=3, max_output=25)))) == {(100, 25)}


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(2, 2000))
def test_requests_too_long_are_cut_in_proportion(prompt: int, output: int, limit: int) -> None:
    made = workload(prompt_lengths=f"{prompt}", output_lengths=f"{output}")
    cut = plan(made, num_requests=1, max_total=limit)
    [(prompt_cut, output_cut)] = lengths(cut)
    if prompt + output <= limit:
        assert (prompt_cut, output_cut, cut.num_shortened) == (prompt, output, 0)
        return
    assert cut.num_shortened == 1
    assert prompt_cut + output_cut == limit
    assert 1 <= prompt_cut <= prompt
    assert 1 <= output_cut <= output
    assert abs(prompt_cut - prompt * limit / (prompt + output)) <= 1


def test_turns_repeat_all_earlier_turns() -> None:
    single, multi = (plan(workload(turns=turns), num_requests=50) for turns in (1, 4))
    new = dict(zip((r.at for r in single.requests), lengths(single), strict=True))
    found = conversations(multi)
    assert max(map(len, found)) == 4
    assert 50 / 4 <= len(found) < 50 / 2
    for turns in found:
        context = 0
        for number, request in enumerate(turns):
            added, answer = new[request.at]
            assert request.turn == number
            assert (request.prompt_tokens, request.output_tokens) == (context + added, answer)
            context += added + answer
    order = [request.conversation for request in multi.requests]
    assert order != sorted(order)


def test_without_turns_each_request_stands_alone() -> None:
    made = plan(workload())
    assert [request.conversation for request in made.requests] == list(range(40))
    assert {request.turn for request in made.requests} == {0}


@pytest.mark.parametrize(("max_prompt", "max_total"), [(300, None), (None, 400)])
def test_a_conversation_too_long_starts_again(
    max_prompt: int | None, max_total: int | None
) -> None:
    made = plan(workload(turns=10, max_prompt=max_prompt), num_requests=200, max_total=max_total)
    found = conversations(made)
    assert len(found) > 20
    assert max(map(len, found)) > 1
    for turns in found:
        assert [request.turn for request in turns] == list(range(len(turns)))
    for prompt, output in lengths(made):
        assert prompt <= (max_prompt or prompt)
        assert prompt + output <= (max_total or prompt + output)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_prompt": 100}, "a --max-prompt of 100 tokens, no"),
        ({"max_total": 130}, "a context of 130 tokens, no"),
        ({"max_prompt": 100, "max_total": 500}, "of 100 tokens and a context of 500 tokens, no"),
    ],
)
def test_turns_that_do_not_fit_are_refused(limits: dict[str, int], message: str) -> None:
    lengths = {"prompt_lengths": "60", "output_lengths": "10"}
    made = workload(**lengths, turns=4, max_prompt=limits.get("max_prompt"))
    with pytest.raises(BenchmarkError, match="--turns 4 has no effect") as error:
        plan(made, max_total=limits.get("max_total"))
    assert message in str(error.value)
    assert len(plan(made, num_requests=1, max_total=limits.get("max_total")).requests) == 1


def test_a_trace_can_be_sent_at_its_times(trace: str) -> None:
    made = plan(workload(workload=trace, arrivals="trace"), None, num_requests=3, warm_up=1)
    assert [request.at for request in made.requests] == [0.0, 1.0, 3.0, 6.0]
    assert lengths(made) == [(15, 6), (16, 7), (18, 9), (21, 12)]
    assert made.measured_seconds == 6.0


def test_a_trace_can_be_stretched_to_a_rate(trace: str) -> None:
    made = plan(workload(workload=trace, arrivals="trace"), 2.0, num_requests=3, warm_up=2)
    assert made.measured_seconds == 1.5
    times = [request.at for request in made.requests]
    assert times == pytest.approx([0, 1 / 6, 3 / 6, 1, 10 / 6])


def test_a_trace_gives_its_lengths_to_other_arrivals(trace: str) -> None:
    made = plan(workload(workload=trace), num_requests=5)
    assert sorted(lengths(made)) == [(15, 6), (16, 7), (18, 9), (21, 12), (25, 16)]


def test_a_file_of_conversations_is_counted_by_the_tokenizer_given(tmp_path: Path) -> None:
    class Letters:
        def count(self, text: str) -> int:
            return len(text)

    turns = [{"from": "human", "value": "abc"}, {"from": "gpt", "value": "defgh"}]
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"conversations": turns}]))
    made = workload(workload=str(path), tokens=Letters())
    assert lengths(plan(made, num_requests=2)) == [(3, 5)] * 2
    with pytest.raises(BenchmarkError, match="--tokenizer"):
        workload(workload=str(path))


@pytest.mark.parametrize("name", ["sharegpt", "arxiv"])
def test_presets_go_by_name(name: str) -> None:
    assert workload(workload=name).describe() == {"workload": name, "arrivals": "poisson"}
    assert len(lengths(plan(workload(workload=name)))) == 40


def test_a_workload_describes_itself_as_typed(trace: str) -> None:
    made = workload(arrivals="gamma:2", prompt_scale=0.5, max_output=9, turns=2)
    assert made.describe() == {
        "prompt-lengths": "uniform:10,200",
        "output-lengths": "lognormal:60,130",
        "arrivals": "gamma:2",
        "prompt-scale": "0.5",
        "max-output": "9",
        "turns": "2",
    }
    made = workload(workload=trace, arrivals="trace", output_scale=2.0, max_prompt=7)
    assert made.describe() == {
        "workload": trace,
        "arrivals": "trace",
        "output-scale": "2.0",
        "max-prompt": "7",
    }


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"workload": "chat"}, "accepted are sharegpt, arxiv, FILE.csv and FILE.json"),
        ({"workload": "sharegpt", "output_lengths": "5"}, "--output-lengths 5"),
        ({"workload": None, "prompt_lengths": None}, "lengths are missing: give --workload"),
        ({"workload": None, "prompt_lengths": "5"}, "both --prompt-lengths and --output-lengths"),
        ({"arrivals": "trace"}, "FILE.csv with a column arrived_at"),
        ({"workload": "sharegpt", "arrivals": "trace"}, "FILE.csv with a column arrived_at"),
        ({"prompt_scale": 0.0}, "--prompt-scale 0"),
        ({"output_scale": float("nan")}, "--output-scale nan"),
        ({"max_prompt": 0}, "--max-prompt 0 must be at least 1"),
        ({"max_output": -1}, "--max-output -1 must be at least 1"),
        ({"turns": 0}, "--turns 0 must be at least 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BenchmarkError) as error:
        workload(**options)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"rate": None}, "--rate is missing"),
        ({"rate": 0.0}, "--rate 0 must be"),
        ({"rate": float("inf")}, "--rate inf must be"),
        ({"num_requests": 0}, "--num-requests 0"),
        ({"warm_up": -1}, "--warm-up -1"),
        ({"seed": -1}, "--seed -1"),
        ({"max_total": 1}, "holds no request"),
    ],
)
def test_bad_numbers_are_refused(numbers: dict[str, Any], reason: str) -> None:
    with pytest.raises(BenchmarkError) as error:
        plan(workload(), **numbers)
    assert reason in str(error.value)


def test_a_trace_with_too_few_times_is_refused(trace: str) -> None:
    with pytest.raises(BenchmarkError, match="more than the 5 requests"):
        plan(workload(workload=trace, arrivals="trace"), None, num_requests=5, warm_up=1)
