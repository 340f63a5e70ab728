"""The search for the highest rate within a latency target.

`rate_search.py` decides which rate to try next, `verdict.py` whether its runs met the targets,
`early_stopping.py` ends runs that cannot meet them any more. `capacity_search.py` puts them
together and keeps every run in a folder. The simulator shares the search and the verdict.
"""
