"""Log probabilities of prompts in /v1/completions, as OpenAI, vLLM and lm-eval have them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.fake_engine import LIMIT, FakeEngine, chat, complete, error, events


def choices_of(response: Any, stream: bool) -> list[Any]:
    """The choices of a reply, those of a stream put together."""
    if not stream:
        assert response.status_code == 200, response.text
        return list(response.json()["choices"])
    whole: dict[int, Any] = {}
    for event in events(response):
        for choice in event["choices"]:
            index = choice["index"]
            if index not in whole:
                whole[index] = choice
                continue
            whole[index]["text"] += choice["text"]
            whole[index]["finish_reason"] = choice["finish_reason"]
            for name, values in (choice["logprobs"] or {}).items():
                whole[index]["logprobs"][name] += values
    return [whole[index] for index in sorted(whole)]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompts_logprobs_before_those_of_the_output(stream):
    response = complete(FakeEngine("Hé"), "abcd", echo=True, logprobs=1, stream=stream)
    (choice,) = choices_of(response, stream)
    assert choice["text"] == "abcdHé"
    found = choice["logprobs"]
    assert found["tokens"] == [*"abcd", "H", "bytes:\\xc3", "bytes:\\xa9", "<256>"]
    assert found["token_logprobs"] == [None, -98 / 8, -99 / 8, -100 / 8, *[-0.5] * 4]
    assert found["top_logprobs"][:2] == [None, {"A": -0.25, "b": -98 / 8}]
    assert found["text_offset"] == [0, 1, 2, 3, 4, 5, 5, 6]
    assert "prompt_logprobs" not in choice


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_but_the_prompt_with_max_tokens_zero(stream):
    engine = FakeEngine()
    response = complete(engine, "abc", echo=True, logprobs=0, max_tokens=0, stream=stream)
    (choice,) = choices_of(response, stream)
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -98 / 8, -99 / 8],
        "top_logprobs": [None, {"b": -98 / 8}, {"c": -99 / 8}],
        "text_offset": [0, 1, 2],
    }
    assert (engine.params.max_tokens, engine.params.prompt_logprobs) == (0, 0)
    if not stream:
        usage = response.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 0)


@pytest.mark.parametrize("echo", [False, True])
def test_max_tokens_zero_without_logprobs(echo):
    (choice,) = choices_of(complete(FakeEngine(), "abc", max_tokens=0, echo=echo), False)
    assert choice == {
        "index": 0,
        "text": "abc" if echo else "",
        "logprobs": None,
        "finish_reason": "length",
    }


def test_a_prompt_of_one_token_has_none():
    reply = complete(FakeEngine(), [97], echo=True, logprobs=1, max_tokens=0)
    (choice,) = choices_of(reply, False)
    assert choice["logprobs"]["token_logprobs"] == [None]


def test_several_prompts_and_choices():
    reply = complete(FakeEngine("x"), ["ab", "cde"], echo=True, logprobs=0, max_tokens=1, n=2)
    found = [choice["logprobs"]["tokens"] for choice in choices_of(reply, False)]
    assert found == [[*"abx"], [*"abx"], [*"cdex"], [*"cdex"]]


def test_offsets_leave_out_hidden_special_tokens():
    ids = [257, 97, 258, 98]
    (choice,) = choices_of(complete(FakeEngine("x"), ids, echo=True, logprobs=0), False)
    assert choice["text"] == "abx"
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2, 3]
    reply = complete(FakeEngine("x"), ids, echo=True, logprobs=0, skip_special_tokens=False)
    (choice,) = choices_of(reply, False)
    assert choice["logprobs"]["text_offset"][:5] == [0, 5, 6, 11, 12]


def test_vllms_field():
    reply = complete(FakeEngine("x"), "ab", prompt_logprobs=1, max_tokens=1)
    (choice,) = choices_of(reply, False)
    assert choice["text"] == "x"
    assert choice["logprobs"] is None
    assert choice["prompt_logprobs"] == [
        None,
        {
            "65": {"logprob": -0.25, "rank": 1, "decoded_token": "A"},
            "98": {"logprob": -98 / 8, "rank": 2, "decoded_token": "b"},
        },
    ]


def test_each_field_has_as_many_alternatives_as_it_asks_for():
    engine = FakeEngine("x")
    reply = complete(engine, "ab", prompt_logprobs=0, echo=True, logprobs=2, max_tokens=1)
    (choice,) = choices_of(reply, False)
    assert engine.params.prompt_logprobs == 2
    assert list(choice["prompt_logprobs"][1]) == ["98"]
    assert choice["logprobs"]["top_logprobs"][1] == {"A": -0.25, "b": -98 / 8}


def test_a_prompt_may_fill_the_model_if_nothing_is_sampled():
    fields = {"echo": True, "logprobs": 1}
    assert complete(FakeEngine(), "x" * LIMIT, max_tokens=0, **fields).status_code == 200
    error(complete(FakeEngine(), "x" * (LIMIT + 1), max_tokens=0, **fields), 400)
    error(complete(FakeEngine(), "x" * LIMIT, max_tokens=1, **fields), 400)


def test_chats_have_no_such_field():
    error(chat(FakeEngine("x"), prompt_logprobs=1), 400, "prompt_logprobs")


@pytest.mark.parametrize("ask", [complete, chat])
def test_false_asks_for_none_and_true_is_no_number(ask):
    engine = FakeEngine("x")
    assert "prompt_logprobs" not in ask(engine, prompt_logprobs=False).text
    assert engine.params.prompt_logprobs is None
    error(ask(FakeEngine(), prompt_logprobs=True), 400, "prompt_logprobs")


def test_echo_with_logprobs_false_is_text_alone():
    (choice,) = choices_of(complete(FakeEngine("x"), "ab", echo=True, logprobs=False), False)
    assert (choice["text"], choice["logprobs"]) == ("abx", None)


def test_a_chat_has_an_output():
    assert "at least 1" in error(chat(FakeEngine(), max_tokens=0), 400, "max_tokens")["message"]


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("as_text", [False, True])
def test_what_lm_eval_reads(max_tokens, as_text):
    """It sends batches of context and continuation, and sums the continuation's log probabilities.
    Of replies with an output it leaves out the last token."""
    whole = ["the cat", "a b c"]
    contexts = [4, 2]  # tokens
    reply = complete(
        FakeEngine("z"),
        whole if as_text else [list(text.encode()) for text in whole],
        temperature=0,
        max_tokens=max_tokens,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    for text, context, choice in zip(whole, contexts, choices_of(reply, False), strict=True):
        end = -1 if max_tokens else None
        values = choice["logprobs"]["token_logprobs"][context:end]
        tops = choice["logprobs"]["top_logprobs"][context:end]
        assert sum(values) == pytest.approx(sum(-b / 8 for b in text[context:].encode()))
        assert all(value <= max(top.values()) for value, top in zip(values, tops, strict=True))
