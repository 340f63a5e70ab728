"""The OpenAI API, one module per endpoint: its bodies, and their translation to a generation job.

`generation_request` has what the requests of all of them share, `generation_reply` what the replies
share. Only `sarathi.server.app` imports from here.
"""
