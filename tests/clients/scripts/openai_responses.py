"""OpenAI's SDK: the Responses API.

Usage: python openai_responses.py URL
"""

import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
MODEL = client.models.list().data[0].id
ADD = {
    "type": "function",
    "name": "add",
    "description": "Add two digits.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 9},
            "b": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


class Colour(BaseModel):
    """What `parse` has to return."""

    colour: Literal["red", "green", "blue"]


greeting = {"model": MODEL, "instructions": "Be brief.", "input": "Say hello.", "temperature": 0}
reply = client.responses.create(**greeting)
assert reply.output_text
assert reply.usage.output_tokens > 0

with client.responses.stream(**greeting) as stream:
    kinds = [event.type for event in stream]
    final = stream.get_final_response()
assert final.output_text == reply.output_text
assert kinds[0] == "response.created"
assert "response.output_text.delta" in kinds

parsed = client.responses.parse(
    model=MODEL, input="What colour is the sky?", text_format=Colour, max_output_tokens=32
)
assert isinstance(parsed.output_parsed, Colour)

question = [{"role": "user", "content": "What is 2 + 3?"}]
called = client.responses.create(
    model=MODEL,
    input=question,
    tools=[ADD],
    tool_choice={"type": "function", "name": "add"},
    max_output_tokens=64,
)
[call] = [item for item in called.output if item.type == "function_call"]
arguments = json.loads(call.arguments)
assert set(arguments) == {"a", "b"}
result = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
answered = client.responses.create(
    model=MODEL, input=[*question, *called.output, result], tools=[ADD], max_output_tokens=16
)
assert answered.status in ("completed", "incomplete")

try:
    client.responses.create(model=MODEL, input="more", previous_response_id=reply.id)
except openai.BadRequestError as error:
    assert "previous_response_id" in str(error)
else:
    raise AssertionError("previous_response_id was accepted")
