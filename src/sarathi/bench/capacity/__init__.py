"""The search for the highest rate within a latency target."""
