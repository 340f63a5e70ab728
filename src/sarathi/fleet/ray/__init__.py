"""Engines on the machines of a Ray cluster. Only this package imports Ray, and only when asked."""
