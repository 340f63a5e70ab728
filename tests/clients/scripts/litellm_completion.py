"""litellm: replies sent back as history, cache marks, streams, tools, and context errors.

Usage: python litellm_completion.py URL
"""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its prices are not asked for

import litellm

ARGUMENTS = {
    "model": "openai/smollm2-135m",
    "api_base": f"{sys.argv[1]}/v1",
    "api_key": "none",
    "num_retries": 0,
    "max_tokens": 16,
    "temperature": 0,
}
USER = {"role": "user", "content": "Say hello."}

reply = litellm.completion(messages=[USER], **ARGUMENTS)
message = reply.choices[0].message
for earlier in (message, message.model_dump()):
    second = litellm.completion(messages=[USER, earlier, USER], **ARGUMENTS)
    assert second.usage.prompt_tokens > reply.usage.prompt_tokens

part = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
litellm.completion(messages=[{"role": "system", "content": [part]}, USER], **ARGUMENTS)

chunks = litellm.completion(messages=[USER], stream=True, **ARGUMENTS)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content

tool = {
    "type": "function",
    "function": {
        "name": "greet",
        "parameters": {
            "type": "object",
            "properties": {"loud": {"type": "boolean"}},
            "required": ["loud"],
        },
    },
}
called = litellm.completion(
    messages=[USER], tools=[tool], tool_choice="required", **{**ARGUMENTS, "max_tokens": 64}
)
assert called.choices[0].message.tool_calls[0].function.name == "greet"

try:
    litellm.completion(messages=[{"role": "user", "content": "a " * 9000}], **ARGUMENTS)
except litellm.ContextWindowExceededError:
    pass
else:
    raise AssertionError("litellm did not see that the prompt is too long")
