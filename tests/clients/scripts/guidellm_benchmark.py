"""guidellm: a small benchmark whose report has the tokens and their latencies.

Usage: python guidellm_benchmark.py URL
"""

import json
import subprocess
import sys
from pathlib import Path

TOPICS = ("sea", "sky", "moon", "wind")
requests = Path("requests.jsonl").absolute()
requests.write_text(
    "\n".join(
        json.dumps({"prompt": f"Tell me about the {topic}.", "output_tokens_count": 16})
        for topic in TOPICS
    )
)
report = Path("report.json").absolute()
command = [
    *(str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"),
    *("--backend", f"kind=openai_http,target={sys.argv[1]}"),
    *("--profile", "kind=concurrent,streams=2"),
    *("--constraint", f"kind=max_requests,count={len(TOPICS)}"),
    *("--data", f"kind=json_file,path={requests}"),
    *("--output", f"kind=json,path={report}"),
]
subprocess.run(command, check=True)
[benchmark] = json.loads(report.read_text())["benchmarks"]
totals = benchmark["metrics"]["request_totals"]
assert totals["successful"] == len(TOPICS), totals
assert totals["errored"] == 0, totals
assert benchmark["metrics"]["output_token_count"]["successful"]["mean"] == 16
assert benchmark["metrics"]["inter_token_latency_ms"]["successful"]["median"] > 0
