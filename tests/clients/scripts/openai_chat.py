"""OpenAI's SDK: chat in all its forms, completions, embeddings, models.

Usage: python openai_chat.py URL
"""

import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
[MODEL] = [card.id for card in client.models.list()]
USER = {"role": "user", "content": "What is the weather in Paris?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Return the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


class Answer(BaseModel):
    """What `parse` has to return."""

    sure: bool
    digit: Literal["one", "two", "three"]


def plain() -> None:
    """A whole reply and a stream agree."""
    ask = {"model": MODEL, "messages": [USER], "max_tokens": 16, "temperature": 0}
    reply = client.chat.completions.create(**ask)
    chunks = client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == reply.choices[0].message.content
    raw = client.chat.completions.with_raw_response.create(**ask)
    assert raw.request_id
    again = client.chat.completions.create(
        **{**ask, "messages": [USER, reply.choices[0].message, USER]}
    )
    assert again.usage.prompt_tokens > reply.usage.prompt_tokens


def structured() -> None:
    """Output by a pydantic model, as JSON, and by a schema."""
    parsed = client.chat.completions.parse(
        model=MODEL, messages=[USER], response_format=Answer, temperature=0, max_tokens=64
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[USER],
        temperature=0,
        max_tokens=64,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": Answer.model_json_schema()},
        },
    )
    Answer.model_validate_json(reply.choices[0].message.content)
    reply = client.chat.completions.create(
        model=MODEL, messages=[USER], max_tokens=64, response_format={"type": "json_object"}
    )
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content), dict)


def tools() -> None:
    """Forced calls, whole and streamed, and an answer to their results."""
    choices = (
        ("get_weather", {"type": "function", "function": {"name": "get_weather"}}),
        (None, "required"),
    )
    for name, choice in choices:
        ask = {
            "model": MODEL,
            "messages": [USER],
            "tools": [WEATHER, TIME],
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "temperature": 0,
            "max_tokens": 128,
        }
        reply = client.chat.completions.create(**ask)
        assert reply.choices[0].finish_reason == "tool_calls"
        message = reply.choices[0].message
        [call] = message.tool_calls
        assert name is None or call.function.name == name
        arguments = json.loads(call.function.arguments)
        if call.function.name == "get_weather":
            assert set(arguments) == {"city", "unit"}
        with client.chat.completions.stream(**ask) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion().choices[0].message
        assert final.tool_calls[0].function.arguments == call.function.arguments
        result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"}
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[USER, message, result],
            tools=[WEATHER, TIME],
            max_tokens=16,
        )
        assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    free = client.chat.completions.create(
        model=MODEL, messages=[USER], tools=[WEATHER], tool_choice="none", max_tokens=8
    )
    assert not free.choices[0].message.tool_calls


def others() -> None:
    """Completions with logprobs of the prompt, embeddings, and errors."""
    scored = client.completions.create(
        model=MODEL, prompt="The capital of France", max_tokens=0, echo=True, logprobs=1
    )
    logprobs = scored.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens) == "The capital of France"
    embedded = client.embeddings.create(model=MODEL, input=["a cat", "a dog"])
    assert len(embedded.data) == 2
    assert abs(sum(x * x for x in embedded.data[0].embedding) - 1) < 1e-3
    try:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "a " * 9000}]
        )
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded"
        assert "maximum context length is" in str(error)
    else:
        raise AssertionError("a prompt that is too long was accepted")


plain()
structured()
tools()
others()
