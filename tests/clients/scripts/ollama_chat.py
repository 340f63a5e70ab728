"""Ollama's client: chats, streams, structured output and tools.

Usage: python ollama_chat.py URL
"""

import sys
from typing import Literal

import ollama
from pydantic import BaseModel

client = ollama.Client(host=sys.argv[1])
[listed] = client.list().models
MODEL = listed.model
USER = {"role": "user", "content": "Say hello."}
OPTIONS = {"temperature": 0, "num_predict": 16}


class Colour(BaseModel):
    """What `format` asks for."""

    model_config = {"extra": "forbid"}
    colour: Literal["red", "green", "blue"]


def get_weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: The name of the city.
    """
    return f"18 degrees in {city}"


whole = client.chat(model=MODEL, messages=[USER], options=OPTIONS)
assert whole.message.content
assert whole.done_reason in ("stop", "length")
assert whole.eval_count
assert whole.prompt_eval_count
parts = list(client.chat(model=MODEL, messages=[USER], options=OPTIONS, stream=True))
assert "".join(part.message.content for part in parts) == whole.message.content
assert parts[-1].eval_count == whole.eval_count

generated = client.generate(model=MODEL, prompt=USER["content"], options=OPTIONS)
assert generated.response == whole.message.content

formed = client.chat(
    model=MODEL,
    messages=[{"role": "user", "content": "What colour is the sky?"}],
    format=Colour.model_json_schema(),
    options={"num_predict": 32},
)
assert Colour.model_validate_json(formed.message.content)

turns = [
    USER,
    {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {}}}]},
    {"role": "tool", "tool_name": "get_weather", "content": "18 degrees"},
]
answered = client.chat(model=MODEL, messages=turns, tools=[get_weather], options=OPTIONS)
assert answered.message.content or answered.message.tool_calls
assert "completion" in client.show(MODEL).capabilities

try:
    client.chat(model="another", messages=[USER])
except ollama.ResponseError as error:
    assert error.status_code == 404
    assert "another" in error.error
else:
    raise AssertionError("an unknown model was accepted")
