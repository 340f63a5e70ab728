"""The part of Ollama's API that chat programs use. Only `sarathi.server.app` imports from here."""
