"""Budgets of an iteration, in tokens or seconds, and the latency model behind the latter."""
