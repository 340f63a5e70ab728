"""The HTTP server: `app` has the table of routes, `run` starts the process.

`openai` has one module per API, which translates between its bodies and `generation_core`;
`streaming` sends tokens as server-sent events or one body; `parsers` split output text. `auth`,
`connection_limits` and `shutdown` protect the server. The command line imports `run`.
"""
