"""The HTTP server: `app` has the table of routes, `run` starts the process and ends it.

`openai` has one module per API, which translates between its bodies and `generation_core`;
`parsers` split output text. `auth` and `connection_limits` protect the server. The command line
imports `run`.
"""
