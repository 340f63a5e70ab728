"""The search for the highest rate within a latency target.

`capacity_search.py` decides which rate to try next and keeps every run in a folder; `verdict.py`
whether its runs met the targets, or can no longer. The simulator shares both.
"""
