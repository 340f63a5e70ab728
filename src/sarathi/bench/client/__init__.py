"""Sends requests to a server of the OpenAI API, and times every token of its answers."""
