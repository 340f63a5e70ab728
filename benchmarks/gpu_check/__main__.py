"""Run the check; see `python -m benchmarks.gpu_check --help`."""

from __future__ import annotations

import sys

from benchmarks.gpu_check.command import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
