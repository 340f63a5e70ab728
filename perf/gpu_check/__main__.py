"""Run the check; see `python -m perf.gpu_check --help`."""

from __future__ import annotations

import sys

from perf.gpu_check.command import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
