"""pydantic-ai: typed output, which it asks for through a forced tool.

Usage: python pydantic_ai_output.py URL
"""

import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome", "Madrid"]
    country: Literal["France", "Italy", "Spain"]


provider = OpenAIProvider(base_url=f"{sys.argv[1]}/v1", api_key="none")
model = OpenAIChatModel("smollm2-135m", provider=provider)
agent = Agent(model, output_type=City, model_settings={"max_tokens": 128, "temperature": 0})
result = agent.run_sync("What is the capital of France?")
assert isinstance(result.output, City)
