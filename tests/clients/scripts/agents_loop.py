"""openai-agents with its default, the Responses API: an agent that has to call two tools.

Usage: python agents_loop.py URL
"""

import sys
from dataclasses import replace
from typing import Any, Literal

from agents import (
    Agent,
    ModelSettings,
    RunHooks,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)
set_default_openai_client(AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0))
called: list[tuple[str, Any]] = []


@function_tool
def look_up_price(fruit: Literal["apple", "pear", "plum"]) -> str:
    """Return the price of a fruit in cents."""
    called.append(("look_up_price", fruit))
    return {"apple": "40", "pear": "60", "plum": "20"}[fruit]


@function_tool
def place_order(fruit: Literal["apple", "pear", "plum"], pieces: Literal[1, 2, 3]) -> str:
    """Order some pieces of a fruit."""
    called.append(("place_order", (fruit, pieces)))
    return f"{pieces} of {fruit} ordered"


class NextTool(RunHooks[None]):
    """Forces one tool after the other, and then an answer."""

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        choice = "place_order" if tool.name == "look_up_price" else "none"
        agent.model_settings = replace(agent.model_settings, tool_choice=choice)


agent = Agent(
    name="Shop",
    instructions="Look up the price, order, then tell the customer.",
    model="smollm2-135m",
    tools=[look_up_price, place_order],
    reset_tool_choice=False,
    model_settings=ModelSettings(tool_choice="look_up_price", max_tokens=64, temperature=0),
)
result = Runner.run_sync(agent, "Two pears, please. What do they cost?", hooks=NextTool())
assert [name for name, _ in called] == ["look_up_price", "place_order"], called
assert isinstance(result.final_output, str)
assert result.final_output
