"""The open-loop client: sends requests at planned times and times every token of the answers.

`open_loop.py` runs a list of calls (`play`) and informs a `RunListener`; `client_connection.py` is
one request on one connection, `answer.py` its response with the times of its tokens,
`sse_events.py` the events in it. `endpoint.py` builds requests; `server_probe.py` finds out what a
server supports. Import `play`, `RunListener`, `Call`, `Endpoint` and `probe` from their modules.
"""
