"""The open-loop client: sends requests at planned times and times every token of the answers.

`open_loop.py` runs a list of calls (`play`) and informs a `RunListener`; `answer.py` parses a
response and times its tokens. `endpoint.py` builds requests; `server_probe.py` finds out what a
server supports. Import `play`, `RunListener`, `Call`, `Endpoint` and `probe` from their modules.
"""
