"""The Anthropic API: messages, and counting their tokens.

`messages_request` has the bodies of requests and the conversation that they are. Only
`sarathi.server.app` imports from here.
"""
