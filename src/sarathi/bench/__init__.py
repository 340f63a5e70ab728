"""Measures servers of the OpenAI API: latencies at a load, and the load that a target allows.

`measure.py` is one run: `workload/` plans the requests, `client/` sends them to a `target.py`.
`capacity/` searches for the highest rate within a target. `results.py` has the structures, files
and comparisons of results; `report/` draws the HTML page, `terminal.py` prints tables. The
simulator makes the same results and imports from all of these.
"""
