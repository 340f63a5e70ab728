"""Measures servers of the OpenAI API: latencies at a load, and the load that a target allows."""
