"""What latencies, throughput and goodput mean, for the server, the benchmark and the simulator.

- TTFT: from a request's arrival to its first token.
- TBT: the gap between two consecutive tokens of one request; a request with n tokens has n - 1.
- Max gap: the longest of these in one request, which a mean would hide.
- Scheduling delay: from arrival to the iteration that first computes something of the request.
- Goodput: of the requests sent per second, those that met their targets of TTFT and of max gap.
"""

from sarathi.telemetry.percentiles import Distribution, distribution
from sarathi.telemetry.request_record import RequestRecord
from sarathi.telemetry.streaming_summary import StreamingSummary
from sarathi.telemetry.summary import Summary, Targets, summarise

__all__ = [
    "Distribution",
    "RequestRecord",
    "StreamingSummary",
    "Summary",
    "Targets",
    "distribution",
    "summarise",
]
