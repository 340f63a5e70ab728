"""Anthropic's SDK: messages, streams, tools and token counts.

Usage: python anthropic_messages.py URL
"""

import sys

import anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
MODEL = "smollm2-135m"
TOOL = {
    "name": "get_weather",
    "description": "Return the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}
USER = {"role": "user", "content": "What is the weather in Paris?"}
CACHED = {"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}}

GREEDY = {"extra_body": {"temperature": 0}}  # not a parameter of the client any more

ask = {"model": MODEL, "max_tokens": 16, "system": [CACHED], "messages": [USER], **GREEDY}
reply = client.messages.create(**ask)
[block] = reply.content
assert block.type == "text"
assert reply.stop_reason in ("end_turn", "max_tokens")
assert reply.usage.output_tokens > 0

with client.messages.stream(**ask) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == block.text == final.content[0].text
assert final.usage.output_tokens == reply.usage.output_tokens

counted = client.messages.count_tokens(model=MODEL, system=[CACHED], messages=[USER])
usage = reply.usage
assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)

tools = {**ask, "max_tokens": 64, "tools": [TOOL], "tool_choice": {"type": "any"}}
tools["tool_choice"]["disable_parallel_tool_use"] = True
called = client.messages.create(**tools)
assert called.stop_reason == "tool_use"
use = called.content[-1]
assert use.type == "tool_use"
assert isinstance(use.input["city"], str)
with client.messages.stream(**tools) as stream:
    for _ in stream:
        pass
    assert stream.get_final_message().content[-1].input == use.input

result = {"type": "tool_result", "tool_use_id": use.id, "content": "18 degrees"}
turns = [
    USER,
    {"role": "assistant", "content": called.content},
    {"role": "user", "content": [result]},
]
answered = client.messages.create(model=MODEL, max_tokens=16, messages=turns, tools=[TOOL])
assert answered.content

stopped = client.messages.create(
    model=MODEL,
    max_tokens=64,
    stop_sequences=[" "],
    messages=[{"role": "user", "content": "Count from one to ten in words."}],
    **GREEDY,
)
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " ")

try:
    client.messages.create(model="another", max_tokens=1, messages=[USER])
except anthropic.NotFoundError as error:
    assert error.body["type"] == "error"
    assert error.body["error"]["type"] == "not_found_error"
else:
    raise AssertionError("an unknown model was accepted")
