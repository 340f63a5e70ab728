"""The OpenAI API, one module per endpoint: its bodies, and their translation to a generation job.

`generation_request` has the request fields that all of them share, `response_format` the parts of
their responses. Only `sarathi.server.app` imports from here.
"""
