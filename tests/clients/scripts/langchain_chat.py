"""langchain-openai: calls, streams, tools, structured output in three methods, Responses API.

Usage: python langchain_chat.py URL
"""

import sys
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

ARGUMENTS = {
    "base_url": f"{sys.argv[1]}/v1",
    "api_key": "none",
    "model": "smollm2-135m",
    "max_retries": 0,
    "max_tokens": 128,
    "temperature": 0,
}
model = ChatOpenAI(**ARGUMENTS)
USER = HumanMessage("What is the weather in Paris?")


@tool
def get_weather(city: Literal["Paris", "London"]) -> str:
    """Return the weather of a city."""
    return f"Sunny in {city}."


class Verdict(BaseModel):
    """Whether something is true."""

    verdict: Literal["true", "false"]


assert model.invoke("Say hello.", max_tokens=8).content
assert "".join(str(chunk.content) for chunk in model.stream("Say hello.", max_tokens=8))
assert len(model.batch(["Say hello.", "Say goodbye."], max_tokens=8)) == 2

with_tools = model.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
reply = with_tools.invoke([USER])
[call] = reply.tool_calls
assert call["name"] == "get_weather"
assert call["args"]["city"] in ("Paris", "London")
streamed = None
for chunk in with_tools.stream([USER]):
    streamed = chunk if streamed is None else streamed + chunk
assert streamed.tool_calls[0]["args"] == call["args"]
result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
assert model.bind_tools([get_weather]).invoke([USER, reply, result], max_tokens=8) is not None

for method in ("json_schema", "function_calling", "json_mode"):
    question = "Is the sky blue? Answer as JSON with the key verdict, true or false."
    structured = model.with_structured_output(Verdict, method=method, include_raw=True)
    answer = structured.invoke(question)
    if method != "json_mode":  # which leaves the keys to the model
        assert isinstance(answer["parsed"], Verdict), (method, answer)
    assert answer["raw"] is not None

assert ChatOpenAI(**ARGUMENTS, reasoning_effort="low").invoke("Hi", max_tokens=8) is not None
assert ChatOpenAI(**ARGUMENTS, use_responses_api=True).invoke("Say hello.").content
