"""Run all measurements one after the other, each in a separate process.

Usage: python -m perf [FOLDER]; the folder is the argument of `versus_genai`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

_NAMES = (
    "agents",
    "chunked_prefill",
    "engine_overhead",
    "grammar_masks",
    "http_vs_offline",
    "pipeline",
    "policies",
    "prefix_caching",
    "quantised_forms",
    "native_kernels",
    "recording",
    "scheduler_overhead",
    "sharded_load",
    "simulator_speed",
    "stage_communication",
    "stall",
    "startup",
    "tbt_target",
    "versus_genai",
    "versus_llama_cpp",
)

_ARGUMENTS = {"versus_llama_cpp": ["--quick"]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf", description="Run all measurements.")
    parser.add_argument("folder", nargs="?", help="the argument of `versus_genai`")
    folder = parser.parse_args().folder
    for name in _NAMES:
        arguments = _ARGUMENTS.get(name, [])
        if folder and name == "versus_genai":
            arguments = [folder]
        code = subprocess.call([sys.executable, "-m", f"perf.{name}", *arguments])
        if code:
            print(f"perf.{name} ended with exit status {code}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
