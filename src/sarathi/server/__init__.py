"""The HTTP server: `app` has the table of routes, `run` starts the process and ends it.

`openai`, `anthropic` and `ollama` translate between their bodies and what all share: `conversation`
(the prompt, parser and grammar of a chat), `generation_request` (sampling and scheduling) and
`generation_core` (the reply). `parsers` split output text. `auth` and `connection_limits` protect
the server. The command line imports `run`.
"""
