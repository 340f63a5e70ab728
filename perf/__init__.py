"""Measures what the project promises about speed and memory; see docs/perf.md."""
