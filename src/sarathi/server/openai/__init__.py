"""The OpenAI API, one module per endpoint: its bodies, and their translation to a generation job.

`chat_messages` has the messages and tools of chats, `generation_reply` what the replies of both
completions share. `sarathi.server.app` imports from here, and Ollama's API, whose chats are
translated to OpenAI's.
"""
