"""Measurements: metrics of the engine, recorders of its iterations, summaries of requests.

`stats.py` declares every counter and gauge of an engine, `request_latencies.py` every histogram;
`recorder.py`, `iteration_log.py` and `trace.py` record iterations; `summary.py` computes the
figures that the server, the benchmark and the simulator report. Any package may import from here.

- TTFT: from a request's arrival to its first token. The server counts from the end of tokenisation
  to the arrival of the token in the HTTP process, a client from sending to receiving.
- TBT: the gap between two consecutive tokens of one request; a request with n tokens has n - 1.
- Max gap: the longest of these in one request, which a mean would hide.
- Scheduling delay: from arrival to the iteration that first computes some of the request.
- Goodput: the requests sent per second that met their targets of TTFT and of max gap.
"""

from sarathi.telemetry.percentiles import Distribution, distribution
from sarathi.telemetry.summary import RequestRecord, StreamingSummary, Summary, Targets, summarise

__all__ = [
    "Distribution",
    "RequestRecord",
    "StreamingSummary",
    "Summary",
    "Targets",
    "distribution",
    "summarise",
]
