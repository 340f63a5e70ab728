"""The OpenAI API, one module per endpoint: its bodies, and their translation to a generation job.

`generation_request` has what the requests and responses of all of them share. Only
`sarathi.server.app` imports from here.
"""
