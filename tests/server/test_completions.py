from __future__ import annotations

from typing import Any

import pytest

from tests.server.fake_engine import (
    EOS,
    LIMIT,
    MODEL,
    ByteTokenizer,
    FakeEngine,
    complete,
    error,
    events,
)


def test_a_completion_has_text_usage_and_a_finish_reason():
    reply = complete(FakeEngine("Hello"), "abc").json()
    assert reply["object"] == "text_completion"
    assert reply["id"].startswith("cmpl-")
    assert reply["model"] == MODEL
    assert reply["choices"] == [
        {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}
    ]
    # Five letters and the token that ended it.
    assert reply["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_the_default_is_sixteen_tokens():
    reply = complete(FakeEngine("x" * 50)).json()
    assert reply["choices"][0]["text"] == "x" * 16
    assert reply["choices"][0]["finish_reason"] == "length"


def test_the_default_length_gives_way_to_a_long_prompt():
    engine = FakeEngine("x" * 50)
    assert complete(engine, "p" * (LIMIT - 3)).json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_every_form_of_prompt(prompt, ids):
    engine = FakeEngine("ok")
    reply = complete(engine, prompt).json()
    assert sorted(generation.prompt for generation in engine.generations) == sorted(ids)
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(ids)))
    assert reply["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert reply["usage"]["completion_tokens"] == 3 * len(ids)


def test_choices_are_in_the_order_of_the_prompts():
    engine = FakeEngine(script=lambda prompt, params: [[b] for b in prompt] + [[EOS]])
    choices = complete(engine, ["abc", "d", "ef"], n=2).json()["choices"]
    assert [choice["text"] for choice in choices] == ["abc", "abc", "d", "d", "ef", "ef"]


def test_seeded_choices_have_different_seeds_and_unseeded_ones_none():
    seeded, unseeded = FakeEngine(), FakeEngine()
    complete(seeded, n=3, seed=2**63 - 1)
    complete(unseeded, n=3)
    seeds = [generation.params.seed for generation in seeded.generations]
    assert seeds[0] == 2**63 - 1
    assert len(set(seeds)) == 3
    assert [generation.params.seed for generation in unseeded.generations] == [None] * 3
    assert all(generation.params.n == 1 for generation in seeded.generations)


@pytest.mark.parametrize(
    ("prompt", "text"), [("Oh, ", "Oh, Hello"), (["a", "b"], None), ([104, 105], "hiHello")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_first(prompt, text, stream):
    response = complete(FakeEngine("Hello"), prompt, echo=True, stream=stream)
    choices = (
        [choice for event in events(response) for choice in event["choices"]]
        if stream
        else response.json()["choices"]
    )
    texts = ["", ""]
    for choice in choices:
        texts[choice["index"]] += choice["text"]
    assert texts == ([text, ""] if text else ["aHello", "bHello"])


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_parallel_lists(stream):
    response = complete(FakeEngine("Hé"), logprobs=2, stream=stream)
    events_or_whole = events(response) if stream else [response.json()]
    merged: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for event in events_or_whole:
        for choice in event["choices"]:
            for name, values in choice["logprobs"].items():
                merged[name] += values
    assert merged["tokens"] == ["H", "bytes:\\xc3", "bytes:\\xa9", "<256>"]
    assert merged["token_logprobs"] == [-0.5] * 4
    assert merged["top_logprobs"][0] == {"H": -0.5, "A": -9999.0}
    assert merged["text_offset"] == [0, 1, 1, 2]


def test_the_sampled_token_is_among_the_alternatives_even_of_logprobs_zero():
    reply = complete(FakeEngine("H"), logprobs=0).json()
    assert reply["choices"][0]["logprobs"]["top_logprobs"] == [{"H": -0.5}, {"<256>": -0.5}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["o, w", ["zzz", "o, w"]])
def test_a_stop_string_ends_text_and_count(stop, stream):
    engine = FakeEngine("Hello, world")
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = complete(engine, stop=stop, stream=stream, **options)
    replies = events(response) if stream else [response.json()]
    assert "".join(c["text"] for reply in replies for c in reply["choices"]) == "Hell"
    assert [c["finish_reason"] for reply in replies for c in reply["choices"]][-1] == "stop"
    assert replies[-1]["usage"]["completion_tokens"] == len("Hello, w")
    assert engine.generations[0].stopped


def test_the_stop_string_may_be_kept():
    reply = complete(FakeEngine("Hello"), stop="ll", include_stop_str_in_output=True).json()
    assert reply["choices"][0]["text"] == "Hell"


def test_a_stop_string_of_one_choice_does_not_end_the_others():
    engine = FakeEngine(script=lambda prompt, params: [[b] for b in prompt] + [[EOS]])
    choices = complete(engine, ["ab.cd", "abcdef"], stop=".").json()["choices"]
    assert [choice["text"] for choice in choices] == ["ab", "abcdef"]


def test_special_tokens_are_text_only_when_asked_for():
    script = [[72], [257], [105], [EOS]]
    for skip, text in ((True, "Hi"), (False, "H<257>i"), (None, "Hi")):
        engine = FakeEngine(script=lambda prompt, params: [list(step) for step in script])
        reply = complete(engine, skip_special_tokens=skip).json()
        assert reply["choices"][0]["text"] == text


def test_a_stream_has_one_event_a_token_and_no_usage():
    replies = events(complete(FakeEngine("Hé"), stream=True))
    assert [reply["choices"][0]["text"] for reply in replies] == ["H", "é", ""]
    assert [reply["choices"][0]["finish_reason"] for reply in replies] == [None, None, "stop"]
    assert all(reply["object"] == "text_completion" for reply in replies)
    assert len({reply["id"] for reply in replies}) == 1
    assert all("usage" not in reply for reply in replies)


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_ends_with_the_usage_if_asked_for(n):
    response = complete(
        FakeEngine("Hi"), "abcd", stream=True, n=n, stream_options={"include_usage": True}
    )
    *replies, last = events(response)
    assert all(reply["usage"] is None for reply in replies)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 3 * n,
        "total_tokens": 4 + 3 * n,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_tokens_that_arrive_together_are_all_sent():
    engine = FakeEngine(script=lambda prompt, params: [[72, 105], [33, EOS]])
    replies = events(complete(engine, stream=True))
    assert "".join(reply["choices"][0]["text"] for reply in replies) == "Hi!"


def test_all_sampling_fields_reach_the_engine():
    engine = FakeEngine()
    fields = {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 3,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.1,
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": 4,
    }
    complete(
        engine, **fields, logit_bias={"5": -100, "6": 1.5}, stop=["a", "b"], stop_token_ids=[9]
    )
    params = engine.params
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.logit_bias == {5: -100.0, 6: 1.5}
    assert params.stop == ("a", "b")
    assert params.stop_token_ids == (9,)


def test_null_means_absent_for_every_field():
    from sarathi.server.openai.completions import CompletionRequest

    nulls = {name: None for name in CompletionRequest.__struct_fields__ if name != "prompt"}
    reply = complete(FakeEngine("Hi"), **{**nulls, "model": None})
    assert reply.json()["choices"][0]["text"] == "Hi"


@pytest.mark.parametrize(("best_of", "n", "status"), [(1, None, 200), (2, 2, 200), (2, 1, 400)])
def test_best_of_is_refused_unless_it_equals_n(best_of, n, status):
    assert complete(FakeEngine(), best_of=best_of, n=n).status_code == status


def test_too_many_choices_are_refused():
    error(complete(FakeEngine(), [[1]] * 600, n=2), 400, "prompt")


def test_a_long_prompt_is_tokenised_off_the_event_loop():
    import threading

    where = []

    class Watched(ByteTokenizer):
        def encode(self, text, add_special_tokens=True):
            where.append(threading.current_thread() is threading.main_thread())
            return super().encode(text)

        def least_tokens(self, text):
            return 0  # not known

    from tests.server.fake_engine import call

    for prompt in ("short", "long " * 2000):
        body = {"model": MODEL, "prompt": prompt}
        call(FakeEngine(), "POST", "/v1/completions", body, tokenizer=Watched())
    assert where == [True, False]


def test_a_long_prompt_does_not_limit_the_output_of_others():
    long, short = [1] * (LIMIT - 2), [1]
    answer = complete(FakeEngine("x" * 50), [long, short]).json()
    assert answer["usage"]["completion_tokens"] == 2 + 16
